#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Four vCPUs: the guest takes them away and brings them back under load, and reboots with all.

    tests/system/smp_test.py --build DIR [--rounds N] [unittest arguments]
"""

import argparse
import pathlib
import sys
import unittest

from stress_test import TROUBLE
from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
PROMPT = "^guest# "
OPTIONS = argparse.Namespace(build=None, rounds=3)
CPUS = 4
BOOT_SECONDS = 120


def start():
    return Terminal([str(OPTIONS.build / "bin" / "doppel"), "run", "--engine", "translator",
                     "--kernel", str(ASSETS / "vmlinuz"),
                     "--initrd", str(ASSETS / "initrd-busybox.cpio.gz"), "--append",
                     "console=ttyS0 loglevel=5", "--memory", "256M", "--cpus", str(CPUS)])


class Smp(unittest.TestCase):
    def run_in(self, console, command, pattern):
        console.type(command + "\r")
        console.expect(pattern, 60)
        console.expect(PROMPT, 60)

    def booted(self, console):
        console.expect("^Doppel's test guest", BOOT_SECONDS)
        console.expect(PROMPT, BOOT_SECONDS)

    def online(self, console, count):
        self.run_in(console, "echo on''line $(grep -c ^processor /proc/cpuinfo) CPUs",
                    f"^online {count} CPUs")

    def end(self, console):
        console.type("poweroff -f\r")
        self.assertEqual(console.wait(), 0, console.output[-2000:])
        trouble = [line for line in console.output.splitlines() if TROUBLE.search(line)]
        self.assertEqual(trouble, [], console.output[-8000:])

    def test_cpus_go_and_come_under_load(self):
        switch = "for c in 1 2 3; do echo %d > /sys/devices/system/cpu/cpu$c/online; done"
        with start() as console:
            self.booted(console)
            self.run_in(console, "for i in 1 2 3 4; do (while :; do : $(seq 50); done) & done; "
                        "echo work''ing", "^working")
            for _ in range(OPTIONS.rounds):
                self.run_in(console, f"{switch % 0}; echo go''ne", "^gone")
                self.online(console, 1)
                self.run_in(console, f"{switch % 1}; echo ba''ck", "^back")
                self.online(console, CPUS)
            # Linux stops CPUs one after the other as it powers off, and says "Unexpected reschedule
            # of offline CPU" if one that runs still wakes a task on one that does not.
            self.run_in(console, "kill $(jobs -p); wait; echo sto''pped", "^stopped")
            self.end(console)

    def test_reboots_with_all_cpus(self):
        with start() as console:
            for _ in range(OPTIONS.rounds):
                self.booted(console)
                self.online(console, CPUS)
                console.type("(while :; do :; done) & reboot -f\r")
            self.booted(console)
            self.online(console, CPUS)
            self.end(console)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--rounds", type=int, default=3)
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
