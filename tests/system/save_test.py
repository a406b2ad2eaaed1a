#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A running VM is listed, paused, saved and stopped from outside, and goes on from its file.

    tests/system/save_test.py --build DIR [--rounds N] [unittest arguments]

The guest computes checksums in several processes on two vCPUs all the time. In every round it is
saved, its process ends, and a new process goes on with it, on the same or the other engine; what
the guest computes must agree with itself for ever.
"""

import argparse
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import time
import unittest

from debian_guest import free_port
from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
PROMPT = "^guest# "
CTRL_A = "\x01"
OPTIONS = argparse.Namespace(build=None, rounds=5)
BOOT_SECONDS = 120
ENGINES = ["translator", "interpreter", "translator", "translator", "interpreter"]  # in turn
# Each worker checks the same digests again and again; /tmp/run going away ends it.
WORKERS = 4
WORKLOAD = r"""
dd if=/dev/urandom of=/tmp/data bs=4k count=25 2>/dev/null
md5=$(md5sum </tmp/data); sha=$(sha256sum </tmp/data); touch /tmp/run
for i in 1 2 3 4; do echo 0 >/tmp/count$i; done
worker() {
  n=0
  while [ -e /tmp/run ]; do
    [ "$(md5sum </tmp/data)" = "$md5" ] || echo "MIS""MATCH md5 $1"
    [ "$(gzip -c /tmp/data | gunzip | sha256sum)" = "$sha" ] || echo "MIS""MATCH sha $1"
    n=$((n + 1)); echo $n >/tmp/new$1; mv /tmp/new$1 /tmp/count$1
  done
  echo "worker $1 made $n"
}
"""


class Guest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="doppel-save-")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        os.environ["XDG_RUNTIME_DIR"] = temporary.name  # no VM of others is in the way

    def doppel(self, *arguments, code=0):
        """Runs the command; its stdout, or its stderr when it is to fail."""
        done = subprocess.run([OPTIONS.build / "bin" / "doppel", *map(str, arguments)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=120, check=False, cwd=self.folder)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stderr if code else done.stdout

    def boot(self, *more, cpus=2, name="vm"):
        return self.terminal("run", "--name", name, "--memory", "128M", "--cpus", cpus,
                             "--kernel", ASSETS / "vmlinuz",
                             "--initrd", ASSETS / "initrd-busybox.cpio.gz",
                             "--append", "console=ttyS0 quiet", *more)

    def terminal(self, *arguments):
        return Terminal([str(OPTIONS.build / "bin" / "doppel"), *map(str, arguments)])

    def status(self):
        return json.loads(self.doppel("status", "vm", "--json"))

    def answer(self, console, command, pattern, seconds=60):
        console.type(command + "\r")
        match = console.expect(pattern, seconds)
        console.expect(PROMPT, seconds)
        return match


class Rounds(Guest):
    def start_workload(self, console):
        console.expect(PROMPT, BOOT_SECONDS)
        for line in WORKLOAD.strip().splitlines():
            console.type(line + "\r")
        self.answer(console, "for i in 1 2 3 4; do worker $i & done; echo work''ing", "^working")

    def counts(self, console):
        match = self.answer(console, "echo counts $(cat /tmp/count?)", r"^counts (\d+ ?)+\n")
        return [int(count) for count in match.group(0).split()[1:]]

    def check_calendar(self, console):
        guest = int(self.answer(console, "date +%s", r"^(\d{10})$").group(1))
        self.assertAlmostEqual(guest, time.time(), delta=10, msg="the guest's calendar")

    def end_workload(self, console):
        console.type("rm /tmp/run; wait; echo all ended\r")
        console.expect("^all ended", 120)
        self.assertEqual(len(re.findall(r"^worker \d made \d", console.output, re.M)), WORKERS,
                         console.output[-2000:])
        console.type("poweroff -f\r")
        self.assertEqual(console.wait(), 0)

    def check_output(self, console):
        for word in ("MISMATCH", "soft lockup", "rcu:", "Call Trace", "segfault", "Oops"):
            self.assertNotIn(word, console.output)

    def save_and_stop(self, state, live):
        """`live`: the guest works on while most of its RAM is written."""
        if live:
            self.doppel("save", "vm", state)
            self.doppel("stop", "vm", "--now")
        else:
            self.doppel("save", "vm", state, "--stop")

    def test_a_working_guest_goes_on_in_new_processes(self):
        state = self.folder / "vm.state"
        console = self.boot("--engine", ENGINES[0])
        try:
            self.start_workload(console)
            before = [0] * WORKERS
            for number in range(1, OPTIONS.rounds + 1):
                time.sleep(0.2 + number % 7 * 0.1)  # into the middle of something else each time
                self.save_and_stop(state, live=number % 2 == 0)
                self.assertEqual(console.wait(), 0, console.output[-2000:])
                self.check_output(console)
                console.__exit__()
                engine = ENGINES[number % len(ENGINES)]
                console = self.terminal("run", "--restore", state, "--engine", engine)
                console.type("\r")
                console.expect(PROMPT)
                self.assertEqual(self.status()["engine"], engine)
                self.check_calendar(console)
                after = self.counts(console)
                self.assertEqual(len(after), WORKERS)
                self.assertTrue(all(old <= new for old, new in zip(before, after)),
                                f"round {number}: {before} -> {after}")
                before = after
            self.end_workload(console)
            self.check_output(console)
        finally:
            console.__exit__()


class Control(Guest):
    def test_a_vm_is_listed_paused_and_stopped(self):
        forward = f"tcp:127.0.0.1:{free_port()}:22"
        with self.boot("--net", f"user,forward={forward}", cpus=1) as console:
            console.expect(PROMPT, BOOT_SECONDS)
            self.assertRegex(self.doppel("ls"), rf"\nvm +running +1 +128M .* {forward}\n")
            self.assertIn(f"forwards: {forward}\n", self.doppel("status", "vm"))
            self.assertEqual(self.status()["forwards"], [forward])
            self.doppel("pause", "vm")
            first = self.status()
            time.sleep(0.3)
            second = self.status()
            self.assertEqual(first["state"], "paused")
            self.assertEqual(first["vm_time_ns"], second["vm_time_ns"])
            console.type("echo aw''ake\r")
            console.read(0.3)
            self.assertNotIn("awake", console.output)
            self.doppel("resume", "vm")
            console.expect("^awake")
            self.assertIn("code blocks", self.doppel("status", "vm"))
            self.assertIn("vm", self.doppel("run", "--name", "vm", "--kernel", ASSETS / "vmlinuz",
                                            code=2))
            self.doppel("stop", "vm", "--now")
            self.assertEqual(console.wait(10), 0)
            self.assertNotIn("vm", self.doppel("ls"))
            for command in ("pause", "resume", "status", "stop"):
                self.assertIn("no VM named 'vm'", self.doppel(command, "vm", code=2))

    def test_a_save_lets_the_guest_go_on_and_the_keys_do_it_too(self):
        with self.boot(cpus=1) as console:
            console.expect(PROMPT, BOOT_SECONDS)
            self.doppel("save", "vm", "x.state")
            self.answer(console, "echo still he''re", "^still here")
            self.doppel("pause", "vm")
            self.doppel("save", "vm", "x.state")
            self.assertEqual(self.status()["state"], "paused", "as it was before")
            console.type(CTRL_A + "p")
            console.expect("the VM goes on")
            self.answer(console, "echo and he''re", "^and here")
            console.type(CTRL_A + "p")
            console.expect("the VM is paused")
            self.assertEqual(self.status()["state"], "paused")
            self.assertIn("not-there", self.doppel("save", "vm", "not-there/x", code=2))
            self.assertEqual(self.status()["state"], "paused")
            console.type(CTRL_A + "x")
            console.wait(15)


class Counter(Guest):
    """Who runs directly reads the host's, as long as that is the guest's."""

    def counted(self, milliseconds, paused_seconds=0):
        """How often it was read, and the largest gap in ms."""
        with self.terminal("run", "--name", "vm", "--memory", "128M", "--engine", "translator",
                           "--translator", "direct=always", "--kernel", ASSETS / "vmlinuz",
                           "--initrd", ASSETS / "initrd-patch.cpio.gz", "--append",
                           "console=ttyS0 quiet doppel.run=users "
                           f"doppel.args=gaps,{milliseconds}") as console:
            console.expect("^users: counting", BOOT_SECONDS)
            if paused_seconds:
                time.sleep(0.5)
                self.doppel("pause", "vm")
                time.sleep(paused_seconds)
                self.doppel("resume", "vm")
            found = console.expect(r"^users: (\d+) readings, largest gap (\d+) ms$", 60)
            self.assertEqual(console.wait(30), 0)
        return int(found.group(1)), int(found.group(2))

    def test_it_is_read_without_a_visit(self):
        readings, _ = self.counted(1000)
        self.assertGreater(readings, 1_000_000, "a visit each would make 100,000 at most")

    def test_a_pause_is_not_seen_in_it(self):
        _, gap = self.counted(6000, paused_seconds=4)
        self.assertLess(gap, 1000, "ms; the pause would be 2400 or more")


class Clock(Guest):
    def test_what_passed_is_seen_by_the_calendar_unless_told_otherwise(self):
        gap = 4
        with self.boot(cpus=1) as console:
            console.expect(PROMPT, BOOT_SECONDS)
            self.doppel("save", "vm", "x.state", "--stop")
            saved_at = time.time()
            console.wait()
        time.sleep(gap)
        for how in ("catch-up", "continue"):
            with self.terminal("run", "--restore", self.folder / "x.state",
                               "--restore-clock", how) as console:
                started_at = time.time()
                console.type("\r")
                console.expect(PROMPT)
                guest = int(self.answer(console, "date +%s", r"^(\d{10})$").group(1))
                lost = 0 if how == "catch-up" else started_at - saved_at
                self.assertAlmostEqual(guest, time.time() - lost, delta=2.5, msg=how)
                console.type("poweroff -f\r")
                self.assertEqual(console.wait(), 0)


class Disks(Guest):
    """What happens to the disk between the save and the restore."""

    def setUp(self):
        super().setUp()
        self.disk = self.folder / "d.raw"
        self.disk.write_bytes(bytes(1 << 20))

    def boot_with_disk(self, name):
        """The disk is named as seen from the folder in which the command runs."""
        here = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, here)
        console = self.boot("--disk", "d.raw", cpus=1, name=name)
        os.chdir(here)
        console.expect(PROMPT, BOOT_SECONDS)
        return console

    def refused(self, *words):
        says = self.doppel("run", "--restore", "x.state", "--console", "none", code=2)
        self.assertEqual(len(says.strip().splitlines()), 1, says)
        for word in (str(self.disk), *words):
            self.assertIn(word, says)

    def test_a_disk_that_is_not_as_it_was_is_refused_with_a_sentence(self):
        with self.boot_with_disk("vm") as console:
            self.doppel("save", "vm", "x.state", "--stop")
            self.assertEqual(console.wait(), 0)
        with self.boot_with_disk("other"):
            self.refused("in use")
        away = self.folder / "away"
        self.disk.rename(away)
        self.refused("No such file")
        self.disk.mkdir()
        self.refused("directory")
        self.disk.rmdir()
        self.disk.write_bytes(bytes(1 << 19))
        self.refused("524288", "1048576")
        self.disk.write_bytes(bytes(1 << 20))
        self.refused("written to", "touch -d @")
        self.disk.unlink()
        away.rename(self.disk)  # its time is what it was
        with self.terminal("run", "--restore", self.folder / "x.state") as console:
            console.type("\r")
            console.expect(PROMPT)
            console.type("poweroff -f\r")
            self.assertEqual(console.wait(), 0)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class WrongFile(Guest):
    """One state file of a VM that never ran far, spoilt in many ways."""

    def make(self):
        with self.boot(cpus=1) as console:
            time.sleep(0.5)
            console.expect("", 1)
            for _ in range(100):
                if (self.folder / "doppel" / "vm.sock").exists():
                    break
                time.sleep(0.1)
            self.doppel("save", "vm", "good", "--stop")
            console.wait()
        return (self.folder / "good").read_bytes()

    def refused(self, *words, data=None, options=()):
        path = self.folder / "bad"
        if data is not None:
            path.write_bytes(data)
        says = self.doppel("run", "--restore", path, "--console", "none", *options, code=2)
        self.assertLessEqual(len(says.strip().splitlines()), 2, says)
        for word in words:
            self.assertIn(word, says)

    def with_metadata(self, good, old, new):
        """The file with other metadata of the same length, checksums right."""
        at, length = struct.unpack_from("<QQ", good, 32)
        metadata = good[at:at + length]
        self.assertIn(old, metadata)
        metadata = metadata.replace(old, new)
        header = bytearray(good[:4096])
        struct.pack_into("<I", header, 48, crc32c(metadata))
        struct.pack_into("<I", header, 12, 0)
        struct.pack_into("<I", header, 12, crc32c(header))
        return bytes(header) + good[4096:at] + metadata

    def test_spoilt_files_are_refused_with_a_sentence(self):
        good = self.make()
        self.refused("cannot open", str(self.folder / "bad"))
        self.refused("bytes instead of", data=good[:-100])
        self.refused("not a saved VM", data=good[:100])
        self.refused("not a saved VM", data=b"\x7fELF" + bytes(1 << 16))
        self.refused("checksum", data=good[:-50] + bytes([good[-50] ^ 4]) + good[-49:])
        self.refused("checksum", data=good[:20] + bytes([good[20] ^ 4]) + good[21:])
        self.refused("board 'pc-9.9'", data=self.with_metadata(good, b"pc-1.0", b"pc-9.9"))
        self.refused("x86-64-v8", data=self.with_metadata(good, b"x86-64-v3", b"x86-64-v8"))
        self.refused("another 'x86-64-v2'",
                     data=self.with_metadata(good, b"x86-64-v3", b"x86-64-v2"))
        self.refused("bytes of RAM",
                     data=self.with_metadata(good, b": 134217728", b": 268435456"))
        self.refused("local-apic", data=self.with_metadata(good, b"local-apic-0", b"local-apic-7"))
        (self.folder / "bad").write_bytes(good)
        self.refused("--memory", "--restore", options=["--memory", "1G"])
        self.refused("--restore-clock", options=["--restore-clock", "never"])


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    _, rest = parser.parse_known_args(namespace=OPTIONS)
    OPTIONS.build = OPTIONS.build.resolve()
    unittest.main(argv=[sys.argv[0], *rest])


main()
