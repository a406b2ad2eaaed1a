#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A program that looks at what it sees of the processor prints the same in a guest as on the host:
translated, run on the host's CPU itself, and sometimes the one and sometimes the other.

    tests/system/users_test.py --build DIR [--translator OPTIONS]… [--cpus N]
"""

import argparse
import difflib
import os
import pathlib
import re
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"


# The host's libc shall use the vector registers that guests have, as on hosts without AVX-512.
ENVIRONMENT = {**os.environ, "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW"}


def in_guest(options, translator):
    command = [options.build / "bin" / "doppel", "run", "--engine", "translator", "--no-reboot",
               "--cpus", str(options.cpus), "--memory", "512M", "--console", "stdio",
               "--kernel", ASSETS / "vmlinuz", "--initrd", ASSETS / "initrd-patch.cpio.gz",
               "--append", "console=ttyS0 quiet panic=-1 doppel.run=users"]
    if translator:
        command += ["--translator", translator]
    if translator == "direct=always":  # on one CPU, which is another than the guest's first
        command = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0))), *command]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=200,
                          check=False, env=ENVIRONMENT)
    text = done.stdout.decode(errors="replace").replace("\r", "")
    found = re.search(r"^users begin\n(.*)^users end\n.*users status 0", text, re.M | re.S)
    if not found or done.returncode != 0:
        sys.exit(f"{translator}: exit code {done.returncode}\n{text[-3000:]}"
                 f"{done.stderr.decode(errors='replace')[-1000:]}")
    return found.group(1).splitlines()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--translator", action="append")
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args()
    wanted = subprocess.run([ASSETS / "users"], capture_output=True, timeout=60, check=True,
                            text=True).stdout.splitlines()
    failed = wanted[-1] != "users: done"
    for translator in options.translator or ["", "direct=always", "no-direct",
                                              "direct=always,chaos=3"]:
        got = in_guest(options, translator)
        differences = list(difflib.unified_diff(wanted, got, "host", "guest", n=0, lineterm=""))
        print(f"{translator or 'as usual'}:", len(wanted), "lines,",
              "ok" if not differences else "\n".join(differences))
        failed = failed or bool(differences)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
