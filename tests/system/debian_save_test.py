#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Debian under load on its disk is saved and goes on in new processes, on either engine.

    tests/system/debian_save_test.py --build DIR [--rounds N] [unittest arguments]

Workers in the guest write files with fsync and read them back past the page cache; the digests that
they compare with stay in their RAM, so a disk that is older or younger than the RAM is found out,
rounds later too. In the end the host checks the filesystem.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

from debian_guest import SOURCE, Guest
from terminal import Terminal

OPTIONS = argparse.Namespace(build=SOURCE / "build" / "release", rounds=5)
WORKERS = 3
SLOW = "interpreter"
ENGINES = ["translator", SLOW, "translator", "translator", SLOW]  # in turn, from the second start
LOAD = r"""#!/bin/bash
# worker NUMBER: a ring of files, each compared with the digest it had when it was made
cd /root/load
declare -A sum
n=0
matches() {
    local now=$(dd if=$1 bs=64k iflag=direct status=none | sha256sum)
    [ "$now" = "$2" ] || echo "MIS""MATCH $1 $n: $now, not $2" | tee -a wrong >/dev/ttyS0
}
while [ ! -e stop ]; do
    file=worker$1.$((n % 7)) made=/run/made$1
    [ -z "${sum[$file]}" ] || matches $file "${sum[$file]}"
    head -c $((4096 * (1 + RANDOM % 24))) /dev/urandom >$made
    sum[$file]=$(sha256sum <$made)
    dd if=$made of=$file bs=16k conv=fsync status=none || echo "fsync $file" >>wrong
    matches $file "${sum[$file]}"
    echo $((++n)) >/run/new$1 && mv /run/new$1 /run/count$1
done
for file in "${!sum[@]}"; do matches $file "${sum[$file]}"; done
echo "worker $1 made $n" >>ended
"""


class Rounds(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="doppel-save-")
        self.addCleanup(temporary.cleanup)
        os.environ["XDG_RUNTIME_DIR"] = temporary.name  # no VM of others is in the way

    def doppel(self, *arguments):
        subprocess.run([OPTIONS.build / "bin" / "doppel", *map(str, arguments)], check=True,
                       stdin=subprocess.DEVNULL, timeout=120)

    def counts(self, guest):
        return [int(word) for word in guest.run("cat /run/count?").split()]

    def start_load(self, guest):
        guest.put(LOAD, "/root/load.sh")
        guest.run("mkdir -p load && for i in $(seq %d); do echo 0 >/run/count$i; done" % WORKERS)
        guest.run("for i in $(seq %d); do setsid -f bash load.sh $i </dev/null >load/out$i 2>&1; "
                  "done" % WORKERS)
        self.await_progress(guest, [0] * WORKERS)

    def await_progress(self, guest, before, is_slow=False, seconds=120):
        """Every worker has gone all the way round since `before`; a slow one has ended a turn."""
        deadline = time.monotonic() + seconds
        enough, turns = (any, 1) if is_slow else (all, 2)
        while not enough(new >= old + turns for old, new in zip(before, self.counts(guest))):
            self.assertLess(time.monotonic(), deadline, f"stands still at {before}")
            time.sleep(0.1)

    def end_load(self, guest):
        guest.run("touch load/stop; while [ $(cat load/ended 2>/dev/null | wc -l) != %d ]; "
                  "do sleep 0.2; done" % WORKERS)
        self.assertEqual(guest.run("cat load/wrong load/out? 2>/dev/null; true"), "")
        self.assertEqual(len(re.findall(r"worker \d made \d+", guest.run("cat load/ended"))),
                         WORKERS)
        self.assertEqual(guest.trouble(), [])

    def go_on(self, guest, state, engine):
        """The VM in a new process."""
        guest.console = Terminal([str(OPTIONS.build / "bin" / "doppel"), "run", "--restore",
                                  str(state), "--engine", engine])
        guest.console.type("\r")
        guest.console.expect("ready# $", 120)

    def check_filesystem(self, disk):
        checked = subprocess.run(["/sbin/e2fsck", "-fn", disk], capture_output=True, text=True,
                                 check=False)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_a_working_debian_goes_on_with_its_disk(self):
        more = ("--name", "vm", "--engine", ENGINES[0])
        with Guest(OPTIONS.build / "bin" / "doppel", cpus=2, memory_mib=512, more=more) as guest:
            state = pathlib.Path(guest.folder.name) / "vm.state"
            guest.login()
            self.start_load(guest)
            for number in range(1, OPTIONS.rounds + 1):
                before = self.counts(guest)
                time.sleep(number % 7 * 0.1)  # into the middle of something else each time
                begun = time.monotonic()
                self.doppel("save", "vm", state, "--stop")
                self.assertEqual(guest.console.wait(), 0, guest.console.output[-2000:])
                guest.console.__exit__()
                ended = time.monotonic()
                engine = ENGINES[number % len(ENGINES)]
                self.go_on(guest, state, engine)
                there = time.monotonic()
                self.await_progress(guest, before, is_slow=engine == SLOW)
                self.assertNotIn("MISMATCH", guest.console.output)
                print(f"round {number}, {engine}: saved in {ended - begun:.2f} s, there in "
                      f"{there - ended:.2f} s, at work in {time.monotonic() - there:.1f} s",
                      flush=True)
                state.unlink()
            self.end_load(guest)
            self.assertEqual(guest.power_off(), 0)
            self.check_filesystem(guest.disk)


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=OPTIONS.build)
    parser.add_argument("--rounds", type=int, default=OPTIONS.rounds)
    _, rest = parser.parse_known_args(namespace=OPTIONS)
    OPTIONS.build = OPTIONS.build.resolve()
    unittest.main(argv=[sys.argv[0], *rest])


main()
