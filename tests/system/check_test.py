#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The checking mode over a boot: every code block of the translator, repeated by the interpreter.

    tests/system/check_test.py --build DIR --blocks N     a stretch of at least N blocks
    tests/system/check_test.py --build DIR --whole        to power-off
    tests/system/check_test.py --build DIR --guests       some of tests/guest instead

A stretch is measured in CPU time, because a busy machine gives a VM little of it.
"""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
STRETCH_SECONDS = 10  # first try; doubled until the stretch is long enough
WHOLE_SECONDS = 3600


def cpu_seconds(pid):
    """CPU time of the VM's process, the child of `doppel run`; infinite when it has ended."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        fields = pathlib.Path(f"/proc/{children[0]}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return float("inf")


def boot(build, seconds, more):
    """Boots under --check for about `seconds` of CPU time; (exit status, all output)."""
    with tempfile.TemporaryFile() as log:
        vm = subprocess.Popen(
            [build / "bin" / "doppel", "run", "--check", "--stats", "--memory", "256M", *more,
             "--kernel", ASSETS / "vmlinuz", "--initrd", ASSETS / "initrd-busybox.cpio.gz",
             "--append", "console=ttyS0 earlyprintk=ttyS0 doppel.run=poweroff"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        time.sleep(1)  # until it has its child
        while vm.poll() is None and cpu_seconds(vm.pid) < seconds:
            time.sleep(0.2)
        if vm.poll() is None:
            vm.send_signal(signal.SIGTERM)  # ends in order, with the counters
        vm.wait()
        log.seek(0)
        return vm.returncode, log.read().decode(errors="replace")


def complaint(output):
    """The first difference the checker has reported, or None."""
    found = re.search(r"check: .*(?:\n  .*)*", output)
    return found.group(0) if found else None


def checked(output):
    """Blocks compared, as the engine says at its end."""
    return sum(int(n) for n in re.findall(r"(\d+) blocks checked, 0 differences", output))


GUESTS = ("cpuid_msr debug fpu gates gates32 interrupts paging paging32 pcid restart segments smc "
          "storm syscall tasks triple_fault v86").split()


def check_guests(build, more):
    """Faults, rings, page tables, interrupts, code that changes: each guest ends as it should."""
    for name in GUESTS:
        done = subprocess.run(
            [build / "bin" / "doppel", "run", "--check", "--kernel", build / "guest" / name,
             "--debug-exit", "--memory", "16M", *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        output = done.stdout.decode(errors="replace")
        blocks = checked(output)
        if complaint(output):
            sys.exit(f"{name}: the engines differ:\n{complaint(output)}")
        if done.returncode != (4 if name == "triple_fault" else 1) or blocks == 0:
            sys.exit(f"{name}: exit code {done.returncode}, {blocks} blocks:\n{output[-2000:]}")
        print(f"{name}: {blocks} blocks, no difference")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--guests", action="store_true")
    parser.add_argument("--translator", default="", help="as doppel run has it")
    options = parser.parse_args()
    more = ["--translator", options.translator] if options.translator else []
    if options.guests:
        check_guests(options.build, more)
        return
    seconds = WHOLE_SECONDS if options.whole else STRETCH_SECONDS
    while True:
        status, output = boot(options.build, seconds, more)
        if complaint(output):
            sys.exit(f"the engines differ:\n{complaint(output)}")
        if options.whole and (status != 0 or "reboot: Power down" not in output):
            sys.exit(f"the guest did not power off (status {status}):\n{output[-2000:]}")
        blocks = checked(output)
        if options.whole or blocks >= options.blocks:
            print(f"{blocks} blocks, no difference")
            return
        if blocks == 0:
            sys.exit(f"no block was checked:\n{output[-2000:]}")
        seconds *= 2


main()
