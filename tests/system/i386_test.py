#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""32-bit code: Debian's i386 kernel (PAE) to a shell, and 32-bit programs under the 64-bit kernel.

    tests/system/i386_test.py --build DIR [--engine NAME] [unittest arguments]

The checking mode goes over the same, from the prompt on: a boot would take it an hour.

They run as translated code: what the interpreter executes of a boot, mostly system instructions,
is counted, and a boot that it executed would be several thousand million.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
PROMPT = "^guest# "
BOOT_SECONDS = 240
FEW = 20_000_000  # instructions
OPTIONS = argparse.Namespace(build=None, engine="translator")


class Guest32(unittest.TestCase):
    def boot(self, kernel, words=""):
        console = Terminal([str(OPTIONS.build / "bin" / "doppel"), "run", "--kernel",
                            str(ASSETS / kernel), "--initrd",
                            str(ASSETS / "initrd-busybox-i386.cpio.gz"), "--append",
                            f"console=ttyS0 {words}", "--memory", "256M", "--engine",
                            OPTIONS.engine, "--stats"])
        self.addCleanup(console.__exit__)
        console.expect(PROMPT, BOOT_SECONDS)
        return console

    def says(self, console, command, pattern):
        console.type(f"{command}\r")
        console.expect(pattern)
        console.expect(PROMPT)

    def work(self, console):
        """Programs, signals, pipes, and arithmetic of which the result is known."""
        self.says(console, "dd if=/bin/busybox bs=5 count=1 2>/dev/null | od -An -tx1",
                  "^ 7f 45 4c 46 01")  # an ELF file of 32-bit code
        self.says(console, "seq 20000 | sha256sum",
                  "^f6351f5ead9a700e34275480b3856ea738122a7c57bdeb744a631251c069587a")
        self.says(console, "seq 30000 | gzip | gunzip | tail -n 1", "^30000")
        self.says(console, "sleep 100 & sleep 1; kill $!; wait $!; echo status $?", "^status 143")
        self.says(console, "awk 'BEGIN { printf \"%.9f\\n\", 355 / 113 }'", "^3.141592920")

    def power_off(self, console):
        console.type("poweroff -f\r")
        self.assertEqual(console.wait(), 0, console.output[-2000:])
        interpreted = int(console.expect(r"^instructions interpreted: (\d+)").group(1))
        if OPTIONS.engine == "translator":
            self.assertLess(interpreted, FEW)

    def test_a_32_bit_kernel(self):
        console = self.boot("vmlinuz-i386")
        self.says(console, "uname -m", "^i686")
        self.says(console, "grep -c -w pae /proc/cpuinfo", "^1")
        self.work(console)
        self.power_off(console)

    def test_32_bit_programs_under_a_64_bit_kernel(self):
        console = self.boot("vmlinuz")
        self.says(console, "uname -m", "^x86_64")
        self.work(console)
        self.power_off(console)

    def test_32_bit_programs_that_know_int_80_only(self):
        console = self.boot("vmlinuz", "vdso32=0")
        self.work(console)
        self.power_off(console)


class Checked32(unittest.TestCase):
    def checked(self, kernel, memory):
        """Boots in virtual time, is saved at the prompt, goes on under --check to power-off."""
        doppel, name = str(OPTIONS.build / "bin" / "doppel"), f"{kernel}-{os.getpid()}"
        with tempfile.TemporaryDirectory() as folder:
            state = f"{folder}/prompt.state"
            with Terminal([doppel, "run", "--name", name, "--time", "virtual", "--engine",
                           "translator", "--memory", memory, "--kernel", str(ASSETS / kernel),
                           "--initrd", str(ASSETS / "initrd-busybox-i386.cpio.gz"),
                           "--append", "console=ttyS0 quiet"]) as console:
                console.expect(PROMPT, BOOT_SECONDS)
                subprocess.run([doppel, "save", name, state], check=True)
            with Terminal([doppel, "run", "--name", f"{name}-checked", "--restore", state,
                           "--check", "--engine", "translator"]) as console:
                console.type("ls / /bin >/dev/null; seq 100 | md5sum\r")
                console.expect("^d632eba71107bf7bc3ec423eab256d78", BOOT_SECONDS)
                console.type("poweroff -f\r")
                self.assertEqual(console.wait(BOOT_SECONDS), 0, console.output[-2000:])
                self.assertNotIn("check: ", console.output)
                blocks = re.search(r"(\d+) blocks checked, 0 differences", console.output)
                self.assertGreater(int(blocks.group(1)), 200_000)

    def test_a_32_bit_kernel(self):
        self.checked("vmlinuz-i386", "64M")

    def test_32_bit_programs_under_a_64_bit_kernel(self):
        self.checked("vmlinuz", "192M")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--engine", default="translator")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
