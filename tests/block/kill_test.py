#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kill_test.py --img DOPPEL_IMG [--rounds N]: commands that change images are killed at any moment.

Inputs stay as they were; a target is absent, or has its temporary name; an image that was being
changed has no corruption (lost space is allowed; where the dirty bit says that refcounts are to be
counted anew, after whoever opens it has done so) and shows what it showed before or, where the
command changes that, what it shall show. qemu-img is the judge."""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from commands import run

IMG = "doppel-img"
ROUNDS = 4
MIB = 1 << 20
SIZE = 24 * MIB


def wait_for_locks(folder):
    """The kernel lets go of a killed process's files (io_uring) a moment after it was reaped:
    until then it may write to them, and its locks stand."""
    deadline = time.monotonic() + 30
    while True:
        inodes = {f":{file.stat().st_ino} " for file in folder.iterdir()}
        locks = Path("/proc/locks").read_text()
        if not any(inode in locks for inode in inodes):
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"a killed process still locks files in {folder}")
        time.sleep(0.01)


def digest(path, form):
    """Of what the image shows, as qemu-img reads it."""
    raw = path.with_suffix(".shown")
    run("qemu-img", "convert", "-f", form, "-O", "raw", path, raw)
    value = hashlib.sha256(raw.read_bytes()).hexdigest()
    raw.unlink()
    return value


class Kills(unittest.TestCase):
    def setUp(self):
        self.random = random.Random(5)
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-kill-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.base = self.folder / "base"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", self.base, SIZE)
        self.scribble(self.base, 1)
        self.other = self.folder / "other"
        shutil.copy(self.base, self.other)
        self.scribble(self.other, 2)
        self.top = self.folder / "top"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", self.base,
            "-F", "qcow2", self.top)
        self.scribble(self.top, 3)

    def scribble(self, image, byte):
        """Writes all over it, in pieces that begin and end anywhere."""
        words = []
        for _ in range(150):
            at = self.random.randrange(0, SIZE - 100000)
            words += ["-c", f"write -q -P {byte} {at} {self.random.randrange(1, 100000)}"]
        run("qemu-io", "-f", "qcow2", *words, image)

    def interrupted(self, words, prepare):
        """After each kill, and once after a run to the end, which yields whether it was one."""
        prepare()
        start = time.monotonic()
        run(*words)
        lasts = time.monotonic() - start
        for number in range(ROUNDS + 1):
            prepare()
            with subprocess.Popen([str(w) for w in words], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as process:
                if number < ROUNDS:
                    time.sleep(self.random.uniform(0, lasts))
                    process.send_signal(signal.SIGKILL)
            wait_for_locks(self.folder)
            yield process.returncode == 0

    def sound(self, image):
        facts = json.loads(run("qemu-img", "info", "-U", "--output=json", image).stdout)
        if facts.get("dirty-flag"):  # whoever opens it to write repairs it: QEMU, or we
            run(*self.random.choice((["qemu-io", "-f", "qcow2", "-c", "flush", image],
                                     [IMG, "bitmap", "--add", image, "b"])))
        run("qemu-img", "check", "-q", "-f", "qcow2", image, code=(0, 3))
        run(IMG, "check", "-q", "-f", "qcow2", image, code=(0, 3))

    def test_convert(self):
        before = {image: image.read_bytes() for image in (self.base, self.top)}
        shown = digest(self.top, "qcow2")
        target = self.folder / "out"
        for form in ("qcow2", "raw"):
            def clean():
                for file in self.folder.glob("out*"):
                    file.unlink()
            for done in self.interrupted([IMG, "convert", "-O", form, self.top, target], clean):
                for image, content in before.items():
                    self.assertEqual(image.read_bytes(), content)
                self.assertTrue(target.exists() or not done)
                if target.exists():
                    self.assertEqual(digest(target, form), shown)
                for file in self.folder.glob("out*"):
                    self.assertTrue(file == target or file.name.startswith("out.part-"), file)

    def test_convert_to_several_files(self):
        """No part has its name before all are complete."""
        shown = digest(self.top, "qcow2")
        target = self.folder / "out.vmdk"
        for form in ("twoGbMaxExtentSparse", "monolithicFlat", "streamOptimized"):
            def clean():
                for file in self.folder.glob("out*"):
                    file.unlink()
            words = [IMG, "convert", "-O", "vmdk", "-o", f"subformat={form}", self.top, target]
            for done in self.interrupted(words, clean):
                self.assertTrue(target.exists() or not done)
                if target.exists():
                    self.assertEqual(digest(target, "vmdk"), shown)

    def keep(self, *images):
        """A function that brings them back."""
        kept = [(image, image.read_bytes()) for image in images]

        def restore():
            for image, content in kept:
                image.write_bytes(content)
        return restore

    def test_commit(self):
        shown = digest(self.top, "qcow2")
        restore = self.keep(self.base, self.top)
        for done in self.interrupted([IMG, "commit", "-f", "qcow2", self.top], restore):
            for image in (self.base, self.top):
                self.sound(image)
            self.assertEqual(digest(self.top, "qcow2"), shown)
            if done:
                self.assertEqual(digest(self.base, "qcow2"), shown)

    def test_rebase(self):
        shown = digest(self.top, "qcow2")
        restore = self.keep(self.top)
        words = [IMG, "rebase", "-f", "qcow2", "-b", self.other, "-F", "qcow2", self.top]
        for _ in self.interrupted(words, restore):
            self.sound(self.top)
            self.assertEqual(digest(self.top, "qcow2"), shown)

    def test_snapshots(self):
        run("qemu-img", "snapshot", "-c", "old", self.base)
        old = digest(self.base, "qcow2")
        self.scribble(self.base, 4)
        new = digest(self.base, "qcow2")
        restore = self.keep(self.base)
        for flag, name, allowed in (("-c", "fresh", {new}), ("-d", "old", {new}),
                                    ("-a", "old", {new, old})):
            words = [IMG, "snapshot", flag, name, self.base]
            for done in self.interrupted(words, restore):
                self.sound(self.base)
                shows = digest(self.base, "qcow2")
                self.assertIn(shows, allowed)
                if done and flag == "-a":
                    self.assertEqual(shows, old)

    def test_vmdk(self):
        """Written, resized, committed: what was there before is there, or what shall be."""
        base, top = self.folder / "base.vmdk", self.folder / "top.vmdk"
        run("qemu-img", "convert", "-f", "qcow2", "-O", "vmdk", self.base, base)
        run("qemu-img", "create", "-q", "-f", "vmdk", "-b", base.name, "-F", "vmdk", top)
        run("qemu-io", "-f", "vmdk", *(word for at in range(0, SIZE, MIB)
                                       for word in ("-c", f"write -q -P 8 {at} 90k")), top)
        shown = digest(top, "vmdk")
        restore = self.keep(base, top)
        for words in (["commit", "-f", "vmdk", top], ["resize", "-f", "vmdk", top, "+200M"],
                      ["rebase", "-f", "vmdk", "-b", "", top]):
            for done in self.interrupted([IMG, *words], restore):
                for image in (base, top):
                    run(IMG, "check", "-q", "-f", "vmdk", image, code=(0, 3))
                    run("qemu-img", "check", "-q", "-f", "vmdk", image)
                if words[0] == "commit":  # the CID says that the base was changed
                    run(IMG, "rebase", "-u", "-f", "vmdk", "-b", base.name, "-F", "vmdk", top)
                raw = self.folder / "shown"
                run(IMG, "convert", "-f", "vmdk", "-O", "raw", top, raw)
                content = raw.read_bytes()
                self.assertEqual(hashlib.sha256(content[:SIZE]).hexdigest(), shown)
                self.assertFalse(any(content[SIZE:]))
                if done and words[0] == "resize":
                    self.assertEqual(len(content), SIZE + 200 * MIB)

    def test_resize(self):
        restore = self.keep(self.base)
        shown = digest(self.base, "qcow2")
        bigger = hashlib.sha256()
        raw = self.folder / "shown"
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.base, raw)
        bigger.update(raw.read_bytes() + bytes(200 * MIB))
        for _ in self.interrupted([IMG, "resize", "-f", "qcow2", self.base, "+200M"], restore):
            self.sound(self.base)
            self.assertIn(digest(self.base, "qcow2"), {shown, bigger.hexdigest()})
        smaller = hashlib.sha256(raw.read_bytes()[:4 * MIB]).hexdigest()
        words = [IMG, "resize", "-f", "qcow2", "--shrink", self.base, "4M"]
        for done in self.interrupted(words, restore):
            self.sound(self.base)
            run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.base, raw)
            content = raw.read_bytes()
            self.assertEqual(hashlib.sha256(content[:4 * MIB]).hexdigest(), smaller)
            self.assertEqual(len(content) == 4 * MIB, done or len(content) != SIZE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", default=IMG)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments, rest = parser.parse_known_args()
    IMG, ROUNDS = arguments.img, arguments.rounds
    unittest.main(argv=[__file__, *rest])
