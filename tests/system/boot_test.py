#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel to a shell, driven through a pseudo-terminal.

    tests/system/boot_test.py --build DIR [--engine NAME] [--append WORDS] [unittest arguments]
"""

import argparse
import hashlib
import os
import pathlib
import signal
import sys
import unittest

from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
PROMPT = "^guest# "
CTRL_A = "\x01"
OPTIONS = argparse.Namespace(build=None, engine="auto", append="")
BOOT_SECONDS = 300  # the interpreter, on a busy host


def run_command(*more):
    return [str(OPTIONS.build / "bin" / "doppel"), "run",
            "--kernel", str(ASSETS / "vmlinuz"),
            "--initrd", str(ASSETS / "initrd-busybox.cpio.gz"),
            "--append", f"console=ttyS0 {OPTIONS.append}", "--memory", "256M",
            "--engine", OPTIONS.engine, *more]


class Shell(unittest.TestCase):
    def test_commands_and_power_off(self):
        with Terminal(run_command("--stats")) as console:
            console.expect(PROMPT, BOOT_SECONDS)
            self.assertTrue(console.is_raw(), "the terminal is raw while the guest runs")
            console.type("uname -a\r")
            console.expect(r"^Linux guest 6\.\S+ .*x86_64 GNU/Linux")
            console.expect(PROMPT)
            console.type("cat /proc/cpuinfo\r")
            console.expect(r"^processor\s*: 0")
            console.expect(r"^flags\s*: .*\bsse2\b")
            console.expect(PROMPT)
            console.type("free -m | grep Mem\r")
            total = int(console.expect(r"^Mem:\s+(\d+)\s").group(1))
            self.assertTrue(150 < total < 256, f"{total} MiB of memory")
            console.expect(PROMPT)
            console.type("sleep 1; echo $((6 * 7)) done\r")
            console.expect("^42 done")
            console.expect(PROMPT)
            console.type("poweroff -f\r")
            self.assertEqual(console.wait(), 0, console.output[-2000:])
            self.assertEqual(console.settings(), console.settings_before)
            console.expect("instructions interpreted|code blocks")

    def test_ctrl_c_goes_to_the_guest(self):
        with Terminal(run_command()) as console:
            console.expect(PROMPT, BOOT_SECONDS)
            console.type("echo sleep''ing; sleep 1000\r")
            console.expect("^sleeping$")  # from here on the shell does not read the keyboard
            console.type("\x03")
            console.expect(PROMPT)
            console.type(CTRL_A + "x")
            console.wait()
            self.assertEqual(console.settings(), console.settings_before)


class Escape(unittest.TestCase):
    def test_help_and_quit(self):
        with Terminal(run_command()) as console:
            console.expect("Linux version|Run /init|guest", BOOT_SECONDS)
            console.type(CTRL_A + "h")
            console.expect("Ctrl-A x")
            console.type(CTRL_A + "x")
            console.wait(15)
            self.assertEqual(console.settings(), console.settings_before)

    def test_a_signal_restores_the_terminal(self):
        with Terminal(run_command()) as console:
            console.expect("Linux version|Run /init|guest", BOOT_SECONDS)
            self.assertTrue(console.is_raw())
            os.kill(console.pid, signal.SIGTERM)
            console.wait(15)
            self.assertEqual(console.settings(), console.settings_before)


class SeveralCpus(unittest.TestCase):
    def test_two_cpus_come_up(self):
        with Terminal(run_command("--cpus", "2")) as console:
            console.expect(PROMPT, BOOT_SECONDS)
            console.type("grep -c ^processor /proc/cpuinfo\r")
            console.expect("^2$")
            console.expect(PROMPT)
            console.type("for i in 1 2 3; do (head -c 99999 /dev/urandom | md5sum) & done; wait\r")
            console.expect(PROMPT)
            console.type("poweroff -f\r")
            self.assertEqual(console.wait(), 0, console.output[-2000:])

    def test_sixteen_cpus_work_at_once(self):
        digest = hashlib.sha256(bytes(100000)).hexdigest()
        with Terminal(run_command("--cpus", "16")) as console:
            console.expect(PROMPT, BOOT_SECONDS)
            console.type("grep -c ^processor /proc/cpuinfo\r")
            console.expect("^16$")
            console.expect(PROMPT)
            console.type("head -c 100000 /dev/zero >/tmp/x\r")
            console.type("for i in $(seq 16); do (for n in 1 2 3; do sha256sum </tmp/x; done) & "
                         "done | sort | uniq -c\r")
            console.expect(rf"^ *48 {digest}  -\n{PROMPT[1:]}", BOOT_SECONDS)
            console.type("dmesg | grep -cE 'WARNING|BUG|stall|lockup|Call Trace'\r")
            console.expect("^0$")
            console.type("poweroff -f\r")
            self.assertEqual(console.wait(), 0, console.output[-2000:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--append", default="", help="more words for the kernel")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
