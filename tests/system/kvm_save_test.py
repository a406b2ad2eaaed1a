#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A small guest is saved on one engine and goes on on another, kvm among them.

    tests/system/kvm_save_test.py --build DIR [unittest arguments]

The guest (tests/guest/long/long_work.S) computes in ring 3 and waits for timer ticks, and knows
what must come out: registers, vectors, one tick for each round. It needs no more than a page-table
KVM, so a pass says nothing about kernels on KVM. Without /dev/kvm: skipped (77).
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from terminal import Terminal

OPTIONS = argparse.Namespace(build=None)
WAYS = [["kvm", "interpreter", "kvm"], ["translator", "kvm", "translator", "kvm"]]
SKIPPED = 77


class Ways(unittest.TestCase):
    def start(self, engine, *arguments):
        return Terminal([str(OPTIONS.build / "bin" / "doppel"), "run", "--engine", engine,
                         *arguments])

    def go(self, engines):
        guest = OPTIONS.build / "guest" / "long_work"
        with tempfile.TemporaryDirectory(prefix="doppel-kvm-save-") as folder:
            os.environ["XDG_RUNTIME_DIR"] = folder
            state = os.path.join(folder, "vm.state")
            console = self.start(engines[0], "--name", "vm", "--kernel", str(guest),
                                 "--debug-exit", "--append", "%", "--memory", "16M",
                                 "--cpu", "x86-64-v1")
            rounds = 0
            for engine in engines[1:]:
                with console:
                    for _ in range(10):
                        console.expect("^round", 120)
                    subprocess.run([OPTIONS.build / "bin" / "doppel", "save", "vm", state,
                                    "--stop"],
                                   check=True, timeout=120, stdin=subprocess.DEVNULL)
                    self.assertEqual(console.wait(), 0, console.output[-2000:])
                    rounds += console.output.count("round")
                console = self.start(engine, "--restore", state)
            with console:
                console.expect("^done: .* failures 0", 200)
                self.assertEqual(console.wait(), 1, console.output[-2000:])
                self.assertNotIn("FAIL", console.output)
                self.assertIn("ok result", console.output)
                rounds += console.output.count("round\n")
                self.assertEqual(rounds, 160)

    def test_kvm_to_the_interpreter_and_back(self):
        self.go(WAYS[0])

    def test_the_translator_to_kvm_and_back_twice(self):
        self.go(WAYS[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    OPTIONS.build = options.build.resolve()
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        print(f"SKIPPED: /dev/kvm: {error.strerror}")
        return SKIPPED
    unittest.main(argv=[sys.argv[0], *rest])
    return 0


if __name__ == "__main__":
    sys.exit(main())
