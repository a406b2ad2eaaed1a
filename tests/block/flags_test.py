#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""flags_test.py --img DOPPEL_IMG: every flag of qemu-img is one of ours, and means the same."""

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from commands import run, wait_listening

IMG = ""
MIB = 1024 * 1024


def ours(*words, code=0):
    done = run(IMG, *words, code=code)
    return done.stdout + done.stderr


def theirs(*words, code=0):
    return run("qemu-img", *words, code=code).stdout


class Flags(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="img_flags."))
        self.addCleanup(shutil.rmtree, self.folder)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)  # where QEMU looks for data files
        self.base, self.top = self.folder / "base.qcow2", self.folder / "top.qcow2"
        theirs("create", "-q", "-f", "qcow2", self.base, "4M")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", "-c", "write -z 2M 64k", self.base)
        theirs("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", self.top, "5M")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 6 512k 1M", self.top)
        self.out = self.folder / "out"

    def test_every_flag_is_known(self):
        overview = theirs("--help").split("Command parameters")[0]
        for line in re.findall(r"^  ([a-z]+ [-[(].*)", overview, re.MULTILINE):
            command = line.split()[0]
            text = ours(command, "--help")
            for flag in set(re.findall(r"(?<![\w-])(-[A-Za-z]|--[a-z-]+)(?![\w-])", line)):
                with self.subTest(command=command, flag=flag):
                    known = re.search(rf"^ +(-\w, )?{flag}[ ,]", text, re.MULTILINE)
                    self.assertTrue(known or re.search(rf"^ +-\w, {flag}", text, re.MULTILINE))

    def test_every_creation_option_is_known(self):
        for form in ("raw", "qcow2", "vdi", "vhdx", "vpc", "vmdk", "luks"):
            wanted, known = (set(re.findall(r"^  ([a-z0-9_.-]+)=", text, re.MULTILINE))
                             for text in (theirs("create", "-f", form, "-o", "help", self.out),
                                          ours("create", "-f", form, "-o", "help")))
            with self.subTest(form=form):
                self.assertEqual(wanted - known - {"encryption"}, set())  # the old AES
            if form != "luks":  # which wants a secret
                ours("create", "-f", form, "-o", "nocow=on,extent_size_hint=1M,size=3M", self.out)
                self.assertEqual(self.size_of(self.out, form), 3 * MIB)

    def test_preallocation_takes_the_space(self):
        for form, fixed, part in (("raw", "", self.out), ("vpc", "subformat=fixed,", self.out),
                                  ("vhdx", "subformat=fixed,", self.out),
                                  ("vmdk", "subformat=monolithicFlat,", self.folder / "out-flat")):
            for how in ("off", "falloc", "full"):
                with self.subTest(form=form, how=how):
                    ours("create", "-q", "-f", form, "-o", f"{fixed}preallocation={how}", self.out,
                         "16M")
                    self.assertEqual(os.stat(part).st_blocks * 512 >= 16 * MIB, how != "off")
                    self.assertEqual(self.size_of(self.out, form), 16 * MIB)
                    theirs("convert", "-f", form, "-O", "raw", self.out, self.folder / "read")
                    self.assertEqual((self.folder / "read").read_bytes(), bytes(16 * MIB))
        text = ours("create", "-f", "vpc", "-o", "preallocation=full", self.out, "1M", code=1)
        self.assertIn("is for vpc images that do not grow", text)

    def size_of(self, image, form):
        return json.loads(theirs("info", "--output=json", "-f", form, image))["virtual-size"]

    def test_options_of_files_are_for_new_files(self):
        self.assertIn("'maybe', allowed are on and off",
                      ours("create", "-o", "nocow=maybe", self.out, "1M", code=1))
        self.assertFalse(self.out.exists())
        text = ours("create", "-o", "nocow=on", "nbd+unix:///?socket=none", "1M", code=1)
        self.assertIn("option nocow is for new files", text)

    def test_convert_keeps_the_size(self):
        self.assertIn("as large as its source, 5242880 bytes",
                      ours("convert", "-O", "qcow2", "-o", "size=9M", self.top, self.out, code=1))
        self.assertFalse(self.out.exists())
        ours("convert", "-q", "-O", "qcow2", "-o", "size=5M", self.top, self.out)

    def test_several_sources_are_one_disk(self):
        odd = self.folder / "odd.raw"
        odd.write_bytes(b"x" * 700)
        mine = self.folder / "mine"
        for form in ("raw", "qcow2"):
            theirs("convert", "-O", form, self.top, odd, self.base, self.out)
            ours("convert", "-q", "-O", form, self.top, odd, self.base, mine)
            theirs("compare", "-s" if form == "raw" else "-q", mine, self.out)
        ours("convert", "-l", "s", self.top, self.base, self.out, code=1)
        ours("convert", "-O", "qcow2", "-B", self.base, "-F", "qcow2", self.top, self.base,
             self.out, code=1)

    def test_bitmaps_come_along(self):
        for name, flags in (("on", []), ("off", ["--disable", "-g", "4k"])):
            theirs("bitmap", "--add", *flags, self.base, name)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 7 128k 64k", self.base)
        mine, other = self.folder / "mine", self.folder / "other"
        for tool, image in ((ours, mine), (theirs, other)):
            tool("convert", "-q", "--bitmaps", "-O", "qcow2", self.base, image)
        theirs("check", "-q", mine)

        def facts(image):
            return json.loads(theirs("info", "--output=json", image))["format-specific"]["data"]

        self.assertEqual(facts(mine), facts(other))
        for image in (mine, other):  # what is marked, as a client of a server sees it
            node = f"driver=qcow2,file.filename={image}"
            with subprocess.Popen(["qemu-nbd", "-r", "-t", "-B", "on", "--image-opts", node, "-k",
                                   self.folder / "s"]) as server:
                wait_listening(server, self.folder / "s")
                text = theirs("map", "--output=json", "--image-opts",
                              f"driver=nbd,server.type=unix,server.path={self.folder}/s,"
                              "x-dirty-bitmap=qemu:dirty-bitmap:on")
                server.terminate()
            (self.folder / "s").unlink(missing_ok=True)
            dirty = [(e["start"], e["length"]) for e in json.loads(text) if not e["data"]]
            self.assertEqual(dirty, [(128 * 1024, 64 * 1024)])
        ours("convert", "--bitmaps", "-O", "raw", self.base, self.out, code=1)
        ours("convert", "--bitmaps", "-O", "qcow2", mine, self.folder / "v2", "-o", "compat=0.10",
             code=1)
        ours("convert", "--skip-broken-bitmaps", "-O", "qcow2", mine, self.out, code=1)
        self.assertFalse((self.folder / "v2").exists() or self.out.exists())

    def test_broken_bitmaps(self):
        theirs("bitmap", "--add", self.base, "b")
        with subprocess.Popen(["qemu-io", "-f", "qcow2", self.base], stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL) as writer:
            writer.stdin.write(b"write 0 64k\n")
            writer.stdin.flush()
            time.sleep(0.3)
            writer.kill()
        ours("convert", "--bitmaps", "-O", "qcow2", self.base, self.out, code=1)
        ours("convert", "-q", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", self.base,
             self.out)
        self.assertNotIn("bitmaps", theirs("info", "--output=json", self.out))

    def test_snapshots_by_id_and_name(self):
        raw = self.folder / "raw"
        theirs("convert", self.base, raw)
        theirs("snapshot", "-c", "2", self.base)  # a name that is another's ID
        run("qemu-io", "-f", "qcow2", "-c", "write -P 9 3M 64k", self.base)
        theirs("snapshot", "-c", "b", self.base)
        for text in ("2", "snapshot.name=2", "snapshot.id=1", "snapshot.id=1,snapshot.name=2"):
            ours("convert", "-q", "-l", text, self.base, self.out)
            theirs("compare", "-q", self.out, raw)
        ours("convert", "-q", "-l", "snapshot.id=2", self.base, self.out)
        theirs("compare", "-q", self.out, self.base)
        ours("measure", "-l", "snapshot.id=2", self.base)
        for text in ("snapshot.id=9", "snapshot.id=1,snapshot.name=b", "snapshot.x=1"):
            ours("convert", "-l", text, self.base, self.out, code=1)

    def test_resize_takes_space(self):
        for form, mode in (("raw", "falloc"), ("raw", "full"), ("qcow2", "metadata"),
                           ("qcow2", "falloc"), ("qcow2", "full")):
            for flags in ([], ["-o", "compat=0.10"], ["-o", "extended_l2=on"],
                          ["-o", "data_file=data"])[:1 if form == "raw" else 4]:
                with self.subTest(form=form, mode=mode, flags=flags):
                    (self.folder / "data").unlink(missing_ok=True)
                    theirs("create", "-q", "-f", form, *flags, self.out, "3M")
                    run("qemu-io", "-f", form, "-c", "write -P 5 1M 2M", "-c", "discard 1M 1M",
                        self.out)
                    ours("resize", "-q", "-f", form, f"--preallocation={mode}", self.out, "+2M")
                    place = self.folder / "data" if "data_file=data" in flags else self.out
                    if mode != "metadata":
                        self.assertGreaterEqual(place.stat().st_blocks * 512, 3 * MIB)
                    read = run("qemu-io", "-f", form, "-c", "read -P 5 2M 1M", "-c",
                               "read -P 0 3M 2M", self.out)
                    self.assertNotIn("failed", read.stdout + read.stderr)
                    if form == "qcow2":
                        theirs("check", "-q", self.out)
                        last = json.loads(theirs("map", "--output=json", self.out))[-1]
                        self.assertIn("offset", last)
        ours("resize", "--shrink", "--preallocation=full", "-f", "qcow2", self.out, "1M", code=1)
        ours("create", "-q", "-f", "vdi", self.out, "1M")
        ours("resize", "--preallocation=full", "-f", "vdi", self.out, "2M", code=1)
        self.assertEqual(json.loads(ours("info", "--output=json", self.out))["virtual-size"], MIB)

    def test_what_a_map_calls_present(self):
        def known(text):
            return [{k: v for k, v in e.items() if k != "compressed"} for e in json.loads(text)]
        self.assertEqual(known(ours("map", "--output=json", self.top)),
                         known(theirs("map", "--output=json", self.top)))

    def test_rebase_shares_what_it_reads(self):
        other = self.folder / "other.qcow2"
        shutil.copy(self.base, other)
        raw = self.folder / "raw"
        theirs("convert", self.top, raw)
        with subprocess.Popen(["qemu-io", "-f", "qcow2", other], stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL) as writer:
            time.sleep(0.3)
            ours("rebase", "-q", "-b", "other.qcow2", "-F", "qcow2", self.top, code=1)
            ours("rebase", "-q", "-U", "-T", "none", "-b", "other.qcow2", "-F", "qcow2", self.top)
            writer.communicate()
        theirs("compare", "-q", self.top, raw)

    def test_commit_keeps_a_rate(self):
        run("qemu-io", "-f", "qcow2", "-c", "write -P 6 1M 3M", self.top)
        start = time.monotonic()
        ours("commit", "-q", "-r", "4M", self.top)
        self.assertGreater(time.monotonic() - start, 0.3)
        theirs("check", "-q", self.base)
        ours("commit", "-q", "-r", "0", self.top, code=1)

    def test_bench_flushes(self):
        for flags in ([], ["--no-drain"], ["-n"], ["-i", "native"]):
            ours("bench", "-q", "-w", "-c", "100", "--flush-interval", "10", *flags, self.top)
        ours("bench", "--no-drain", "-w", self.top, code=1)

    def test_an_old_data_file_is_replaced_by_a_whole_one(self):
        data = self.folder / "data"
        data.write_bytes(b"x" * 700)
        form = ("create", "-q", "-f", "qcow2", "-o", "data_file=data,cluster_size=512", self.out)
        ours(*form, "1P", code=1)
        self.assertFalse(self.out.exists())
        self.assertEqual(data.read_bytes(), b"x" * 700)
        self.assertEqual({path.name for path in self.folder.iterdir()},
                         {"base.qcow2", "top.qcow2", "data"})
        ours(*form, "1M")
        self.assertEqual(data.read_bytes(), bytes(MIB))
        theirs("check", "-q", self.out)
        ours("convert", "-q", "-O", "qcow2", "-o", "data_file=data,data_file_raw=on", self.base,
             self.out)
        theirs("compare", "-q", self.out, self.base)
        theirs("compare", "-q", "-f", "raw", data, self.base)

    def test_bitmap_actions_are_done_in_their_order(self):
        mine, other = self.folder / "mine", self.folder / "other"
        for tool, image in ((ours, mine), (theirs, other)):
            shutil.copy(self.base, image)
            tool("bitmap", "--add", image, "b")
            tool("bitmap", "--add", image, "c")
            tool("bitmap", "--disable", "--enable", image, "b")
            tool("bitmap", "--remove", "--add", "-g", "4k", "--merge", "b", "--disable", image, "c")
        bitmaps = [json.loads(theirs("info", "--output=json", image))["format-specific"]["data"]
                   ["bitmaps"] for image in (mine, other)]
        self.assertEqual(*bitmaps)

    def test_what_would_lose_the_disk_is_refused(self):
        before = self.base.read_bytes(), self.top.read_bytes()
        for tool in (ours, theirs):
            tool("resize", "--shrink", self.base, "0", code=1)
            tool("amend", "-o", "backing_file=other.qcow2", self.top, code=1)
            tool("rebase", "-u", "-b", "base.qcow2", "-F", "bogus", self.top, code=1)
        ours("rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", self.top, code=1)
        self.assertEqual(before, (self.base.read_bytes(), self.top.read_bytes()))
        ours("amend", "-o", "backing_file=base.qcow2,lazy_refcounts=on", self.top)
        theirs("check", "-q", self.top)

    def test_an_image_is_not_its_own_target(self):
        for words in (("convert", "-O", "qcow2", self.base, self.base),
                      ("dd", f"if={self.base}", f"of={self.base}")):
            self.assertIn("this command itself", ours(*words, code=1))
        theirs("check", "-q", self.base)

    def test_sizes_are_read_alike(self):
        def made(tool, text):
            self.out.unlink(missing_ok=True)
            done = run(tool, "create", "-q", "-f", "raw", self.out, text, code=None)
            return self.out.stat().st_size if done.returncode == 0 else None
        for text in ("0x1000", "0X2000", "0xaBc00", "1.5k", "512", "2M", "0x10k", "0x", "x1",
                     "0x1.8", "12q", "", "0x8000000000000000"):
            with self.subTest(text):
                self.assertEqual(made(IMG, text), made("qemu-img", text))

    def test_lists_of_options(self):
        for command in ("create", "convert"):
            for word in ("help", "?"):
                text = ours(command, "-o", word, "-f" if command == "create" else "-O", "qcow2")
                self.assertIn("cluster_size=<size>", text)
        ours("amend", "-p", "-q", "-o", "lazy_refcounts=on", self.base)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", required=True)
    known, rest = parser.parse_known_args()
    IMG = os.path.abspath(known.img)
    unittest.main(argv=[__file__, *rest], verbosity=2)
