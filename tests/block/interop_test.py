#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""interop_test.py --img DOPPEL_IMG: images between doppel-img and qemu-img, both ways.

Every form of image is written by one and read by the other. Of what we write qemu-img's compare and
check are the judges; of what we read it is the raw image that everything was made from."""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from commands import run

IMG = ""
KIB = 1024
MIB = 1024 * KIB

# format, options, what else: a form of image that both programs can write.
QCOW2_FORMS = {
    "plain": "",
    "v2": "compat=0.10",
    "small": "cluster_size=512",
    "large": "cluster_size=2M",
    "subclusters": "extended_l2=on,cluster_size=16k",
    "one-bit": "refcount_bits=1",
    "wide": "refcount_bits=64",
    "lazy": "lazy_refcounts=on",
    "metadata": "preallocation=metadata",
    "falloc": "preallocation=falloc",
}
COMPRESSED_FORMS = {
    "zlib": "",
    "zstd": "compression_type=zstd",
    "zlib-small": "cluster_size=4k",
    "zlib-large": "cluster_size=2M",
    "zstd-one-bit": "compression_type=zstd,refcount_bits=1",
}


def ours(*words, code=0):
    return run(IMG, *words, code=code).stdout


def theirs(*words, code=0):
    return run("qemu-img", *words, code=code).stdout


def make_disk(path, size, seed):
    """Data that compresses and data that does not, long and short holes."""
    rng = random.Random(seed)
    with open(path, "wb") as disk:
        disk.truncate(size)
        at = 0
        while at < size:
            length = min(rng.choice([512, 4 * KIB, 64 * KIB, 300 * KIB]), size - at)
            kind = rng.randrange(4)
            disk.seek(at)
            if kind == 0:
                disk.write(rng.randbytes(length))
            elif kind == 1:
                disk.write((b"the quick brown fox %d " % at) * (length // 16 + 1))
            elif kind == 2:
                disk.write(bytes(min(length, 64 * KIB)))
            at += length
        disk.truncate(size)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-interop-"))
        self.raw = self.folder / "disk.raw"
        # Odd: no multiple of any cluster but the sector.
        make_disk(self.raw, 7 * MIB + 512, 1)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def judge(self, image, raw=None):
        theirs("check", "-q", image)
        theirs("compare", "-q", "-f", "raw", "-F", "qcow2", raw or self.raw, image)
        ours("check", "-q", image)
        ours("compare", "-q", "-f", "raw", "-F", "qcow2", raw or self.raw, image)

    def same_map(self, image):
        """Both maps, holes and data told apart, byte for byte."""
        def extents(text):
            merged = []
            for item in json.loads(text):
                key = (item["depth"], item["zero"], item["data"])
                if merged and merged[-1][0] == key:
                    merged[-1][2] += item["length"]
                else:
                    merged.append([key, item["start"], item["length"]])
            return merged
        self.assertEqual(extents(ours("map", "--output=json", image)),
                         extents(theirs("map", "--output=json", image)))


class Qcow2(Case):
    def test_a_rate_is_kept(self):
        source = self.folder / "rate.raw"
        source.write_bytes(os.urandom(4 * MIB))
        start = time.monotonic()
        ours("convert", "-r", "4M", "-O", "qcow2", source, self.folder / "rate.qcow2")
        self.assertGreaterEqual(time.monotonic() - start, 0.7)  # the last MiB waits for nobody
        theirs("compare", source, self.folder / "rate.qcow2")
        ours("convert", "-r", "0", "-O", "raw", source, self.folder / "none", code=1)

    def test_every_form_both_ways(self):
        for name, options in QCOW2_FORMS.items():
            flags = ["-o", options] if options else []
            with self.subTest(form=name):
                mine, other = self.folder / "mine.qcow2", self.folder / "other.qcow2"
                ours("convert", "-q", "-f", "raw", "-O", "qcow2", *flags, self.raw, mine)
                self.judge(mine)
                theirs("convert", "-f", "raw", "-O", "qcow2", *flags, self.raw, other)
                self.judge(other)
                if name != "metadata":  # there qemu-img also looks for holes in the file below
                    self.same_map(mine)
                    self.same_map(other)
                back = self.folder / "back.raw"
                ours("convert", "-q", "-O", "raw", other, back)
                self.assertEqual(self.raw.read_bytes(), back.read_bytes())

    def test_compressed_forms_both_ways(self):
        for name, options in COMPRESSED_FORMS.items():
            flags = ["-o", options] if options else []
            with self.subTest(form=name):
                mine, other = self.folder / "mine.qcow2", self.folder / "other.qcow2"
                ours("convert", "-q", "-c", "-f", "raw", "-O", "qcow2", *flags, self.raw, mine)
                self.judge(mine)
                theirs("convert", "-c", "-f", "raw", "-O", "qcow2", *flags, self.raw, other)
                self.judge(other)
                if name in ("zlib", "zlib-small"):  # else whole clusters decide
                    best = self.folder / "best.qcow2"
                    text = self.folder / "text.raw"
                    text.write_bytes(b"".join(b"line %d of a long text\n" % (i * i)
                                              for i in range(200000)))
                    os.truncate(text, 4 * MIB)
                    ours("convert", "-q", "-c", "--best", "-f", "raw", "-O", "qcow2", *flags,
                         text, best)
                    theirs("convert", "-c", "-f", "raw", "-O", "qcow2", *flags, text, other)
                    self.judge(best, text)
                    self.assertLess(best.stat().st_size, other.stat().st_size)

    def test_created_images_are_clean_and_alike(self):
        for name, options in QCOW2_FORMS.items():
            with self.subTest(form=name):
                image, other = self.folder / "new.qcow2", self.folder / "other.qcow2"
                flags = ["-o", options] if options else []
                ours("create", "-q", "-f", "qcow2", *flags, image, "100M")
                theirs("create", "-q", "-f", "qcow2", *flags, other, "100M")
                theirs("check", "-q", image)
                mine = json.loads(theirs("info", "--output=json", image))
                real = json.loads(theirs("info", "--output=json", other))
                for key in ("virtual-size", "cluster-size", "format", "format-specific"):
                    self.assertEqual(mine[key], real[key])

    def test_external_data_file(self):
        image = self.folder / "ext.qcow2"
        options = f"data_file={self.folder}/ext.data,data_file_raw=on"
        ours("create", "-q", "-f", "qcow2", "-o", options, image, self.raw.stat().st_size)
        ours("convert", "-q", "-n", "-f", "raw", "-O", "qcow2", self.raw, image)
        theirs("compare", "-q", "-f", "raw", "-F", "raw", self.raw, self.folder / "ext.data")
        self.judge(image)

    def test_chain_of_three(self):
        base, middle, top = (self.folder / f"{n}.qcow2" for n in ("base", "middle", "top"))
        theirs("convert", "-f", "raw", "-O", "qcow2", self.raw, base)
        ours("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", middle)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 17 1M 200k", middle)
        theirs("create", "-q", "-f", "qcow2", "-b", middle.name, "-F", "qcow2", top)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 18 1100k 9k", "-c", "write -z 3M 70k", top)
        flat, other = self.folder / "flat.raw", self.folder / "other.raw"
        ours("convert", "-q", "-O", "raw", top, flat)
        theirs("convert", "-O", "raw", top, other)
        self.assertEqual(flat.read_bytes(), other.read_bytes())
        self.same_map(top)
        # To the middle, then everything to the base.
        ours("commit", "-q", top)
        self.judge(middle, other)
        self.judge(top, other)
        ours("rebase", "-q", "-b", base.name, "-F", "qcow2", top)
        ours("commit", "-q", "-b", base.name, middle)
        self.judge(base, other)
        ours("rebase", "-q", "-b", "", top)
        self.judge(top, other)
        self.assertNotIn("backing-filename", json.loads(theirs("info", "--output=json", top)))

    def test_snapshots_of_both(self):
        image = self.folder / "snap.qcow2"
        theirs("convert", "-f", "raw", "-O", "qcow2", self.raw, image)
        ours("snapshot", "-c", "one", image)
        theirs("check", "-q", image)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 3M", image)
        theirs("snapshot", "-c", "two", image)
        ours("check", "-q", image)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 6 2M 3M", image)
        listed = json.loads(ours("info", "--output=json", image))["snapshots"]
        real = json.loads(theirs("info", "--output=json", image))["snapshots"]
        self.assertEqual([s["name"] for s in listed], ["one", "two"])
        keys = ("id", "name", "date-sec", "icount")
        self.assertEqual([[s.get(key) for key in keys] for s in listed],
                         [[s.get(key) for key in keys] for s in real])
        one = self.folder / "one.raw"
        ours("convert", "-q", "-l", "one", "-O", "raw", image, one)
        self.assertEqual(one.read_bytes(), self.raw.read_bytes())
        ours("snapshot", "-a", "one", image)
        self.judge(image)
        ours("snapshot", "-d", "one", image)
        theirs("snapshot", "-a", "two", image)
        ours("snapshot", "-d", "two", image)
        theirs("check", "-q", image)
        ours("check", "-q", image)

    def test_bitmaps_of_both(self):
        image = self.folder / "bitmap.qcow2"
        ours("create", "-q", "-f", "qcow2", image, "64M")
        ours("bitmap", "--add", "-g", "32k", image, "a")
        theirs("bitmap", "--add", image, "b")
        ours("bitmap", "--disable", image, "b")
        theirs("check", "-q", image)
        run("qemu-io", "-f", "qcow2", "-c", "write 1M 1M", image)
        ours("bitmap", "--merge", "a", image, "b")
        ours("check", "-q", image)
        facts = json.loads(theirs("info", "--output=json", image))
        bitmaps = facts["format-specific"]["data"]["bitmaps"]
        self.assertEqual(sorted((b["name"], b["granularity"], tuple(b["flags"])) for b in bitmaps),
                         [("a", 32768, ("auto",)), ("b", 65536, ())])
        self.assertEqual(facts["format-specific"]["data"]["bitmaps"],
                         json.loads(ours("info", "--output=json", image))
                         ["format-specific"]["data"]["bitmaps"])
        for target in ((), ("-o", "cluster_size=512"), ("-o", "compat=0.10")):
            words = ["measure", "--output=json", "-O", "qcow2", *target, image]
            self.assertEqual(json.loads(ours(*words)).get("bitmaps"),
                             json.loads(theirs(*words)).get("bitmaps"))
        ours("bitmap", "--remove", image, "a")
        theirs("bitmap", "--remove", image, "b")
        ours("check", "-q", image)

    def test_resize_and_amend(self):
        image = self.folder / "size.qcow2"
        ours("convert", "-q", "-f", "raw", "-O", "qcow2", self.raw, image)
        ours("resize", "-q", image, "+50G")
        theirs("check", "-q", image)
        ours("resize", "-q", image, "1M", code=1)
        ours("resize", "-q", "--shrink", image, self.raw.stat().st_size)
        self.judge(image)
        ours("amend", "-o", "compat=0.10", image)
        self.judge(image)
        ours("amend", "-o", "compat=1.1,lazy_refcounts=on", image)
        self.judge(image)

    def test_what_version_2_cannot_express_is_named_with_the_way_out(self):
        image = self.folder / "old.qcow2"
        for option, makes, names, way_out in (
                ("", ("snapshot", "-c", "one"), "snapshots", ("snapshot", "-d", "one", image)),
                ("", ("bitmap", "--add", image, "b"), "bitmaps",
                 ("bitmap", "--remove", image, "b")),
                ("refcount_bits=8", ("snapshot", "-c", "one"), "snapshots", None),
                ("refcount_bits=8", (), "16 bits", ("amend", "-o", "refcount_bits=16", image)),
                ("compression_type=zstd", (), "zstd", None)):
            with self.subTest(names=names):
                options = ("-o", option) if option else ()
                ours("create", "-q", "-f", "qcow2", *options, image, "8M")
                if makes:
                    ours(*makes, *(() if image in makes else (image,)))
                before = image.read_bytes()
                width = ",refcount_bits=16" if makes and option else ""
                refused = run(IMG, "amend", "-o", f"compat=0.10{width}", image, code=1)
                self.assertIn(names, refused.stderr)
                self.assertEqual(image.read_bytes(), before)
                if way_out:
                    ours(*way_out)
                    ours("amend", "-o", "compat=0.10", image)
                    theirs("check", "-q", image)

    def test_a_refused_command_leaves_bitmaps_that_can_be_used(self):
        image, small = self.folder / "tracked.qcow2", self.folder / "small.raw"
        ours("create", "-q", "-f", "qcow2", image, "8M")
        ours("bitmap", "--add", image, "b")
        small.write_bytes(b"1" * (9 * MIB))
        for words in (("amend", "-o", "compat=0.10", image), ("resize", image, "4M"),
                      ("resize", image, "99E"), ("snapshot", "-d", "none", image),
                      ("snapshot", "-a", "none", image), ("bitmap", "--add", image, "b"),
                      ("rebase", "-b", self.folder / "none", "-F", "raw", image),
                      ("convert", "-n", "-f", "raw", "-O", "qcow2", small, image),
                      ("serve", "-l", "none", "-k", self.folder / "socket", image),
                      ("bench", "-w", "-s", "16M", image)):
            with self.subTest(command=words[0]):
                run(IMG, *words, code=1)
                facts = json.loads(theirs("info", "--output=json", image))
                bitmap, = facts["format-specific"]["data"]["bitmaps"]
                self.assertEqual(bitmap["flags"], ["auto"])

    def test_refcounts_that_are_data_too(self):
        image = self.folder / "shared.qcow2"
        theirs("create", "-q", "-f", "qcow2", image, "1M")
        run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 512k", image)
        before = bytearray(image.read_bytes())
        table, first = (struct.unpack_from(">Q", before, at)[0] for at in (48, 40))
        block = struct.unpack_from(">Q", before, table)[0]
        l2 = struct.unpack_from(">Q", before, first)[0] & 0xfffffffffffe00
        for name, at in (("table", table), ("block", block)):
            with self.subTest(name):
                lies = bytearray(before)
                struct.pack_into(">Q", lies, l2 + 8, at)
                image.write_bytes(lies)
                ours("check", "-q", "-r", "all", image)
                ours("check", "-q", image)
                theirs("check", "-q", image)
                shown = lies[at:at + 65536]
                theirs("convert", "-q", "-f", "qcow2", "-O", "raw", image, self.folder / "out")
                self.assertEqual((self.folder / "out").read_bytes()[65536:131072], shown)

    def test_amended_refcounts(self):
        image = self.folder / "counted.qcow2"
        for cluster in ("512", "64k"):
            theirs("convert", "-q", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster}",
                   self.raw, image)
            for bits in (64, 1, 8, 16, 2):
                with self.subTest(cluster=cluster, bits=bits):
                    ours("amend", "-o", f"refcount_bits={bits}", image)
                    facts = json.loads(theirs("info", "--output=json", image))
                    self.assertEqual(facts["format-specific"]["data"]["refcount-bits"], bits)
                    self.judge(image)
                    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 4k 200k", image)
                    theirs("check", "-q", image)
                    theirs("convert", "-q", "-f", "qcow2", "-O", "raw", image, self.raw)
        for _ in range(2):
            ours("snapshot", "-c", "one", image)
        before = image.read_bytes()
        ours("amend", "-o", "refcount_bits=1", image, code=1)
        ours("amend", "-o", "compat=0.10,refcount_bits=8", image, code=1)
        ours("amend", "-o", "refcount_bits=7", image, code=1)
        self.assertEqual(image.read_bytes(), before)
        ours("amend", "-o", "refcount_bits=4", image)
        self.judge(image)

    def test_zeroes_of_a_small_source_without_holes(self):
        whole, mine, other = (self.folder / name for name in ("whole", "mine", "other"))
        rng = random.Random(5)
        whole.write_bytes(b"".join(rng.randbytes(3 * MIB) + bytes(2 * MIB) for _ in range(3)))
        ours("convert", "-q", "-f", "raw", "-O", "qcow2", whole, mine)
        theirs("convert", "-q", "-f", "raw", "-O", "qcow2", whole, other)
        allocated = [json.loads(theirs("check", "--output=json", image))["allocated-clusters"]
                     for image in (mine, other)]
        self.assertEqual(allocated[0], allocated[1])

    def test_measure_agrees(self):
        for options in ("", "cluster_size=4k", "cluster_size=2M", "refcount_bits=1",
                        "extended_l2=on"):
            flags = ["-o", options] if options else []
            for source in ([self.raw], ["--size", "3T"], ["--size", "0"]):
                if "4k" in options and "3T" in source:
                    continue  # more L1 than there may be
                with self.subTest(options=options, source=source):
                    words = ["measure", "--output=json", "-O", "qcow2", *flags, *source]
                    mine, real = json.loads(ours(*words)), json.loads(theirs(*words))
                    self.assertLessEqual(abs(mine["required"] - real["required"]), 4 * MIB)
                    self.assertGreaterEqual(mine["fully-allocated"], mine["required"])


class InMemory(unittest.TestCase):
    """Files in memory are written by huge pages: long runs of data, ends that fit nothing."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-interop-", dir="/dev/shm"))
        self.raw = self.folder / "disk.raw"
        rng = random.Random(3)
        with open(self.raw, "wb") as disk:
            for start, length in ((0, 9 * MIB + 700), (12 * MIB + 4096, 5 * MIB - 1),
                                  (20 * MIB, 11 * MIB), (40 * MIB - 513, 3 * MIB)):
                disk.seek(start)
                disk.write(rng.randbytes(length))
            disk.seek(25 * MIB)
            disk.write(bytes(MIB))  # zeroes that are no hole
            disk.truncate(48 * MIB + 512)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def test_every_format_holds_the_same(self):
        for kind in ("raw", "qcow2", "vdi", "vhdx", "vmdk", "vpc"):
            with self.subTest(format=kind):
                image, back = self.folder / f"disk.{kind}.new", self.folder / "back.raw"
                ours("convert", "-q", "-f", "raw", "-O", kind, self.raw, image)
                theirs("compare", "-q", "-f", "raw", "-F", kind, self.raw, image)
                ours("convert", "-q", "-f", kind, "-O", "raw", image, back)
                self.assertEqual(self.raw.read_bytes(), back.read_bytes()[:48 * MIB + 512])
                taken = image.stat().st_blocks * 512  # huge pages where all of one is data
                self.assertLessEqual(taken, 30 * MIB + (40 * MIB if kind == "vhdx" else 2 * MIB))
                if kind in ("qcow2", "vdi", "vmdk"):
                    theirs("check", "-q", "-f", kind, image)
                image.unlink()

    def test_where_memory_ends_the_copy_ends(self):
        """A target file system of 17 MiB for 28 MiB of data: a sentence, and nothing is left."""
        small = self.folder / "small"
        small.mkdir()
        for kind in ("raw", "qcow2", "vdi"):
            script = (f"mount -t tmpfs -o size=17m none {small} || exit 9; "
                      f"{IMG} convert -q -f raw -O {kind} {self.raw} {small}/new; code=$?; "
                      f"ls -A {small}; exit $code")
            done = subprocess.run(["unshare", "-r", "-m", "sh", "-c", script], check=False,
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("No space left on device", done.stderr)
            self.assertEqual(done.stdout, "", "nothing stays of it")


class Locks(Case):
    def test_either_refuses_what_the_other_writes(self):
        image = self.folder / "lock.qcow2"
        ours("create", "-q", "-f", "qcow2", image, "1M")
        with subprocess.Popen(["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as holder:
            holder.stdin.write(b"write 0 512\n")
            holder.stdin.flush()
            holder.stdout.readline()
            done = subprocess.run([IMG, "info", str(image)], capture_output=True, text=True,
                                  check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"process {holder.pid} (qemu-io)", done.stderr)
            ours("info", "-U", image)
            ours("snapshot", "-c", "x", image, code=1)
            ours("convert", "-q", "-O", "qcow2", self.raw, image, code=1)
            holder.stdin.write(b"quit\n")
            holder.stdin.flush()
        ours("info", image)


class WrongInput(Case):
    def complain(self, *words, code=1, text):
        done = subprocess.run([IMG, *map(str, words)], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(text, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_each_mistake_is_one_sentence(self):
        image = self.folder / "x.qcow2"
        self.complain("frobnicate", text="there is no command 'frobnicate'")
        self.complain("info", text="wanted: FILE")
        self.complain("info", "--frob", "x", text="there is no option '--frob'")
        self.complain("info", self.folder / "none", text="No such file")
        self.complain("info", self.folder, text="is a directory")
        self.complain("info", "-f", "qcow9", self.raw, text="Known are:")
        self.complain("info", "-f", "qcow2", self.raw, text="magic number")
        self.complain("create", "-f", "qcow2", image, text="size is missing")
        self.complain("create", "-f", "qcow2", image, "12x", text="'12x' is not a size")
        self.complain("create", "-f", "qcow2", "-o", "colour=red", image, "1M", text="'colour'")
        self.complain("create", "-f", "qcow2", "-o", "cluster_size=3k", image, "1M",
                      text="powers of two")
        self.complain("create", "-f", "qcow2", "-b", self.raw, image, text="-F FORMAT")
        self.complain("convert", self.raw, text="SOURCE… TARGET")
        self.complain("convert", "-c", "-O", "raw", self.raw, self.folder / "y",
                      text="cannot be compressed")
        self.complain("compare", self.raw, self.folder / "none", code=2, text="No such file")
        self.complain("compare", self.raw, text="FIRST SECOND")
        self.complain("compare", "--what", self.raw, self.raw, text="'--what'")
        self.complain("check", "-f", "raw", self.raw, code=63, text="no consistency check")
        self.complain("commit", self.raw, text="no backing file")
        for command in ("info", "map", "check"):
            self.complain(command, "--output=xml", self.raw, text="'xml', allowed human|json")
        self.complain("measure", "--output", "xml", "--size", "1G", text="'xml', allowed")
        self.complain("check", "-r", "some", self.raw, text="-r is 'some', allowed leaks|all")
        for sparse in ("3", "17M"):
            self.complain("convert", "-S", sparse, self.raw, image, text="multiples of 512")
        self.assertEqual(sorted(os.listdir(self.folder)), ["disk.raw"], "nothing is left behind")

    def test_a_target_that_cannot_be_finished_is_not_there(self):
        broken = self.folder / "broken.qcow2"
        ours("convert", "-q", "-O", "qcow2", "-c", self.raw, broken)
        with open(broken, "r+b") as image:  # spoil compressed data
            image.seek(0x60000)
            image.write(b"\xff" * 100000)
        target = self.folder / "target.raw"
        done = subprocess.run([IMG, "convert", "-q", str(broken), str(target)],
                              capture_output=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(sorted(os.listdir(self.folder)), ["broken.qcow2", "disk.raw"])

    def test_a_raw_disk_with_a_header_inside_reads_nothing_else(self):
        secret = self.folder / "secret"
        secret.write_bytes(b"s" * 65536)
        evil = self.folder / "evil.raw"
        theirs("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", evil)
        self.complain("convert", "-O", "raw", evil, self.folder / "out", text="header")
        ours("convert", "-q", "-f", "raw", "-O", "raw", evil, self.folder / "out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", required=True)
    arguments, rest = parser.parse_known_args()
    IMG = arguments.img
    unittest.main(argv=["interop_test.py", *rest])
