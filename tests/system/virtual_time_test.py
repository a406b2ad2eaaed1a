#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Virtual time: the same machine runs the same way every time and on every engine, to the
instruction: same console output, same exit code, same number of instructions.

    tests/system/virtual_time_test.py --build DIR            the guests of tests/guest, and a boot
    tests/system/virtual_time_test.py --build DIR --engines  that boot on both engines (slow)
    tests/system/virtual_time_test.py --build DIR --chaos SEED [--guests]
                        the translator disturbed: as if it were not (--guests: no boot)
"""

import argparse
import pathlib
import re
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
TIMEOUT_SECONDS = 900


def run(build, engine, arguments):
    """(exit code, console output, instructions) of one run. ENGINE may be translator:OPTIONS."""
    engine, _, options = engine.partition(":")
    done = subprocess.run(
        [build / "bin" / "doppel", "run", "--time", "virtual", "--stats", "--engine", engine,
         *(["--translator", options] if options else []), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    count = re.search(rb"^instructions executed: (\d+)$", done.stderr, re.M)
    if count is None:
        sys.exit(f"no instruction count:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return done.returncode, done.stdout, int(count.group(1))


def guest_arguments(source, build):
    """As tests/guest/run starts it, without the entropy device: virtual time has none."""
    remarks = re.findall(r"^[ *]*doppel: *(.*?) *(?:\*/)?$", source.read_text(), re.M)
    words = [word for word in " ".join(remarks).split() if word != "--rng"]
    return ["--kernel", build / "guest" / source.stem, "--debug-exit", "--memory", "16M", *words]


def boot_arguments():
    return ["--memory", "256M", "--kernel", ASSETS / "vmlinuz",
            "--initrd", ASSETS / "initrd-busybox.cpio.gz",
            "--append", "console=ttyS0 earlyprintk=ttyS0 doppel.run=poweroff"]


def compare(name, first, second):
    """True when the two runs were the same; says so."""
    what = [word for word, a, b in zip(("exit code", "console", "instructions"), first, second)
            if a != b]
    if not what:
        print(f"same    {name}: {first[2]} instructions, {len(first[1])} bytes", flush=True)
        return True
    print(f"DIFFERS {name}: {', '.join(what)}; {first[0]} {first[2]}, {second[0]} {second[2]}")
    if first[1] != second[1]:
        lines = zip(first[1].splitlines(), second[1].splitlines())
        print(next((f"    {a!r}\n    {b!r}" for a, b in lines if a != b), "    one is longer"))
    return False


def pairs_to_compare(options):
    """[(name, the two engines, arguments)]"""
    build = options.build
    if options.engines:
        return [("boot, both engines", ("translator", "interpreter"), boot_arguments())]
    disturbed = f"translator:chaos={options.chaos},loop-threshold=1,busy-calls=20"
    first = disturbed if options.chaos else "translator"
    guests = sorted((SOURCE / "tests" / "guest").glob("*/*.S"))
    pairs = [(guest.stem, (first, "interpreter"), guest_arguments(guest, build))
             for guest in guests if guest.parent.name != "lib"]
    if not options.guests:
        pairs += [(f"boot, {cpus} CPUs, twice", (first, "translator"),
                   [*boot_arguments(), "--cpus", str(cpus)]) for cpus in (1, 2)]
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--chaos", type=int, default=0)
    parser.add_argument("--guests", action="store_true")
    options = parser.parse_args()
    same = [compare(name, *(run(options.build, engine, arguments) for engine in engines))
            for name, engines, arguments in pairs_to_compare(options)]
    sys.exit(0 if all(same) else 1)


main()
