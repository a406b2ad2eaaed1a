#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""hostile_test.py --img DOPPEL_IMG [--damages N] [--seed N]: images that lie, given to the whole
executable. Whatever is in them, every command ends by itself, soon, within its memory, with an
exit code of its own and one sentence, and leaves no half-written target."""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

MIB = 1 << 20
MEMORY = 256 * MIB
SECONDS = 20
ENDINGS = {"info": {0, 1}, "check": {0, 1, 2, 3, 63}, "map": {0, 1}, "convert": {0, 1},
           "compare": {0, 1, 2, 3, 4}, "snapshot": {0, 1}, "resize": {0, 1}, "amend": {0, 1},
           "commit": {0, 1}}
CONTROL = r"[\0-\x09\x0b-\x1f\x7f]"
EXTREMES = (0, 1, 0x7f, 0x80, 0xff, 0xffff, 1 << 31, (1 << 32) - 1, 1 << 56, (1 << 63) - 1,
            1 << 63, (1 << 64) - 1, (1 << 64) - 512)

# How an image is made: words for `convert`, and what is done to it then.
FORMS = {
    "qcow2": ["-O", "qcow2", "-o", "cluster_size=512"],
    "qcow2-wide": ["-O", "qcow2", "-o", "cluster_size=16k,extended_l2=on,refcount_bits=64"],
    "qcow2-zlib": ["-O", "qcow2", "-c", "-o", "cluster_size=4k"],
    "qcow2-zstd": ["-O", "qcow2", "-c", "-o", "cluster_size=4k,compression_type=zstd"],
    "qcow2-v2": ["-O", "qcow2", "-o", "compat=0.10,cluster_size=1k"],
    "vdi": ["-O", "vdi"],
    "vhdx": ["-O", "vhdx"],
    "vpc": ["-O", "vpc"],
    "vpc-fixed": ["-O", "vpc", "-o", "subformat=fixed"],
    "vmdk": ["-O", "vmdk"],
    "vmdk-stream": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
    "vmdk-split": ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
    "qed": ["-O", "qed"],
    "parallels": ["-O", "parallels"],
}
FOREIGN = ("qed", "parallels")  # formats that only qemu-img writes


def limited(*words):
    """(exit code, stdout, stderr, resident bytes at most). None as the code: it does not end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen([IMG, *map(str, words)], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=err)
        ended = []
        alarm = threading.Timer(SECONDS, lambda: (ended.append(1), process.kill()))
        alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read(MIB).decode(errors="replace"))
        code = None if ended else process.returncode
        return code, *texts, usage.ru_maxrss * 1024


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-hostile-", dir="/dev/shm"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.raw = self.folder / "disk.raw"
        random.seed(5)
        self.raw.write_bytes(random.randbytes(40000) + bytes(100000) + b"text " * 10000)
        os.truncate(self.raw, 2 * MIB)

    def endure(self, *words, says=None):
        code, out, err, resident = limited(*words)
        said = f"{' '.join(map(str, words))}: exit code {code}, {err[-600:]}"
        self.assertIsNotNone(code, f"no end within {SECONDS} s: {said}")
        self.assertIn(code, ENDINGS[words[0]], said)
        self.assertLessEqual(resident, MEMORY, said)
        self.assertNotRegex(err, CONTROL, "what it says commands the terminal")
        if code == 1 and words[0] != "compare":
            self.assertEqual(err.count("\n"), 1, said)
            self.assertLess(len(err), 1500, said)
        if says is not None:
            self.assertNotEqual(code, 0, said)
            self.assertRegex(err + out, says)
        return code

    def endure_all(self, image, form):
        kind = form.split("-")[0]
        target = self.folder / "target.raw"
        for words in (["info", "--output=json"], ["map", "--output=json"], ["check"]):
            self.endure(*words, "-f", kind, image)
        # A disk that claims exabytes of holes would be copied for as long.
        info = limited("info", "--output=json", "-f", kind, image)
        size = json.loads(info[1])["virtual-size"] if info[0] == 0 else 0
        if size <= 64 * MIB:
            if self.endure("convert", "-f", kind, "-O", "raw", image, target) != 0:
                self.assertFalse(target.exists(), "a target that is not complete has its name")
            target.unlink(missing_ok=True)
        self.endure("compare", "-f", kind, "-F", "raw", image, self.raw)
        if form.split("-")[0] in FOREIGN:
            return
        self.endure("resize", "-f", kind, "--shrink", image, "1M")
        self.endure("check", "-f", kind, "-r", "all", image)
        if kind == "qcow2":
            self.endure("snapshot", "-c", "after", image)

    def write(self, form):
        image = self.folder / f"image.{form.split('-')[0]}"
        words = FORMS[form]
        program = "qemu-img" if form in FOREIGN else IMG
        for old in self.folder.glob("image*"):
            old.unlink()
        subprocess.run([program, "convert", "-q", "-f", "raw", *words, self.raw, image],
                       check=True, stdin=subprocess.DEVNULL)
        return image


class Damages(Case):
    def places(self, data, dice):
        """Mostly what is metadata: the first KiB, and what is not empty."""
        head = dice.randrange(min(len(data), 1024))
        used = [at for at in range(0, len(data), 512) if any(data[at:at + 512])]
        return head if dice.random() < 0.5 else dice.choice(used) + dice.randrange(512)

    def damage(self, data, dice):
        kind = dice.randrange(5)
        if kind == 0:
            del data[dice.randrange(len(data)):]
        for _ in range(dice.choice((1, 1, 2, 8)) if kind else 0):
            at = min(self.places(data, dice), len(data) - 8)
            if kind == 1:
                data[at] ^= 1 << dice.randrange(8)
            elif kind == 2:
                at &= ~7
                order = dice.choice("<>")
                data[at:at + 8] = struct.pack(order + "Q", dice.choice(EXTREMES))
            elif kind == 3:
                at &= ~3
                order = dice.choice("<>")
                data[at:at + 4] = struct.pack(order + "I", dice.choice(EXTREMES) & 0xffffffff)
            else:  # one part of the image in another's place
                other = min(self.places(data, dice), len(data) - 8)
                data[at & ~7:(at & ~7) + 8] = data[other & ~7:(other & ~7) + 8]

    def test_random_damages(self):
        for form in FORMS:
            whole = self.write(form).read_bytes()
            for number in range(DAMAGES):
                image = self.write(form) if "split" in form else self.folder / (
                    f"image.{form.split('-')[0]}")
                dice = random.Random(f"{SEED} {form} {number}")
                damaged = bytearray(whole)
                self.damage(damaged, dice)
                image.write_bytes(damaged)
                with self.subTest(form=form, seed=SEED, number=number):
                    self.endure_all(image, form)

    def test_every_length(self):
        """Cut at every boundary that the format could trip over."""
        for form in FORMS:
            whole = self.write(form).read_bytes()
            cuts = {0, 1, 3, 4, 8, 63, 64, 72, 104, 111, 511, 512, 513, 1023, 1024, 4096, 65535}
            for cut in sorted(c for c in cuts | {len(whole) - 1, len(whole) - 512}
                              if c < len(whole)):
                image = self.folder / f"image.{form.split('-')[0]}"
                image.write_bytes(whole[:cut])
                with self.subTest(form=form, cut=cut):
                    self.endure_all(image, form)


class Lies(Case):
    """What a damage by chance does not find."""

    def qcow2(self, *options):
        image = self.folder / "lie.qcow2"
        image.unlink(missing_ok=True)
        subprocess.run([IMG, "create", "-q", "-f", "qcow2", *options, image, "64M"], check=True)
        return image

    def patch(self, image, at, value, form=">Q"):
        with open(image, "r+b") as file:
            file.seek(at)
            file.write(struct.pack(form, value))

    def test_tables_larger_than_any_memory(self):
        for at, form, value in ((24, ">Q", 1 << 60), (24, ">Q", (1 << 63) - 512),
                                (36, ">I", (1 << 25) + 1), (36, ">I", 0xffffffff),
                                (56, ">I", 0xffffffff), (60, ">I", 0xffffffff),
                                (60, ">I", 65537), (100, ">I", 0xffffffff), (16, ">I", 1024)):
            with self.subTest(at=at, value=value):
                image = self.qcow2()
                self.patch(image, at, value, form)
                for words in (["info"], ["check"], ["map"], ["resize"], ["snapshot", "-l"]):
                    more = ["1M"] if words == ["resize"] else []
                    self.endure(*words, image, *more)

    def test_a_snapshot_table_that_lies(self):
        image = self.qcow2()
        subprocess.run([IMG, "snapshot", "-c", "one", image], check=True)
        at = struct.unpack(">Q", image.read_bytes()[64:72])[0]
        for field, form, value in ((0, ">Q", 24), (0, ">Q", 1 << 62), (8, ">I", 0xffffffff),
                                   (12, ">H", 0xffff), (14, ">H", 0xffff), (36, ">I", 0xffffffff)):
            with self.subTest(field=field, value=value):
                copy = self.folder / "copy.qcow2"
                shutil.copy(image, copy)
                self.patch(copy, at + field, value, form)
                for words in (["info"], ["check"], ["snapshot", "-l"], ["snapshot", "-a", "one"],
                              ["snapshot", "-d", "one"]):
                    self.endure(*words, copy)

    def test_a_snapshot_with_a_name_for_the_terminal(self):
        """Long, with line breaks and commands; the snapshot is sound, and lies."""
        for entries in (1, 0xffffffff):
            image = self.qcow2()
            table = struct.unpack_from(">Q", image.read_bytes(), 40)[0]
            name = b"\x1b[31m\n\0" * 5000
            entry = struct.pack(">QIHHIIQIIQQ", table, entries, 1, len(name), 0, 0, 0, 0, 16, 0,
                                64 * MIB) + b"1" + name
            os.truncate(image, MIB)
            self.patch(image, 60, 1, ">I")
            self.patch(image, 64, MIB)
            self.patch(image, MIB, entry.ljust(65536, b"\0"), "65536s")
            with self.subTest(entries=entries):
                for words in (["info"], ["info", "--output=json"], ["check"], ["snapshot", "-l"]):
                    code = self.endure(*words, image)
                    self.assertTrue(code == 0 or entries != 1 or words == ["check"], words)
                    _, out, err, _ = limited(*words, image)
                    self.assertTrue("31m" in out + err or words == ["check"], out + err)
                    self.assertNotRegex(out, CONTROL)

    def test_tables_in_each_others_place(self):
        """L1 on the header, on itself, on the refcounts: nothing is written over them."""
        image = self.qcow2()
        table, = struct.unpack_from(">Q", image.read_bytes(), 40)
        counts, = struct.unpack_from(">Q", image.read_bytes(), 48)
        for at, value in ((40, 0), (40, counts), (48, table), (48, 0), (40, 512), (40, 1 << 62),
                          (table, 1 << 63), (table, (1 << 63) | table), (table, (1 << 63) | counts),
                          (table, (1 << 63) | 1 << 55), (table, (1 << 63) | 512)):
            with self.subTest(at=at, value=value):
                copy = self.folder / "copy.qcow2"
                shutil.copy(image, copy)
                self.patch(copy, at, value)
                before = copy.read_bytes()
                for words in (["info"], ["map"], ["check"]):
                    self.endure(*words, copy)
                self.assertEqual(copy.read_bytes(), before, "looking changes nothing")
                self.endure("check", "-r", "all", copy)

    def test_chains_without_an_end(self):
        one, two = self.folder / "one.qcow2", self.folder / "two.qcow2"
        for image, base in ((one, two), (two, one)):
            subprocess.run([IMG, "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2",
                            image, "1M"], check=True)
        own = self.folder / "own.qcow2"
        subprocess.run([IMG, "create", "-q", "-u", "-f", "qcow2", "-b", own.name, "-F", "qcow2",
                        own, "1M"], check=True)
        for image in (one, own):
            for words in (["convert", "-O", "raw", image, self.folder / "out"],
                          ["commit", image], ["info", "--backing-chain", image]):
                self.endure(*words, says="loop|in use by process")
            self.assertFalse((self.folder / "out").exists())

    def test_backing_files_that_are_no_disks(self):
        for base in ("/dev/tty", self.folder, "/dev/null/x", "a" * 1023):
            with self.subTest(base=str(base)):
                image = self.folder / "top.qcow2"
                image.unlink(missing_ok=True)
                subprocess.run([IMG, "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw",
                                image, "1M"], check=True)
                self.endure("convert", "-O", "raw", image, self.folder / "out", says="top.qcow2")
                self.assertFalse((self.folder / "out").exists())

    def test_a_fifo_is_no_image(self):
        """Nobody writes to it: opening must not wait for that."""
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        for words in (["info"], ["check"], ["convert", "-O", "raw"]):
            more = [self.folder / "out"] if words[0] == "convert" else []
            self.endure(*words, fifo, *more, says="fifo")

    def test_descriptors_with_too_much(self):
        image = self.folder / "disk.vmdk"
        head = ("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
                'createType="twoGbMaxExtentFlat"\n')
        shutil.copy(self.raw, self.folder / "part.raw")
        for body in ('RW 8 FLAT "part.raw" 0\n' * 100000,
                     'RW 99999999999999999999 FLAT "part.raw" 0\n',
                     'RW 18446744073709551615 FLAT "part.raw" 0\n', 'RW -1 FLAT "part.raw" 0\n',
                     'RW 8 FLAT "part.raw" 18446744073709551615\n',
                     'RW 8 FLAT "' + "x" * 70000, 'RW 8 SPARSE "disk.vmdk"\n',
                     'RW 8 FLAT "disk.vmdk" 0\n', "RW 8 FLAT\n", "RW\n"):
            with self.subTest(body=body[:40]):
                image.write_text(head + body)
                for words in (["info"], ["check"], ["map"], ["convert", "-O", "raw"]):
                    more = [self.folder / "out"] if words[0] == "convert" else []
                    self.endure(*words, image, *more)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--img", required=True)
    parser.add_argument("--damages", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    arguments, rest = parser.parse_known_args()
    IMG, DAMAGES, SEED = arguments.img, arguments.damages, arguments.seed
    unittest.main(argv=["hostile_test.py", *rest], verbosity=1)
