#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""stress-ng in a ramdisk: fork, vm, signal, futex, mmap, switch, pipe, sock, timer and cpu (all
methods), which verify what they computed; and no kernel that complains.

    tests/system/stress_test.py --build DIR [--engine NAME] [--translator OPTIONS] [--seconds N]
                                [--cpus N]…
"""

import argparse
import pathlib
import re
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
STRESSORS = ["fork", "vm", "signal", "futex", "mmap", "switch", "pipe", "sock", "timer"]
# A kernel's line above "notice", and what it says of itself when it does not do well.
TROUBLE = re.compile(r"WARNING:|BUG:|Oops|stall|lockup|Call Trace|hung|corrupt|panic|"
                     r"clocksource.*unstable|not syncing")


def arguments_of_stress_ng(seconds):
    kinds = [word for kind in STRESSORS for word in (f"--{kind}", "1")]
    return [*kinds, "--vm-bytes", "64M", "--mmap-bytes", "32M", "--cpu", "2", "--cpu-method", "all",
            "--verify", "--temp-path", "/tmp", "--timeout", f"{seconds}s", "--oomable"]


def run(options, cpus):
    """What went wrong, in words; empty when nothing did."""
    append = ("console=ttyS0 loglevel=5 panic=-1 doppel.run=stress doppel.args=" +
              ",".join(arguments_of_stress_ng(options.seconds)))
    command = [options.build / "bin" / "doppel", "run", "--engine", options.engine, "--no-reboot",
               "--cpus", str(cpus), "--memory", "1G", "--console", "stdio",
               "--kernel", ASSETS / "vmlinuz", "--initrd", ASSETS / "initrd-stress.cpio.gz",
               "--append", append]
    if options.translator:
        command += ["--translator", options.translator]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                                timeout=3 * options.seconds + 240, check=False)
        output, status = result.stdout.decode(errors="replace"), result.returncode
    except subprocess.TimeoutExpired as late:
        output, status = (late.stdout or b"").decode(errors="replace"), "none: it does not end"
    wrong = [f"trouble: {line}" for line in output.splitlines() if TROUBLE.search(line)]
    wrong += [f"stress-ng: {line}" for line in output.splitlines() if "stress-ng: fail" in line]
    if status != 0:
        wrong.append(f"exit code {status}")
    if "successful run completed" not in output or "doppel.run stress status 0" not in output:
        wrong.append("stress-ng did not end well:\n" + output[-3000:])
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--translator", default="")
    parser.add_argument("--seconds", type=int, default=45)
    parser.add_argument("--cpus", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args()
    failed = False
    for cpus in options.cpus:
        wrong = run(options, cpus)
        print(f"{cpus} vCPUs, {options.seconds} s:", "; ".join(wrong) or "ok", flush=True)
        failed = failed or bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
