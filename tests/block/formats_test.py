#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""formats_test.py --img DOPPEL_IMG --tests FOLDER: the formats beside qcow2,
between doppel-img and other readers.

Every form of image is written by one program and read by the other. Of what we write qemu-img's
compare and check are the judges, and 7-Zip where it knows the form; of what we read it is the raw
image that everything was made from."""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import tarfile
import unittest
from pathlib import Path

import interop_test as common
from commands import run
from interop_test import KIB, MIB, ours, theirs

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
    "vmdk": {
        "sparse": ("", ""),
        "zero-grains": ("zeroed_grain=on", "zeroed_grain=on"),
        "lsilogic": ("adapter_type=lsilogic,hwversion=8", "adapter_type=lsilogic,compat6"),
        "flat": ("subformat=monolithicFlat", "subformat=monolithicFlat"),
        "split": ("subformat=twoGbMaxExtentSparse", "subformat=twoGbMaxExtentSparse"),
        "split-flat": ("subformat=twoGbMaxExtentFlat", "subformat=twoGbMaxExtentFlat"),
        "stream": ("subformat=streamOptimized", "subformat=streamOptimized"),
    },
}
# What qemu-img 7.2 cannot read or check of what we write.
NOT_QEMU = {("vdi", "small-blocks"), ("vdi", "large-blocks")}
# Forms in which qemu-img calls holes of the file below data and zero at once.
NOT_SAME_MAP = {("vdi", "static"), ("vhdx", None), ("vpc", "fixed"), ("vmdk", "flat"),
                ("vmdk", "split-flat")}  # None: all forms
WRITTEN_ONCE = {("vmdk", "stream")}
NOT_QEMU_RANDOM = {("vdi", "small"), ("vdi", "large")}
# format: 7-Zip's name of it, for the forms it reads.
SEVEN_ZIP = {"vdi": "vdi", "vhdx": "vhdx", "vpc": "vhd", "vmdk": "vmdk"}
NOT_SEVEN_ZIP = {("vdi", "small-blocks"), ("vdi", "large-blocks")}
SIZES = (512, MIB, 7 * MIB + 512)


def options(text):
    return ["-o", text] if text else []


class Readers(common.Case):
    def seven_zip(self, kind, image, raw):
        """A third reader: neither ours nor QEMU's."""
        with subprocess.Popen(["7zz", "x", f"-t{kind}", "-so", str(image)],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
            shown = reader.stdout.read()
        want = raw.read_bytes()
        self.assertEqual(shown[:len(want)], want, "7-Zip reads something else")
        self.assertFalse(any(shown[len(want):]))

    def refused(self, *words, code, why):
        done = subprocess.run([common.IMG, *map(str, words)], check=False, capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(why, done.stderr)


class Formats(Readers):
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
            if (kind, form) in NOT_QEMU | WRITTEN_ONCE or raw.stat().st_size < MIB:
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
                ours("check", "-q", base)
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
                with open(base, "r+b") as file:  # more than the tables know
                    file.seek(0, os.SEEK_END)
                    file.truncate(file.tell() + 3 * MIB)
                ours("check", "-q", base, code=3)
                with open(base, "r+b") as file:  # an L1 entry that leads past the end
                    file.seek(40)
                    file.seek(int.from_bytes(file.read(8), "little"))
                    file.write((1 << 40).to_bytes(8, "little"))
                self.refused("check", base, code=2, why="L2 table 0 would lie at")

    def test_parallels_is_read(self):
        for form in ("", "cluster_size=64k"):
            with self.subTest(form=form):
                image = self.folder / "disk.hdd"
                theirs("convert", "-f", "raw", "-O", "parallels", *options(form), self.raw, image)
                self.assertIn("file format: parallels", ours("info", image))
                ours("compare", "-q", "-f", "raw", "-F", "parallels", self.raw, image)
                ours("check", "-q", image)
                self.same_map(image)
                self.refused("resize", image, "+1M", code=1, why="can be read, not written")
                run("qemu-io", "-f", "parallels", "-c", "write -P 7 2M 3M", image)
                flat, other = self.folder / "flat.raw", self.folder / "other.raw"
                ours("convert", "-q", "-O", "raw", image, flat)
                theirs("convert", "-f", "parallels", "-O", "raw", image, other)
                self.assertEqual(flat.read_bytes(), other.read_bytes())

    def test_vhd_geometries_are_qemus(self):
        for size in (1, 70000, MIB, 100 * MIB, 600 * MIB + 512, 3 << 30, 130 << 30, 200 << 30):
            mine, other = self.folder / "mine.vpc", self.folder / "other.vpc"
            ours("create", "-q", "-f", "vpc", "-o", "force_size=off", mine, size)
            theirs("create", "-q", "-f", "vpc", other, size)
            sizes = [json.loads(theirs("info", "--output=json", image))["virtual-size"]
                     for image in (mine, other)]
            self.assertEqual(sizes[0], sizes[1], size)

    def test_what_an_image_will_take(self):
        """What measure says is enough, and not much too much."""
        for size in (MIB, 40 * MIB + 512):
            raw = self.folder / f"{size}.raw"
            common.make_disk(raw, size, size)
            for kind, forms in FORMS.items():
                for form, (mine, _) in forms.items():
                    with self.subTest(format=kind, form=form, size=size):
                        image = self.folder / f"measured.{kind}"
                        words = ["-f", "raw", "-O", kind, *options(mine), raw]
                        need = json.loads(ours("measure", "--output=json", *words))
                        ours("convert", "-q", *words, image)
                        taken = sum(file.stat().st_size for file in
                                    self.folder.glob(f"measured*.{kind}"))
                        if "lat" in form:  # the descriptor
                            taken = min(taken, size)
                        self.assertLessEqual(taken, need["required"] + 4 * KIB)
                        self.assertLessEqual(need["required"], need["fully-allocated"])
                        if form != "stream":  # zeroes that were written count, they may be data
                            self.assertLessEqual(need["required"], taken * 11 // 10 + 256 * KIB)
                        for file in self.folder.glob("measured*"):
                            file.unlink()

    def test_options_are_listed(self):
        for kind in FORMS:
            self.assertIn("size=<size>", ours("create", "-f", kind, "-o", "help"))
            self.assertIn(f"Options of {kind} ", ours("create", "--help"))


class Vmdk(Readers):
    """What only VMDK has: several files, streams, names of files."""

    def parts(self):
        return sorted(file.name for file in self.folder.iterdir()
                      if file.name.startswith("disk") and file != self.raw)

    def test_parts_of_two_gib(self):
        size = (4 << 30) + 3 * MIB + 512
        with open(self.raw, "wb") as raw:
            raw.truncate(size)
            for at in (0, (2 << 30) - 70000, (4 << 30) - 512, size - 1000):
                raw.seek(at)
                raw.write(os.urandom(1000))
                raw.write(b"x" * 100000)
            raw.truncate(size)
        image = self.folder / "disk.vmdk"
        for form, letter in (("twoGbMaxExtentSparse", "s"), ("twoGbMaxExtentFlat", "f")):
            with self.subTest(form=form):
                ours("convert", "-q", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}",
                     self.raw, image)
                theirs("compare", "-q", "-f", "raw", "-F", "vmdk", self.raw, image)
                ours("compare", "-q", "-f", "raw", "-F", "vmdk", self.raw, image)
                self.assertEqual([name for name in self.parts() if f"-{letter}0" in name],
                                 [f"disk-{letter}00{n}.vmdk" for n in (1, 2, 3)])
                run("qemu-io", "-f", "vmdk", "-c", f"write -P 5 {(2 << 30) - 4096} 8k", image)
                ours("check", "-q", image)
                theirs("compare", "-q", "-f", "raw", "-F", "vmdk", self.raw, image, code=1)
                shown = ours("dd", "-f", "vmdk", "-O", "raw", f"if={image}", "bs=4096", "count=2",
                             f"skip={(2 << 30) // 4096 - 1}", f"of={self.folder / 'part'}")
                self.assertEqual(shown, "")
                self.assertEqual((self.folder / "part").read_bytes(), b"\x05" * 8192)
        self.refused("resize", image, "+40G", code=1, why="extents of 2 GiB at most")

    def test_nothing_stays_of_what_fails(self):
        image = self.folder / "new" / "disk.vmdk"
        image.parent.mkdir()
        self.refused("convert", "-f", "raw", "-O", "vmdk", "-o",
                     "subformat=monolithicFlat,hwversion=x", self.raw, image, code=1,
                     why="must be numbers")
        bad = self.folder / "bad.vmdk"
        self.cut_stream(bad)
        self.refused("convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", bad, image,
                     code=1, why="damaged")
        self.assertEqual(list(image.parent.iterdir()), [])

    def cut_stream(self, path):
        """One whose first grain is damaged."""
        ours("convert", "-q", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized",
             self.raw, path)
        data = bytearray(path.read_bytes())
        data[65536 + 40] ^= 0xff
        path.write_bytes(data)

    def test_names_that_lead_elsewhere(self):
        """Extents lie in the image's folder, however they are named."""
        inside = self.folder / "inside"
        inside.mkdir()
        image = inside / "disk.vmdk"
        (inside / "link.raw").symlink_to(self.raw)
        for name in (self.raw, "../disk.raw", "/dev/zero", "link.raw", "nbd://host/disk",
                     "json:{}"):
            with self.subTest(name=str(name)):
                image.write_text("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
                                 f'createType="monolithicFlat"\nRW 8 FLAT "{name}" 0\n')
                for words in (["info"], ["convert", "-O", "raw"], ["check"]):
                    extra = [self.folder / "out"] if words[0] == "convert" else []
                    self.refused(*words, image, *extra, code=1, why="not in its folder")

    def test_a_guest_cannot_name_parts(self):
        """A raw disk that looks like a descriptor is not followed where its format is guessed."""
        secret, disk, top = (self.folder / n for n in ("secret.img", "disk.img", "top.qcow2"))
        secret.write_bytes(os.urandom(4096))
        disk.write_bytes(b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n'
                         b'createType="monolithicFlat"\nRW 8 FLAT "secret.img" 0\n'.ljust(4096))
        ours("create", "-q", "-u", "-f", "qcow2", "-b", disk.name, top, 4096)
        self.refused("convert", "-O", "raw", top, self.folder / "out", code=1,
                     why="names files of its own")

    def test_streams(self):
        """Small and read by others; a run cut short has no name; --best is smaller than QEMU's."""
        text = self.folder / "text.raw"
        text.write_bytes(b"".join(b"line %d of a long text\n" % (i * i) for i in range(200000)))
        os.truncate(text, 4 * MIB)
        mine, best, other = (self.folder / f"{n}.vmdk" for n in ("mine", "best", "other"))
        form = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
        ours("convert", "-q", *form, text, mine)
        ours("convert", "-q", "--best", *form, text, best)
        theirs("convert", *form, text, other)
        self.assertLess(best.stat().st_size, other.stat().st_size)
        for image in (mine, best):
            ours("check", "-q", image)
            theirs("check", "-q", image)
            theirs("compare", "-q", "-f", "raw", "-F", "vmdk", text, image)
            self.seven_zip("vmdk", image, text)
            self.assertIn("Media size", run("vmdkinfo", image).stdout)
        sectors = [int.from_bytes(data[:8], "little") for data in self.grains(mine)]
        self.assertEqual(sectors, sorted(sectors))
        self.assertEqual(mine.read_bytes()[4], 3)  # the version that ESXi takes
        self.refused("convert", "-n", "-f", "raw", "-O", "vmdk", text, mine, code=1,
                     why="written once")
        self.refused("resize", mine, "+1M", code=1, why="its size stays")

    @staticmethod
    def grains(path):
        """The grains of a stream in the order of the file, with their markers."""
        data = path.read_bytes()
        at = int.from_bytes(data[64:72], "little") * 512
        while at < len(data):
            size = int.from_bytes(data[at + 8:at + 12], "little")
            if size:
                yield data[at:at + 12 + size]
                at += (12 + size + 511) // 512 * 512
            else:
                at += 512 + int.from_bytes(data[at:at + 8], "little") * 512

    def test_chains_of_qemu(self):
        base, middle, top = (self.folder / f"{n}.vmdk" for n in ("base", "middle", "top"))
        theirs("convert", "-f", "raw", "-O", "vmdk", self.raw, base)
        for below, image in ((base, middle), (middle, top)):
            theirs("create", "-q", "-f", "vmdk", "-b", below.name, "-F", "vmdk", image)
            run("qemu-io", "-f", "vmdk", "-c", f"write -P {len(image.stem)} 1M 300k", image)
        flat, other = self.folder / "flat.raw", self.folder / "other.raw"
        for image in (middle, top):
            ours("convert", "-q", "-O", "raw", image, flat)
            theirs("convert", "-O", "raw", image, other)
            self.assertEqual(flat.read_bytes(), other.read_bytes())
        run("qemu-io", "-f", "vmdk", "-c", "write -P 9 0 4k", base)
        self.refused("convert", "-O", "raw", middle, flat, code=1, why="was changed after")


OVF = """<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><ovf:References>{files}
</ovf:References><ovf:DiskSection><ovf:Info>Disks</ovf:Info>{disks}</ovf:DiskSection>
</ovf:Envelope>
"""


class Packages(Readers):
    """OVA archives and OVF descriptors, made here as other programs make them."""

    def setUp(self):
        super().setUp()
        self.second = self.folder / "second.raw"
        common.make_disk(self.second, 3 * MIB, 5)
        for raw in (self.raw, self.second):
            theirs("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw,
                   raw.with_suffix(".vmdk"))

    def package(self, *disks, digest="sha256", form=tarfile.USTAR_FORMAT):
        """Descriptor, manifest and archive of these images."""
        ovf = self.folder / "machine.ovf"
        ovf.write_text(OVF.format(
            files="".join(f'<ovf:File ovf:href="{disk.name}" ovf:id="file-{disk.stem}"/>'
                          for disk in disks),
            disks="".join(f'<ovf:Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^20" '
                          f'ovf:diskId="id-{disk.stem}" ovf:fileRef="file-{disk.stem}" '
                          'ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html'
                          '#streamOptimized"/>' for disk in disks)))
        manifest = self.folder / "machine.mf"
        manifest.write_text("".join(
            f"{digest.upper()}({file.name})= "
            f"{hashlib.new(digest, file.read_bytes()).hexdigest()}\n" for file in (ovf, *disks)))
        archive = self.folder / "machine.ova"
        with tarfile.open(archive, "w", format=form) as tar:
            for file in (ovf, manifest, *disks):
                tar.add(file, file.name)
        return ovf, archive

    def test_the_only_disk(self):
        for digest, form in (("sha1", tarfile.USTAR_FORMAT), ("sha256", tarfile.GNU_FORMAT),
                             ("sha512", tarfile.PAX_FORMAT)):
            with self.subTest(digest=digest):
                ovf, archive = self.package(self.folder / "disk.vmdk", digest=digest, form=form)
                for name in (archive, ovf):
                    self.assertIn("disk.vmdk", ours("info", name))
                    ours("check", "-q", name)
                    ours("compare", "-q", "-F", "raw", name, self.raw)
                    out = self.folder / "out.qcow2"
                    ours("convert", "-q", "-O", "qcow2", name, out)
                    theirs("compare", "-q", "-f", "raw", "-F", "qcow2", self.raw, out)

    def test_one_of_two_disks(self):
        disks = [self.folder / f"{name}.vmdk" for name in ("disk", "second")]
        _, archive = self.package(*disks)
        out = self.folder / "out.raw"
        self.refused("convert", archive, out, code=1, why="2 disks: disk.vmdk, second.vmdk")
        for name in ("second.vmdk", "id-second"):
            ours("convert", "-q", "-O", "raw", "--disk", name, archive, out)
            self.assertEqual(out.read_bytes(), self.second.read_bytes())
        ours("convert", "-q", "--image-opts", "-O", "raw",
             f"driver=ova,file.filename={archive},disk=second.vmdk", out)
        self.assertEqual(out.read_bytes(), self.second.read_bytes())
        self.refused("convert", "--disk", "third", archive, out, code=1,
                     why="holds no disk 'third'")
        self.refused("info", "--disk", "disk", self.raw, code=1, why="is no package")
        facts = json.loads(ours("info", "--output=json", archive))["format-specific"]["data"]
        self.assertEqual([disk["filename"] for disk in facts["disks"]],
                         ["disk.vmdk", "second.vmdk"])
        self.refused("resize", archive, "+1M", code=1, why="can be read, not written")

    def test_a_changed_file_is_found(self):
        _, archive = self.package(self.folder / "disk.vmdk")
        data = bytearray(archive.read_bytes())
        data[-20000] ^= 1
        archive.write_bytes(data)
        self.refused("check", archive, code=2, why="'disk.vmdk' was changed: its SHA256 is")

    def test_a_disk_in_a_package_stands_alone(self):
        child = self.folder / "child.vmdk"
        theirs("create", "-q", "-f", "vmdk", "-b", "disk.vmdk", "-F", "vmdk", child)
        flat = self.folder / "flat.vmdk"
        flat.write_text("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
                        'createType="monolithicFlat"\nRW 8 FLAT "disk.raw" 0\n')
        for image in (child, flat):
            _, archive = self.package(image)
            self.refused("convert", archive, self.folder / "out", code=1, why="stands alone")


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
        for kind in ("vdi", "vhdx", "vpc", "vmdk"):
            with self.subTest(format=kind):
                base, middle, top, disk = self.chain(kind)
                ours("compare", "-q", "-f", "raw", "-F", kind, disk, top)
                if kind == "vmdk":
                    theirs("compare", "-q", "-f", "raw", "-F", kind, disk, top)
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
        for kind in ("vdi", "vhdx", "vmdk"):
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
        for kind in ("vdi", "vhdx", "vpc", "vmdk"):
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
