#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""formats_test.py --img DOPPEL_IMG --tests FOLDER: the formats beside qcow2,
between doppel-img and other readers.

Every form of image is written by one program and read by the other. Of what we write qemu-img's
compare and check are the judges, and 7-Zip where it knows the form; of what we read it is the raw
image that everything was made from."""

import argparse
import itertools
import json
import os
import subprocess
import unittest
from pathlib import Path

import interop_test as common
from interop_test import KIB, MIB, ours, run, theirs

TESTS = ""

# format: form: (our options, qemu-img's options; None: it cannot make that, "" for none).
FORMS = {
    "vdi": {
        "dynamic": ("", ""),
        "static": ("static=on", "static=on"),
        "metadata": ("preallocation=metadata", None),
        "small-blocks": ("block_size=4k", None),
        "large-blocks": ("block_size=8M", None),
    },
    "vhdx": {
        "dynamic": ("", ""),
        "fixed": ("subformat=fixed", "subformat=fixed"),
        "small-blocks": ("block_size=1M", "block_size=1M"),
        "zero-state": ("block_state_zero=on", "block_state_zero=on"),
        "no-zero-state": ("block_state_zero=off", "block_state_zero=off"),
        "large-log": ("log_size=4M", "log_size=4M"),
    },
    "vpc": {
        "dynamic": ("", "force_size=on"),
        "geometry": ("force_size=off", ""),
        "fixed": ("subformat=fixed", "subformat=fixed,force_size=on"),
        "small-blocks": ("block_size=512k", None),
    },
}
# What qemu-img 7.2 cannot read or check of what we write.
NOT_QEMU = {("vdi", "small-blocks"), ("vdi", "large-blocks")}
# Forms in which qemu-img calls holes of the file below data and zero at once.
NOT_SAME_MAP = {("vdi", "static"), ("vhdx", None), ("vpc", "fixed")}  # None: all forms
NOT_QEMU_RANDOM = {("vdi", "small"), ("vdi", "large")}
# format: 7-Zip's name of it, for the forms it reads.
SEVEN_ZIP = {"vdi": "vdi", "vhdx": "vhdx", "vpc": "vhd"}
NOT_SEVEN_ZIP = {("vdi", "small-blocks"), ("vdi", "large-blocks")}
SIZES = (512, MIB, 7 * MIB + 512)


def options(text):
    return ["-o", text] if text else []


class Formats(common.Case):
    def seven_zip(self, kind, image, raw):
        """A third reader: neither ours nor QEMU's."""
        with subprocess.Popen(["7zz", "x", f"-t{kind}", "-so", str(image)],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
            shown = reader.stdout.read()
        want = raw.read_bytes()
        self.assertEqual(shown[:len(want)], want, "7-Zip reads something else")
        self.assertFalse(any(shown[len(want):]))

    def for_each_form(self, test):
        for size in SIZES:
            raw = self.folder / f"{size}.raw"
            common.make_disk(raw, size, size)
            for kind, forms in FORMS.items():
                for form, (mine, other) in forms.items():
                    with self.subTest(format=kind, form=form, size=size):
                        test(raw, kind, form, mine, other)

    def test_what_we_write_others_read(self):
        def test(raw, kind, form, mine, _):
            image = self.folder / f"mine.{kind}"
            ours("convert", "-q", "-f", "raw", "-O", kind, *options(mine), raw, image)
            ours("compare", "-q", "-f", "raw", "-F", kind, raw, image)
            ours("check", "-q", "-f", kind, image)
            if (kind, form) not in NOT_QEMU:
                theirs("compare", "-q", "-f", "raw", "-F", kind, raw, image)
                done = subprocess.run(["qemu-img", "check", "-q", str(image)], check=False,
                                      stderr=subprocess.DEVNULL)
                self.assertIn(done.returncode, (0, 63))  # 63: it has no check for the format
            odd = kind == "vhdx" and raw.stat().st_size % MIB != 0  # QEMU's it refuses, too
            if kind in SEVEN_ZIP and (kind, form) not in NOT_SEVEN_ZIP and not odd:
                self.seven_zip(SEVEN_ZIP[kind], image, raw)
        self.for_each_form(test)

    def test_what_qemu_writes_we_read(self):
        def test(raw, kind, form, _mine, other):
            if other is None:
                return
            image, back = self.folder / f"other.{kind}", self.folder / "back.raw"
            theirs("convert", "-f", "raw", "-O", kind, *options(other), raw, image)
            ours("check", "-q", "-f", kind, image)
            ours("compare", "-q", "-f", "raw", "-F", kind, raw, image)
            ours("convert", "-q", "-f", kind, "-O", "raw", image, back)
            self.assertEqual(raw.read_bytes(), back.read_bytes()[:raw.stat().st_size])
            if not {(kind, form), (kind, None)} & NOT_SAME_MAP:
                self.same_map(image)
            # What both say of it is the same.
            mine, real = (json.loads(tool("info", "-f", kind, "--output=json", image))
                          for tool in (ours, theirs))
            for key in ("virtual-size", "cluster-size", "format", "backing-filename"):
                self.assertEqual(mine.get(key), real.get(key))
            for key, value in real.get("format-specific", {}).get("data", {}).items():
                self.assertEqual(mine["format-specific"]["data"].get(key), value)
        self.for_each_form(test)

    def test_both_write_in_turn(self):
        def test(raw, kind, form, mine, _):
            if (kind, form) in NOT_QEMU or raw.stat().st_size < MIB:
                return
            image = self.folder / f"turn.{kind}"
            ours("create", "-q", "-f", kind, *options(mine), image, raw.stat().st_size)
            for at in range(0, MIB, 256 * KIB):
                run("qemu-io", "-f", kind, "-c", f"write -P {at // KIB % 251} {at} 70k", image)
                ours("check", "-q", "-f", kind, image)
            ours("convert", "-q", "-n", "-f", "raw", "-O", kind, raw, image)
            theirs("compare", "-q", "-f", "raw", "-F", kind, raw, image)
        self.for_each_form(test)

    def test_between_all_formats(self):
        kinds = ["raw", "qcow2", *FORMS]
        first = self.folder / "start.raw"
        common.make_disk(first, 3 * MIB + 512, 7)
        for source, target in itertools.product(kinds, kinds):
            with self.subTest(source=source, target=target):
                one, two = self.folder / f"one.{source}", self.folder / f"two.{target}"
                ours("convert", "-q", "-f", "raw", "-O", source, first, one)
                ours("convert", "-q", "-f", source, "-O", target, one, two)
                ours("compare", "-q", "-f", "raw", "-F", target, first, two)

    def test_resize(self):
        for kind in FORMS:
            with self.subTest(format=kind):
                image = self.folder / f"size.{kind}"
                ours("convert", "-q", "-f", "raw", "-O", kind, self.raw, image)
                ours("resize", "-q", "-f", kind, image, "+40G")
                ours("check", "-q", "-f", kind, image)
                theirs("compare", "-q", "-f", "raw", "-F", kind, self.raw, image)
                ours("resize", "-q", "--shrink", "-f", kind, image, self.raw.stat().st_size)
                ours("compare", "-q", "-f", "raw", "-F", kind, self.raw, image)
                theirs("compare", "-q", "-f", "raw", "-F", kind, self.raw, image)

    def test_random_images(self):
        """What random operations leave, in QEMU's eyes; and an image that was not closed."""
        for kind in FORMS:
            os.environ["DOPPEL_KEEP_IMAGES"] = str(self.folder)
            run(Path(TESTS) / f"doppel_block_{kind}_test",
                "-tc=*random operations*,*not closed*")
            images = sorted(self.folder.glob(f"*.{kind}"))
            self.assertGreater(len(images), 1)
            for image in images:
                if (kind, image.stem) in NOT_QEMU_RANDOM:
                    continue
                with self.subTest(format=kind, image=image.name):
                    if kind != "vpc":  # it has no check for that
                        repair = ["-r", "all"] if kind == "vhdx" else []  # replays the log
                        theirs("check", "-q", *repair, "-f", kind, image)
                    theirs("compare", "-q", "-f", "raw", "-F", kind, image.with_suffix(".raw"),
                           image)

    def test_qed_is_read(self):
        """QEMU writes it, we read it: small and large clusters, a backing file."""
        for form in ("", "cluster_size=4k", "cluster_size=1M,table_size=2"):
            with self.subTest(form=form):
                base, top = self.folder / "base.qed", self.folder / "top.qed"
                theirs("convert", "-f", "raw", "-O", "qed", *options(form), self.raw, base)
                ours("compare", "-q", "-f", "raw", "-F", "qed", self.raw, base)
                self.same_map(base)
                theirs("create", "-q", "-f", "qed", "-b", base.name, "-F", "qed", top)
                run("qemu-io", "-f", "qed", "-c", "write -P 9 1M 100k", "-c", "write -z 3M 64k",
                    top)
                flat, other = self.folder / "flat.raw", self.folder / "other.raw"
                ours("convert", "-q", "-O", "raw", top, flat)
                theirs("convert", "-O", "raw", top, other)
                self.assertEqual(flat.read_bytes(), other.read_bytes())
                done = subprocess.run([common.IMG, "resize", str(top), "+1M"], check=False,
                                      capture_output=True, text=True)
                self.assertEqual(done.returncode, 1)
                self.assertIn("can be read, not written", done.stderr)

    def test_vhd_geometries_are_qemus(self):
        for size in (1, 70000, MIB, 100 * MIB, 600 * MIB + 512, 3 << 30, 130 << 30, 200 << 30):
            mine, other = self.folder / "mine.vpc", self.folder / "other.vpc"
            ours("create", "-q", "-f", "vpc", "-o", "force_size=off", mine, size)
            theirs("create", "-q", "-f", "vpc", other, size)
            sizes = [json.loads(theirs("info", "--output=json", image))["virtual-size"]
                     for image in (mine, other)]
            self.assertEqual(sizes[0], sizes[1], size)

    def test_options_are_listed(self):
        for kind in FORMS:
            self.assertIn("size=<size>", ours("create", "-f", kind, "-o", "help"))
            self.assertIn(f"Options of {kind} ", ours("create", "--help"))


class Chains(common.Case):
    """Differencing images. QEMU reads none of VDI and reads those of VHD wrong: the judge is a
    plain file that the same writes went to."""

    def paint(self, disk, image, kind, seed):
        """The same random writes to the plain file and, by way of a raw copy, to the image."""
        common.make_disk(self.folder / "paint", disk.stat().st_size, seed)
        paint = bytearray((self.folder / "paint").read_bytes())
        plain = bytearray(disk.read_bytes())
        for at in range(0, len(plain), 128 * KIB):
            plain[at:at + 40 * KIB] = paint[at:at + 40 * KIB]
        disk.write_bytes(plain)
        ours("convert", "-q", "-n", "-f", "raw", "-O", kind, disk, image)

    def chain(self, kind):
        base, middle, top = (self.folder / f"{n}.{kind}" for n in ("base", "middle", "top"))
        ours("convert", "-q", "-f", "raw", "-O", kind, self.raw, base)
        before = base.read_bytes()
        disk = self.folder / "disk.copy"
        disk.write_bytes(self.raw.read_bytes())
        ours("create", "-q", "-f", kind, "-b", base.name, "-F", kind, middle)
        ours("compare", "-q", "-f", "raw", "-F", kind, disk, middle)
        self.paint(disk, middle, kind, 2)
        ours("create", "-q", "-f", kind, "-b", middle.name, "-F", kind, top)
        self.paint(disk, top, kind, 3)
        for image in (base, middle, top):
            ours("check", "-q", "-f", kind, image)
        self.assertEqual(before, base.read_bytes(), "a child is written, not its parent")
        chain = json.loads(ours("info", "--backing-chain", "--output=json", top))
        self.assertEqual([os.path.basename(item["filename"]) for item in chain],
                         [top.name, middle.name, base.name])
        return base, middle, top, disk

    def test_chain_of_three(self):
        for kind in ("vdi", "vhdx", "vpc"):
            with self.subTest(format=kind):
                base, middle, top, disk = self.chain(kind)
                ours("compare", "-q", "-f", "raw", "-F", kind, disk, top)
                ours("commit", "-q", "-f", kind, top)
                ours("compare", "-q", "-f", "raw", "-F", kind, disk, middle)
                ours("compare", "-q", "-f", "raw", "-F", kind, disk, top)
                ours("rebase", "-q", "-f", kind, "-b", base.name, "-F", kind, top)
                ours("compare", "-q", "-f", "raw", "-F", kind, disk, top)
                ours("rebase", "-q", "-f", kind, "-b", "", top)
                ours("compare", "-q", "-f", "raw", "-F", kind, disk, top)
                for image in (base, middle, top):
                    ours("check", "-q", "-f", kind, image)

    def test_a_changed_parent_is_noticed(self):
        for kind in ("vdi", "vhdx"):
            with self.subTest(format=kind):
                base, middle, _, _ = self.chain(kind)
                ours("convert", "-q", "-n", "-f", "raw", "-O", kind, self.raw, base)
                done = subprocess.run([common.IMG, "compare", "-f", kind, "-F", kind, str(base),
                                       str(middle)], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 2)
                self.assertIn("was changed after", done.stderr)
                ours("rebase", "-q", "-u", "-f", kind, "-b", base.name, "-F", kind, middle)
                ours("compare", base, middle, code=1)

    def test_a_missing_parent_is_named(self):
        for kind in ("vdi", "vhdx", "vpc"):
            with self.subTest(format=kind):
                base, middle, _, _ = self.chain(kind)
                base.unlink()
                done = subprocess.run([common.IMG, "convert", "-f", kind, str(middle),
                                       str(self.folder / "out")], capture_output=True, text=True,
                                      check=False)
                self.assertEqual(done.returncode, 1)
                self.assertRegex(done.stderr, "the parent of|backing file of")
                ours("info", middle)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", required=True)
    parser.add_argument("--tests", required=True, help="the folder of the unit tests' executables")
    arguments, rest = parser.parse_known_args()
    common.IMG = arguments.img
    TESTS = arguments.tests
    unittest.main(argv=["formats_test.py", *rest])
