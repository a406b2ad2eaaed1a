#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""readers_test.py --img DOPPEL_IMG: what we write, read by programs that have nothing of QEMU."""

import argparse
import subprocess
import unittest
from pathlib import Path

import formats_test as formats
import interop_test as common
from commands import run
from formats_test import options
from interop_test import MIB, ours


class OtherReaders(formats.Readers):
    """libqcow, libvhdi and libvmdk: written from the formats' descriptions, by others than QEMU.
    Of differencing VHD they are the only judge: QEMU reads those wrong."""

    def library(self, kind, raw, *images):
        done = subprocess.run(["/usr/bin/python3", str(Path(__file__).with_name("other_reader.py")),
                               kind, *map(str, images)], check=False, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        want = raw.read_bytes()
        self.assertEqual(done.stdout[:len(want)], want)
        self.assertFalse(any(done.stdout[len(want):]))

    def test_qcow2(self):
        for name, form in common.QCOW2_FORMS.items():
            if name in ("subclusters", "falloc"):
                continue  # younger than libqcow; the same as plain
            with self.subTest(form=name):
                image = self.folder / "disk.qcow2"
                ours("convert", "-q", "-f", "raw", "-O", "qcow2", *options(form), self.raw, image)
                self.library("qcow2", self.raw, image)
                self.seven_zip("qcow", image, self.raw)
        for name, form in common.COMPRESSED_FORMS.items():
            if "zstd" in name:
                continue
            with self.subTest(compressed=name):
                image = self.folder / "disk.qcow2"
                ours("convert", "-q", "-c", "-f", "raw", "-O", "qcow2", *options(form), self.raw,
                     image)
                self.library("qcow2", self.raw, image)
                self.seven_zip("qcow", image, self.raw)

    def test_vhd_vhdx_and_vmdk(self):
        raw = self.folder / "whole.raw"  # libvhdi wants VHDX of whole MiB
        common.make_disk(raw, 7 * MIB, 3)
        for kind in ("vpc", "vhdx", "vmdk"):
            for form, (mine, _) in formats.FORMS[kind].items():
                with self.subTest(format=kind, form=form):
                    image = self.folder / f"disk.{kind}"
                    ours("convert", "-q", "-f", "raw", "-O", kind, *options(mine), raw, image)
                    self.library(kind, raw, image)

    def test_chains_of_three(self):
        for kind in ("vpc", "vhdx"):
            with self.subTest(format=kind):
                disk = self.folder / "disk.copy"
                common.make_disk(disk, 7 * MIB, 4)
                images = [self.folder / f"{n}.{kind}" for n in ("top", "middle", "base")]
                ours("convert", "-q", "-f", "raw", "-O", kind, disk, images[2])
                for image, below in ((images[1], images[2]), (images[0], images[1])):
                    ours("create", "-q", "-f", kind, "-b", below.name, "-F", kind, image)
                    run("qemu-io", "-f", "raw", "-c", "write -P 7 1000k 300k", "-c",
                        f"write -P {len(image.stem)} 5M 70k", disk)
                    ours("convert", "-q", "-n", "-f", "raw", "-O", kind, disk, image)
                self.library(kind, disk, *images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", required=True)
    arguments, rest = parser.parse_known_args()
    common.IMG = arguments.img
    unittest.main(argv=["readers_test.py", *rest])
