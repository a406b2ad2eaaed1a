#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""trouble_test.py --img DOPPEL_IMG: what the host can do to a command that writes images.

A full file system, one that is read only, a folder that is not ours, Ctrl-C: one sentence that
names the file by the name the user knows, an exit code, nothing under the target's name and no
temporary file; an image that was being changed is sound and shows what it showed."""

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from commands import run
from kill_test import wait_for_locks

IMG = "doppel-img"
MIB = 1 << 20
NOBODY = 65534
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# New images of 24 MiB where the file system has 17: format, options.
WHOLE = (("raw", "preallocation=full"), ("qcow2", "preallocation=full"))
# Where data of 24 MiB goes.
TARGETS = (("raw", ""), ("qcow2", ""), ("qcow2", "cluster_size=4k"), ("vdi", ""),
           ("vdi", "static=on"), ("vpc", ""), ("vpc", "subformat=fixed"), ("vhdx", ""),
           ("vhdx", "subformat=fixed"), ("vmdk", ""), ("vmdk", "subformat=streamOptimized"),
           ("vmdk", "subformat=monolithicFlat"), ("vmdk", "subformat=twoGbMaxExtentSparse"),
           ("vmdk", "subformat=twoGbMaxExtentFlat"))
# New images without data where there is no room at all: and how many pages do not suffice either.
EMPTY = (("qcow2", "", 1), ("vdi", "", 1), ("vdi", "static=on", 1), ("vpc", "", 0),
         ("vpc", "subformat=fixed", 0), ("vhdx", "", 1), ("vhdx", "subformat=fixed", 1),
         ("vmdk", "", 1), ("vmdk", "subformat=monolithicFlat", 0),
         ("vmdk", "subformat=twoGbMaxExtentSparse", 1),
         ("vmdk", "subformat=twoGbMaxExtentFlat", 0))


class Trouble(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-trouble-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.small = self.folder / "small"
        self.small.mkdir()
        self.raw = self.folder / "source"
        self.raw.write_bytes(random.Random(7).randbytes(24 * MIB))

    def one_sentence(self, done, name, *texts):
        """On stderr, with the name of the file."""
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertIn(str(name), done.stderr)
        self.assertTrue(any(text in done.stderr for text in texts), done.stderr)
        self.assertNotIn(".part-", done.stderr)

    def mounted(self, options, before, words, after="true"):
        """The command, in a file system of its own on `small`; stdout: what is left of it."""
        script = (f"mount -t tmpfs -o size=17m none {self.small} || exit 90; ( {before} ) >&2 || "
                  f"exit 91; mount -o remount,{options} {self.small} || exit 92; "
                  f"{' '.join(str(w) for w in words)} >/dev/null; code=$?; ls -A {self.small}; "
                  f"( {after} ) >/dev/null || exit 93; exit $code")
        done = subprocess.run(["unshare", "-r", "-m", "sh", "-c", script], check=False,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, f"{words}\n{done.stdout}{done.stderr}")
        return done

    def make(self, kind, options, source=None):
        """convert or create, as words."""
        flags = ["-o", options] if options else []
        if source:
            return [IMG, "convert", "-q", "-f", "raw", "-O", kind, *flags, source]
        return [IMG, "create", "-q", "-f", kind, *flags]

    def test_a_full_file_system_keeps_nothing_of_a_new_image(self):
        target = self.small / "new"
        for kind, options in TARGETS:
            with self.subTest(convert=kind, options=options):
                done = self.mounted("rw", "true", [*self.make(kind, options, self.raw), target])
                self.one_sentence(done, target.with_suffix("") if kind == "vmdk" else target,
                                  "No space left on device")
                self.assertEqual(done.stdout, "")
        for kind, options in WHOLE:
            with self.subTest(create=kind, options=options):
                done = self.mounted("rw", "true", [*self.make(kind, options), target, "24M"])
                self.one_sentence(done, target, "No space left on device")
                self.assertEqual(done.stdout, "")
        with self.subTest("dd"):
            done = self.mounted("rw", "true", [IMG, "dd", "-O", "qcow2", "bs=1M",
                                               f"if={self.raw}", f"of={target}"])
            self.one_sentence(done, target, "No space left on device")
            self.assertEqual(done.stdout, "")

    def test_a_file_system_without_a_page_keeps_nothing_of_an_empty_image(self):
        target, filler = self.small / "new", self.small / "filler"
        for kind, options, pages in EMPTY:
            for left in range(pages + 1):
                fill = (f"dd if=/dev/zero of={filler} bs=4k 2>/dev/null; "
                        f"truncate -s -{left * 4096} {filler}")
                with self.subTest(create=kind, options=options, pages=left):
                    done = self.mounted("rw", fill, [*self.make(kind, options), target, "24M"])
                    self.one_sentence(done, target, "No space left on device")
                    self.assertEqual(done.stdout, "filler\n")

    def test_an_old_target_stays_when_the_new_one_finds_no_room(self):
        target = self.small / "new"
        done = self.mounted("rw", f"echo old > {target}",
                            [*self.make("qcow2", "", self.raw), target], f"grep -q old {target}")
        self.assertEqual(done.stdout, "new\n")

    def in_place(self):
        """Images on `small`, and commands that change them: name → (words, which image is named).

        The top one holds 10 MiB, the base 1, so that neither commit nor rebase finds room."""
        base, top, other = (self.small / name for name in ("base", "top", "other"))
        prepare = (f"qemu-img create -q -f qcow2 -o cluster_size=4k {base} 24M && "
                   f"qemu-img create -q -f qcow2 {other} 24M && "
                   f"qemu-io -f qcow2 -c 'write -q -P 1 0 1M' {base} >/dev/null && "
                   f"qemu-img create -q -f qcow2 -b {base} -F qcow2 {top} && "
                   f"qemu-io -f qcow2 -c 'write -q -P 3 2M 10M' {top} >/dev/null && "
                   f"dd if=/dev/zero of={self.small}/filler bs=4k 2>/dev/null; "
                   f"test -s {self.small}/filler")
        sound = (f"rm {self.small}/filler; qemu-img check -q {base} && qemu-img check -q {top} && "
                 f"qemu-io -r -f qcow2 -c 'read -q -P 1 0 1M' -c 'read -q -P 3 2M 10M' {top}")
        return prepare, sound, {
            "commit": ([IMG, "commit", "-q", "-f", "qcow2", top], base),
            "rebase": ([IMG, "rebase", "-q", "-f", "qcow2", "-b", other, "-F", "qcow2", top], top),
            "snapshot": ([IMG, "snapshot", "-c", "s", top], top),
            "resize": ([IMG, "resize", "-q", "-f", "qcow2", top, "64T"], top),
            "bitmap": ([IMG, "bitmap", "--add", "-g", "512", top, "b"], top),
        }

    def test_a_full_file_system_leaves_an_image_sound(self):
        prepare, sound, commands = self.in_place()
        for name, (words, image) in commands.items():
            with self.subTest(name):
                done = self.mounted("rw", prepare, words, sound.replace("check -q", "check -q -U"))
                self.one_sentence(done, image, "No space left on device")

    def test_a_file_system_that_is_read_only(self):
        prepare, sound, commands = self.in_place()
        sound = sound.removeprefix(f"rm {self.small}/filler;")
        for name, (words, image) in commands.items():
            with self.subTest(name):
                done = self.mounted("ro", prepare, words, sound)
                self.one_sentence(done, image, "Read-only file system", "read-only")
        target = self.small / "new"
        for words in ([*self.make("qcow2", "", self.raw), target],
                      [*self.make("qcow2", ""), target, "1M"],
                      [IMG, "dd", "-O", "raw", f"if={self.raw}", f"of={target}"]):
            with self.subTest(words[1]):
                done = self.mounted("ro", "true", words)
                self.one_sentence(done, target, "Read-only file system")
                self.assertEqual(done.stdout, "")

    def test_what_is_not_permitted(self):
        """Root may do anything: then somebody else tries."""
        more = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        img = self.folder / "doppel-img"
        shutil.copy(IMG, img)
        image = self.small / "image"
        base = self.small / "base"
        run("qemu-img", "create", "-q", "-f", "qcow2", base, "1M")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
        image.chmod(0o444)
        base.chmod(0o444)
        self.small.chmod(0o555)
        self.addCleanup(self.small.chmod, 0o755)
        target = self.small / "new"
        for words, name in (
                ([*self.make("qcow2", "", self.raw), target], target),
                ([*self.make("vmdk", "subformat=monolithicFlat", self.raw), target], target),
                ([*self.make("qcow2", ""), target, "1M"], target),
                ([IMG, "dd", "-O", "raw", f"if={self.raw}", f"of={target}"], target),
                ([IMG, "resize", "-q", image, "2M"], image),
                ([IMG, "snapshot", "-c", "s", image], image),
                ([IMG, "bitmap", "--add", image, "b"], image),
                ([IMG, "commit", "-q", image], base),
                ([IMG, "rebase", "-q", "-u", "-b", "", image], image)):
            with self.subTest(words[1]):
                self.one_sentence(run(img, *words[1:], code=1, **more), name, "Permission denied")
        self.assertEqual(sorted(file.name for file in self.small.iterdir()), ["base", "image"])

    def interrupt(self, words, sent, most=0.06):
        """Ctrl-C at a moment until `most`; whether the command was faster."""
        with subprocess.Popen([str(w) for w in words], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True) as process:
            time.sleep(random.uniform(0, most))
            process.send_signal(sent)
            text = process.communicate()[1]
        wait_for_locks(self.folder)
        if process.returncode == 0:
            return True
        if process.returncode != -sent:  # as it is before main() has begun
            self.assertEqual(process.returncode, 128 + sent, text)
            self.assertIn(f"doppel-img {words[1]}: interrupted", text)
        return False

    def test_an_interrupted_command_leaves_nothing(self):
        large = self.folder / "large"
        with large.open("wb") as file:
            for _ in range(12):
                file.write(self.raw.read_bytes())
        target = self.small / "new"
        commands = [[*self.make(kind, options, large), target] for kind, options in
                    (("qcow2", ""), ("raw", ""), ("vmdk", "subformat=streamOptimized"),
                     ("vmdk", "subformat=twoGbMaxExtentSparse"))]
        commands.append([*self.make("raw", "preallocation=full"), target, "400M"])
        commands.append([IMG, "dd", "-O", "qcow2", "bs=64k", f"if={large}", f"of={target}"])
        ended = 0
        for number, words in enumerate(commands * 2):
            with self.subTest(words[1:5]):
                fast = self.interrupt(words, SIGNALS[number % 3])
                ended += fast
                left = list(self.small.iterdir())
                self.assertEqual(bool(left), fast, left)
                for file in left:
                    self.assertNotIn(".part-", file.name)
                    file.unlink()
        self.assertLess(ended, len(commands), "the signals came too late to test anything")

    def chain(self):
        """A base, a top over it, and one whose refcounts are to be counted anew; sound, slowly."""
        base, top, dirty = (self.folder / name for name in ("base", "top", "dirty"))
        run("qemu-img", "create", "-q", "-f", "qcow2", base, "64M")
        run("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 64M", base)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", base, "-F",
            "qcow2", top)
        run("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 8M 40M", top)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k,lazy_refcounts=on",
            dirty, "64M")
        run("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 40M", "-c", "flush", "-c", "abort",
            dirty, code=None)
        return base, top, dirty

    def test_an_interrupted_change_leaves_an_image_sound(self):
        base, top, dirty = self.chain()
        kept = {image: image.read_bytes() for image in (base, top, dirty)}
        shows = ("qemu-io", "-r", "-f", "qcow2", "-c")
        ended, tries = 0, 0
        for words, changed, most in (
                (["commit", "-q", top], (base, top), 0.06),
                (["rebase", "-q", "-b", "", top], (top,), 0.06),
                (["snapshot", "-c", "s", top], (top,), 0.03),
                (["resize", "-q", top, "+200M"], (top,), 0.03),
                (["bitmap", "--add", "-g", "512", top, "b"], (top,), 0.01),
                (["amend", "-o", "compat=0.10", dirty], (dirty,), 0.03),
                (["check", "-q", "-r", "all", dirty], (dirty,), 0.03),
                (["check", "-q", top], (), 0.02)):
            for sent in SIGNALS:
                with self.subTest(words[0]):
                    ended += self.interrupt([IMG, *words], sent, most)
                    tries += 1
                    for image in changed:
                        run(IMG, "check", "-q", "-r", "all" if image == dirty else "leaks", image)
                        run("qemu-img", "check", "-q", image)
                    if dirty in changed:
                        run(*shows, "read -q -P 5 0 40M", dirty)
                    else:
                        run(*shows, "read -q -P 3 8M 40M", "-c", "read -q -P 1 0 8M", "-c",
                            "read -q -P 1 48M 16M", top)
                    for image in changed:
                        image.write_bytes(kept[image])
        self.assertEqual(top.read_bytes(), kept[top], "looking changes nothing")
        self.assertLess(ended, tries, "the signals came too late to test anything")

    def test_an_interrupted_change_of_keys_leaves_the_old_one(self):
        image = self.folder / "luks"
        first, second = (["--object", f"secret,id={n},data={n}"] for n in ("first", "second"))
        name = ["--image-opts", f"driver=luks,key-secret=first,file.filename={image}"]
        run(IMG, "create", "-q", *first, "-f", "luks", "-o", "key-secret=first,iter-time=10", image,
            "1M")
        content = image.read_bytes()
        for sent in SIGNALS * 2:
            self.interrupt([IMG, "amend", *first, *second, "-o",
                            "state=active,new-secret=second,iter-time=10", *name], sent)
            run(IMG, "bench", "-q", "-c", "1", *first, *name)
            run("cryptsetup", "open", "--test-passphrase", "--type", "luks1", image,
                input="first", code=0)
            image.write_bytes(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", default=IMG)
    arguments, rest = parser.parse_known_args()
    IMG = str(Path(arguments.img).resolve())
    unittest.main(argv=[__file__, *rest])
