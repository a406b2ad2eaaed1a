#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Code that changes under those who run it, on four vCPUs: a program that writes code for other
CPUs and knows what every call must return (assets/programs/jit), and meanwhile a kernel that loads
modules, switches its function tracer, probes and static keys (assets/rootfs/scripts/patch).

    tests/system/patch_test.py --build DIR [--engine NAME] [--translator OPTIONS] [--seconds N]

First the same with writes left out, undisturbed: what cannot fail shows nothing.
"""

import argparse
import pathlib
import re
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
GAMES = "handshake aligned jump breakpoint self pool".split()
PARTS = "modules tracer events keys probes load".split()
TROUBLE = re.compile(r"WARNING:|BUG:|Oops|stall|lockup|Call Trace|hung|corrupt|panic:|"
                     r"clocksource.*unstable|not syncing|patch wrong|jit wrong|segfault|traps:")
BROKEN_SECONDS = 8


def run(options, translator, seconds, *words):
    """All output of the guest, and the words "exit code N" where it did not power off."""
    arguments = ",".join([str(seconds), *words])
    command = [options.build / "bin" / "doppel", "run", "--engine", options.engine, "--no-reboot",
               "--cpus", str(options.cpus), "--memory", "512M", "--console", "stdio",
               "--kernel", ASSETS / "vmlinuz", "--initrd", ASSETS / "initrd-patch.cpio.gz",
               "--append", "console=ttyS0 loglevel=5 panic=-1 doppel.run=patch "
               f"doppel.args={arguments}"]
    if translator:
        command += ["--translator", translator]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, timeout=5 * seconds + 240, check=False)
        output, status = result.stdout, result.returncode
    except subprocess.TimeoutExpired as late:
        output, status = late.stdout or b"", "none: it does not end"
    return output.decode(errors="replace") + (f"\nexit code {status}" if status != 0 else "")


def calls(output):
    """{game: (calls, wrong)}"""
    found = re.findall(r"jit game (\w+) (\d+) calls, \d+ writes, (\d+) wrong", output)
    return {game: (int(count), int(wrong)) for game, count, wrong in found}


def times(output):
    """{what the script did: how often}"""
    found = re.findall(r"patch (\w+) (\d+) times", output)
    return {what: max(int(n) for name, n in found if name == what) for what, _ in found}


def complaints(output):
    wrong = [line for line in output.splitlines() if TROUBLE.search(line)]
    wrong += re.findall(r"exit code .*", output)
    for game in GAMES:
        if calls(output).get(game, (0, 0))[0] == 0:
            wrong.append(f"game {game} was not played")
    for part in PARTS:
        if times(output).get(part, 0) == 0:
            wrong.append(f"{part}: not done once")
    if "doppel.run patch status 0" not in output:
        wrong.append("the guest's script did not end well:\n" + output[-3000:])
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--engine", default="translator")
    parser.add_argument("--translator", default="")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--cpus", type=int, default=4)
    options = parser.parse_args()
    output = run(options, "", BROKEN_SECONDS, "broken")
    unseen = [game for game in GAMES if calls(output).get(game, (0, 0))[1] == 0]
    if unseen:
        sys.exit(f"writes were left out, and {', '.join(unseen)} saw nothing wrong:\n{output}")
    output = run(options, options.translator, options.seconds)
    done = [f"{game} {count}" for game, (count, _) in calls(output).items()]
    done += [f"{what} {count}" for what, count in times(output).items()]
    wrong = complaints(output)
    print(f"{options.cpus} vCPUs, {options.seconds} s:", *(wrong or ["ok"]), sep="\n  ")
    print("  " + ", ".join(done))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
