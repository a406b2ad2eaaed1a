#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What --stats counts, on guests that do a known amount of each thing.

    tests/system/statistics_test.py --build DIR [unittest arguments]
"""

import argparse
import pathlib
import subprocess
import sys
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = argparse.Namespace(build=None)


def figures(guest, engine, *more):
    """The name: value lines that a small guest's run leaves on stderr."""
    command = [OPTIONS.build / "bin" / "doppel", "run", "--kernel",
               OPTIONS.build / "guest" / guest, "--engine", engine, "--memory", "16M",
               "--debug-exit", "--stats", *more]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 1, f"{guest} on {engine}: {done.returncode}\n{done.stderr}"
    pairs = (line.partition(": ") for line in done.stderr.splitlines())
    return {name: value for name, _, value in pairs}, done.stdout


class Statistics(unittest.TestCase):
    def on_each_engine(self, guest, *more):
        for engine in ("interpreter", "translator"):
            with self.subTest(engine=engine):
                values, output = figures(guest, engine, *more)
                self.assertEqual(values["engine"], engine)
                yield engine, values, output

    def test_every_character_on_the_serial_port_is_a_port_access(self):
        for _, values, output in self.on_each_engine("gates"):
            self.assertGreaterEqual(int(values["port accesses"]), len(output))

    def test_exceptions_and_their_vectors(self):
        for _, values, _ in self.on_each_engine("paging"):
            by_vector = {name: int(value) for name, value in values.items()
                         if name.startswith("exceptions, ")}
            self.assertGreater(by_vector["exceptions, #PF"], 10)
            self.assertEqual(sum(by_vector.values()), int(values["exceptions"]))

    def test_interrupts_and_mmio(self):
        for _, values, _ in self.on_each_engine("interrupts"):
            self.assertGreater(int(values["interrupts"]), 2)
            self.assertGreater(int(values["MMIO accesses"]), 10)

    def test_translation_caches(self):
        for engine, values, _ in self.on_each_engine("paging"):
            self.assertGreater(int(values["TLB misses"]), 10)
            self.assertGreater(int(values["TLB flushes"]), 0)
            self.assertGreater(int(values["instructions interpreted"]), 100)
            translated = engine == "translator"
            for name in ("translations", "guest bytes translated", "code cache bytes",
                         "guest instructions translated", "translating one, ns",
                         "host bytes for 100 guest bytes, median block",
                         "code blocks dispatched", "exits, TLB miss"):
                self.assertEqual(int(values.get(name, 0)) > 0, translated, name)

    def test_sums_over_all_cpus_and_times(self):
        for _, values, _ in self.on_each_engine("smp", "--cpus", "2"):
            self.assertEqual(values["vCPUs"], "2")
            self.assertGreater(float(values["VM time, s"]), 0)
            self.assertGreater(float(values["vCPU threads' CPU time, s"]), 0)
            process = sum(float(values[f"process CPU time, s, {part}"])
                          for part in ("user", "system"))
            self.assertGreaterEqual(process + 0.02, float(values["vCPU threads' CPU time, s"]))
            self.assertGreater(int(values["peak resident memory, KiB"]), 1000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
