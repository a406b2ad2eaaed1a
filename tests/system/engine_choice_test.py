#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which engine --engine auto takes, and what --engine kvm says where KVM does not run kernels.

    tests/system/engine_choice_test.py --build DIR [unittest arguments]

The guest powers off at once, which even a page-table KVM can do; so a verdict of the self-test that
is put into the cache can be obeyed and seen. Without /dev/kvm: skipped (77), but for what is wrong
whatever the host has.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

OPTIONS = argparse.Namespace(build=None)
SKIPPED = 77


def have_kvm():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        print(f"SKIPPED: /dev/kvm: {error.strerror}")
        return False
    return True


class Engine(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="doppel-engine-")
        self.addCleanup(folder.cleanup)
        self.cache = pathlib.Path(folder.name) / "doppel" / "kvm-self-test"
        self.environment = {**os.environ, "XDG_CACHE_HOME": folder.name}

    def ask(self, program, *arguments):
        return subprocess.run([OPTIONS.build / "bin" / program, *arguments], check=False, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
                              env=self.environment)

    def run_guest(self, *arguments):
        return self.ask("doppel", "run", "--kernel", str(OPTIONS.build / "guest" / "power_off"),
                        "--memory", "16M", "--cpu", "x86-64-v1", "--stats", *arguments)

    def verdict(self, line):
        """The self-test's verdict, as if it had come to this one."""
        self.ask("doppel-vmm", "--kvm-verdict")
        key = self.cache.read_text().splitlines()[0]
        self.cache.write_text(f"{key}\n{line}\n")


class OnAnyKvm(Engine):
    def test_auto_takes_kvm_where_the_self_test_is_good(self):
        self.verdict("good")
        done = self.run_guest("--engine", "auto")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("engine: kvm\n", done.stderr)
        self.assertNotIn("warning", done.stderr)

    def test_auto_takes_the_translator_where_it_is_bad_and_says_why_when_asked(self):
        self.verdict("bad it is made of cheese")
        done = self.run_guest("--log", "info")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("engine: translator\n", done.stderr)
        self.assertIn("does not run kernels (it is made of cheese)", done.stderr)
        self.assertNotIn("cheese", self.run_guest().stderr)

    def test_kvm_is_taken_at_its_word_with_one_sentence(self):
        self.verdict("bad it is made of cheese")
        done = self.run_guest("--engine", "kvm")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("engine: kvm\n", done.stderr)
        said = [line for line in done.stderr.splitlines() if line.startswith("doppel:")]
        self.assertEqual(len(said), 1, done.stderr)
        self.assertIn("it is made of cheese", said[0])

    def test_checking_and_virtual_time_take_the_translator(self):
        self.verdict("good")
        done = self.run_guest("--time", "virtual")
        self.assertIn("engine: translator\n", done.stderr)

    def test_the_verdict_is_the_self_tests_own(self):
        kept = self.ask("doppel-vmm", "--kvm-verdict").stdout.strip()
        self.assertRegex(kept, "^(good|bad .+)$")
        self.assertEqual(self.cache.read_text().splitlines()[1], kept)
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.assertIn(boot, self.cache.read_text().splitlines()[0])


class OnEveryHost(Engine):
    def refused(self, *arguments):
        done = self.run_guest(*arguments)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        return done.stderr

    def test_kvm_cannot_be_checked_and_has_no_virtual_time(self):
        self.assertIn("'kvm'", self.refused("--engine", "kvm", "--check"))
        self.assertIn("virtual time", self.refused("--engine", "kvm", "--time", "virtual"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    OPTIONS.build = options.build.resolve()
    names = rest or (["OnEveryHost", "OnAnyKvm"] if have_kvm() else ["OnEveryHost"])
    done = unittest.main(argv=[sys.argv[0], *names], exit=False)
    if not done.result.wasSuccessful():
        return 1
    return 0 if rest or "OnAnyKvm" in names else SKIPPED


if __name__ == "__main__":
    sys.exit(main())
