#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""doppel run --profile: Linux's boot by its own function names, a small guest by its addresses.

    tests/system/profile_test.py --build DIR [-v] [TEST …]
"""

import argparse
import base64
import gzip
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
BUILD = SOURCE / "build" / "release"


def run(*arguments):
    return subprocess.run([BUILD / "bin" / "doppel", "run", *map(str, arguments)],
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=280, check=False)


class Profile(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.file = pathlib.Path(self.folder.name) / "profile.txt"

    def stacks(self):
        lines = [line.rpartition(" ") for line in self.file.read_text().splitlines()]
        return {stack: int(count) for stack, _, count in lines}

    def boot(self, what, *more):
        done = run("--engine", "translator", "--cpus", "2", "--memory", "256M", "--no-reboot",
                   "--kernel", ASSETS / "vmlinuz", "--initrd", ASSETS / "initrd-busybox.cpio.gz",
                   "--append", f"console=ttyS0 quiet doppel.run={what}", *more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def kernel_symbols(self):
        """A file with what one boot of the kernel says; the next boot has it elsewhere."""
        packed = "".join(re.findall(r"^([A-Za-z0-9+/=]{4,76})\r?$",
                                    self.boot("symbols").decode(errors="replace"), re.M))
        text = gzip.decompress(base64.b64decode(packed))
        self.assertGreater(text.count(b"\n"), 5000)
        file = pathlib.Path(self.folder.name) / "kallsyms"
        file.write_bytes(text)
        return file

    def test_a_boot_has_the_kernels_names(self):
        # The second boot does what the first did, as it has users who work for long.
        self.boot("symbols", "--profile", self.file, "--profile-symbols", self.kernel_symbols())
        stacks = self.stacks()
        kernel = {stack: n for stack, n in stacks.items() if stack.startswith("kernel;")}
        self.assertGreater(sum(kernel.values()), 200)
        named = {stack: n for stack, n in kernel.items() if not stack.startswith("kernel;0x")}
        high = sum(n for stack, n in kernel.items() if stack.startswith("kernel;0xf"))
        self.assertGreater(sum(named.values()), 10 * high)  # the rest unpacks the kernel
        # What every boot of this kernel does for long: unpack the initial ramdisk.
        self.assertTrue(any("inflate" in stack for stack in named), sorted(named)[:50])
        self.assertTrue(any(stack.startswith("user;cr3=0x") for stack in stacks))

    def test_a_small_guest_on_both_engines(self):
        for engine in ("translator", "interpreter"):
            done = run("--engine", engine, "--memory", "16M", "--debug-exit",
                       "--kernel", BUILD / "guest" / "storm", "--profile", self.file)
            self.assertEqual(done.returncode, 1, done.stderr)
            stacks = self.stacks()
            self.assertGreater(sum(stacks.values()), 5, engine)
            inside = sum(n for stack, n in stacks.items() if stack.startswith("kernel;0x10"))
            self.assertGreater(inside, sum(stacks.values()) / 2, (engine, stacks))

    def test_wrong_words_are_refused_before_anything_starts(self):
        guest = ("--kernel", BUILD / "guest" / "storm")
        wrong = pathlib.Path(self.folder.name) / "wrong"
        wrong.write_text("nothing\n")
        for arguments, words in [
                (("--profile", self.folder.name), "is no file"),
                (("--profile", "/nowhere/profile"), "cannot write into '/nowhere'"),
                (("--profile-symbols", wrong), "there is none"),
                (("--profile", self.file, "--engine", "kvm"), "the engine kvm makes no profile"),
                (("--profile", self.file, "--profile-symbols", "/nowhere"), "cannot open symbols"),
                (("--profile", self.file, "--profile-symbols", wrong), "no lines 'ADDRESS t")]:
            done = run(*guest, *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn(words, done.stderr.decode())
            self.assertFalse(self.file.exists(), arguments)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=BUILD)
    known, rest = parser.parse_known_args()
    BUILD = known.build
    unittest.main(argv=[sys.argv[0], *rest])
