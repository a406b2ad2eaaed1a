#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Debian 12 with systemd on a disk: it works, what it computes is what the host computes, what it
wrote is there after a reboot, ssh reaches it, and no load makes its kernel complain.

    tests/system/debian_test.py --build DIR [--machine qemu] [--stress SECONDS] [unittest arguments]
"""

import argparse
import base64
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from debian_guest import SOURCE, Guest
from stress_test import arguments_of_stress_ng

OPTIONS = argparse.Namespace(build=None, machine="doppel", stress=45)
PROGRAM = r"""
#include <math.h>
#include <stdint.h>
#include <stdio.h>
int main(void) {
    uint64_t hash = 1469598103934665603u;
    double sum = 0;
    for (int i = 1; i <= 300000; i++) {
        sum += sqrt(i) * sin(i) / log(i + 1);
        hash = (hash ^ (uint64_t)i * 2654435761u) * 1099511628211u;
    }
    printf("%016llx %.12e\n", (unsigned long long)hash, sum);
    return 0;
}
"""
PYTHON = "print(pow(3, 20011, 10**40), sum(i * i % 7 for i in range(200000)), 2 ** 0.5)"
COPY_BYTES = 4 << 20  # through ssh, both ways
WORK = {  # commands whose output the host knows better
    "sha256sum": "seq 1 400000 | sha256sum",
    "python3": f"python3 -c '{PYTHON}'",
    "zstd": "seq 1 200000 | zstd -7 -c | zstd -dc | sha256sum",
}


def machine():
    return OPTIONS.machine if OPTIONS.machine == "qemu" else OPTIONS.build / "bin" / "doppel"


def on_host(command):
    return subprocess.run(["bash", "-c", command], check=True, capture_output=True,
                          text=True).stdout.strip()


def stress(test, guest, seconds):
    words = " ".join(arguments_of_stress_ng(seconds))
    output = guest.run(f"stress-ng {words} 2>&1", 2 * seconds + 120)
    test.assertIn("successful run completed", output)
    test.assertNotIn("fail", output)
    test.assertEqual(guest.trouble(), [])


class Debian(unittest.TestCase):
    def test_a_day_in_its_life(self):
        with Guest(machine(), cpus=2) as guest:
            guest.login()
            self.assertEqual(guest.run("systemctl is-system-running --wait", 120), "running")
            self.assertEqual(guest.run("nproc"), "2")
            for name, command in WORK.items():
                with self.subTest(name):
                    self.assertEqual(guest.run(command), on_host(command))
            with self.subTest("a C program"):
                self.check_program(guest)
            with self.subTest("openssl"):
                self.check_signature(guest)
            with self.subTest("ssh"):
                self.check_ssh(guest)
            self.check_file_after_reboot(guest)
            self.assertEqual(guest.trouble(), [])
            self.assertEqual(guest.power_off(), 0)

    def check_program(self, guest):
        guest.put(PROGRAM, "/root/program.c")
        got = guest.run("gcc -O2 -o program program.c -lm && ./program")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "program.c").write_text(PROGRAM)
            want = on_host(f"cd {folder} && gcc -O2 -o program program.c -lm && ./program")
        self.assertEqual(got, want)

    def check_signature(self, guest):
        """Made in the guest, verified by the host."""
        guest.run("echo what is signed > text; openssl genpkey -quiet -algorithm RSA -out key.pem")
        guest.run("openssl pkey -in key.pem -pubout -out public.pem")
        guest.run("openssl dgst -sha256 -sign key.pem -out signature text")
        guest.run("openssl dgst -sha256 -verify public.pem -signature signature text")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for file in ("text", "public.pem", "signature"):
                (folder / file).write_bytes(base64.b64decode(guest.run(f"base64 {file}")))
            self.assertEqual(on_host(f"cd {folder} && openssl dgst -sha256 -verify public.pem "
                                     "-signature signature text"), "Verified OK")

    def check_ssh(self, guest):
        """An address by DHCP, a command, a file there and back."""
        guest.run("until ip -4 address show dynamic | grep 10.0.2.15/24; do sleep 0.2; done")
        self.assertEqual(guest.ssh("hostname; id -un"), b"debian\nroot\n")
        content = os.urandom(COPY_BYTES)
        digest = hashlib.sha256(content).hexdigest()
        guest.ssh("cat > /root/copied", put=content)
        self.assertEqual(guest.ssh("sha256sum < /root/copied").split()[0].decode(), digest)
        self.assertEqual(hashlib.sha256(guest.ssh("cat /root/copied")).hexdigest(), digest)

    def check_file_after_reboot(self, guest):
        want = guest.run("head -c 8M /dev/urandom > /root/kept; sha256sum /root/kept; sync")
        guest.console.type("reboot\r")
        guest.login()
        self.assertEqual(guest.run("sha256sum /root/kept"), want)
        self.assertEqual(guest.run("systemctl is-system-running --wait", 120), "running")
        self.assertEqual(guest.ssh("sha256sum /root/kept").decode().strip(), want)


class Load(unittest.TestCase):
    def test_two_cpus(self):
        self.load(2)

    def test_four_cpus(self):
        self.load(4)

    def load(self, cpus):
        with Guest(machine(), cpus=cpus) as guest:
            guest.login()
            self.assertEqual(guest.run("nproc"), str(cpus))
            stress(self, guest, OPTIONS.stress)
            self.assertEqual(guest.power_off(), 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--machine", default="doppel")
    parser.add_argument("--stress", type=int, default=45)
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
