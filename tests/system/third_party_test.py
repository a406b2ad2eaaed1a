#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kernels that know nothing of Doppel, out of Debian's packages: they come up and say so on the
serial port.

    tests/system/third_party_test.py --build DIR [--engine NAME] [unittest arguments]
"""

import argparse
import pathlib
import sys
import unittest

from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
WORDS = "console=hvc0 earlyprintk=xen doppel.run=poweroff"
OPTIONS = argparse.Namespace(build=None, engine="auto")


class ThirdParty(unittest.TestCase):
    def boots(self, kernel, *more):
        return Terminal([str(OPTIONS.build / "bin" / "doppel"), "run", "--kernel",
                         str(ASSETS / kernel), "--engine", OPTIONS.engine, *more])

    def memtest(self, kernel, *more):
        """It draws its screen, finds the memory, and tests it: the clock on the screen moves."""
        with self.boots(kernel, "--append", "console=ttyS0,115200", "--memory", "32M",
                        *more) as console:
            console.expect(r"Memtest86\+ v6", 120)
            console.expect(r"Doppel Virtual CPU")
            console.expect(r"0:00:0[1-9]", 120)
            self.assertNotRegex(console.output, r"Errors: *[1-9]")

    def test_memtest_64_bit(self):
        self.memtest("memtest64")

    def test_memtest_32_bit(self):
        self.memtest("memtest32")

    def test_gnu_mach(self):
        with self.boots("gnumach", "--append", "console=com0", "--memory", "64M") as console:
            console.expect(r"^GNU Mach 1\.8", 120)
            console.expect(r"biosmem: 0*100000:0*4000000, available")
            console.expect(r"^RTC time is 20\d\d-\d\d-\d\d")
            console.expect(r"panic .*No bootstrap code loaded with the kernel!")

    def test_xen(self):
        with self.boots("xen", "--append", "console=com1 noreboot", "--memory", "256M") as console:
            console.expect(r"^\(XEN\) Xen version 4\.17", 120)
            console.expect(r"^\(XEN\) Command line: console=com1 noreboot")
            console.expect(r"^\(XEN\) dom0 kernel not specified")
            console.expect(r"^\(XEN\) Manual reset required")

    def test_xen_with_debian_as_its_first_domain(self):
        """A hypervisor in ring 0 and a paravirtual Linux in ring 3 of our CPU, to user space."""
        with self.boots("xen", "--append", "console=com1 dom0_mem=128M", "--memory", "512M",
                        "--module", f"{ASSETS / 'vmlinuz'} {WORDS}",
                        "--module", str(ASSETS / "initrd-busybox.cpio.gz")) as console:
            console.expect(r"^\(XEN\) \*\*\* Serial input to DOM0", 120)
            console.expect(r"Hypervisor detected: Xen PV", 120)
            console.expect(r"Run /init as init process", 240)
            console.expect(r"^\(XEN\) Hardware Dom0 halted", 60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--engine", default="auto")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
