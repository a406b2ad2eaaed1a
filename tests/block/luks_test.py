#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Encrypted images: what we make is opened by qemu-img and cryptsetup, what they make by us; keys
come and go; a wrong passphrase is one sentence. Secrets in every form."""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import nbd_rig
from commands import run
from nbd_rig import IMG, MIB, content

QUICK = "iter-time=10"  # ms: the default's 2 s would only make the test slow
CLOCK = ""


def make(*words):
    """qemu-img gets a clock by which measuring the processor is short: see qemu_clock.c."""
    run(*words, env={**os.environ, "LD_PRELOAD": CLOCK})


class Rig(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-luks-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.raw = self.folder / "raw"
        self.raw.write_bytes(content(3 * MIB + 512, 7))
        self.keys = {}
        for name in ("first", "second", "wrong"):
            (self.folder / name).write_bytes(b"passphrase " + name.encode())

    def secret(self, name="first"):
        return ["--object", f"secret,id={name},file={self.folder / name}"]

    def opts(self, path, key="first", form="qcow2", **more):
        words = {"driver": form, "file.filename": path,
                 ("encrypt." if form == "qcow2" else "") + "key-secret": key, **more}
        return ",".join(f"{k}={v}" for k, v in words.items() if v is not None)

    def compare(self, program, path, form="qcow2", key="first", raw=None, code=0):
        return run(program, "compare", *self.secret(key), "--image-opts",
                   self.opts(path, key, form), f"driver=raw,file.filename={raw or self.raw}",
                   code=code)

    def unlocks(self, path, key, code=0):
        """cryptsetup tries the passphrase in that file."""
        return run("cryptsetup", "open", "--test-passphrase", "--type", "luks1", "--key-file",
                   self.folder / key, path, code=code)


CIPHERS = ((), ("cipher-alg=aes-128",), ("cipher-mode=cbc", "ivgen-alg=essiv",
                                         "ivgen-hash-alg=sha256"),
           ("cipher-mode=cbc", "ivgen-alg=plain64", "hash-alg=sha1"),
           ("hash-alg=sha512", "ivgen-alg=plain"))


class Volumes(Rig):
    """The format luks."""

    def convert(self, program, target, *options, key="first"):
        words = [f"key-secret={key}", QUICK, *options]
        make(program, "convert", *self.secret(key), "-O", "luks", "-o", ",".join(words), self.raw,
            target)

    def test_ours_in_other_hands(self):
        for options in CIPHERS:
            with self.subTest(options=options):
                image = self.folder / "ours"
                self.convert(IMG, image, *options)
                self.compare("qemu-img", image, "luks")
                self.compare(IMG, image, "luks")
                dump = run("cryptsetup", "luksDump", image).stdout
                self.assertIn("Key Slot 0: ENABLED", dump)
                self.assertEqual(dump.count("DISABLED"), 7)
                self.unlocks(image, "first")
                self.unlocks(image, "wrong", code=2)

    def test_a_cipher_that_qemu_fails_on(self):
        """Its key material is no whole sectors, and QEMU 7.2 aborts."""
        image = self.folder / "ours"
        self.convert(IMG, image, "cipher-mode=cbc", "cipher-alg=aes-192")
        self.unlocks(image, "first")
        self.compare(IMG, image, "luks")

    def test_theirs_in_our_hands(self):
        for options in CIPHERS:
            with self.subTest(options=options):
                image = self.folder / "theirs"
                self.convert("qemu-img", image, *options)
                self.compare(IMG, image, "luks")
                plain = self.folder / "plain"
                run(IMG, "convert", *self.secret(), "--image-opts", "-O", "raw",
                    self.opts(image, form="luks"), plain)
                self.assertEqual(plain.read_bytes(), self.raw.read_bytes())

    def test_a_volume_of_cryptsetup(self):
        image = self.folder / "volume"
        image.write_bytes(bytes(8 * MIB))
        run("cryptsetup", "luksFormat", "--type", "luks1", "-q",  # unmeasured
            "--pbkdf-force-iterations", "1000", "--key-file", self.folder / "first", image)
        run(IMG, "convert", "-n", *self.secret(), "--target-image-opts", self.raw,
            self.opts(image, form="luks"))
        self.unlocks(image, "first")
        run("qemu-img", "compare", *self.secret(), "--image-opts", self.opts(image, form="luks"),
            self.opts(image, form="luks", **{"file.driver": "file"}))
        back = self.folder / "back"
        run("qemu-img", "convert", *self.secret(), "--image-opts", "-O", "raw",
            self.opts(image, form="luks"), back)
        self.assertEqual(back.read_bytes()[:len(self.raw.read_bytes())], self.raw.read_bytes())
        facts = json.loads(run(IMG, "info", "--output=json", image).stdout)
        self.assertEqual(facts["format"], "luks")
        self.assertTrue(facts["encrypted"])

    def test_version_2_is_refused(self):
        image = self.folder / "volume"
        image.write_bytes(bytes(20 * MIB))
        run("cryptsetup", "luksFormat", "--type", "luks2", "-q", "--pbkdf", "pbkdf2",
            "--pbkdf-force-iterations", "1000", "--key-file", self.folder / "first", image)
        done = run(IMG, "info", image, code=1)
        self.assertIn("LUKS version 2 is not known here", done.stderr)

    def test_keys_come_and_go(self):
        image = self.folder / "ours"
        self.convert(IMG, image)
        run(IMG, "amend", *self.secret(), *self.secret("second"), "-o",
            f"state=active,new-secret=second,keyslot=5,{QUICK}", "--image-opts",
            self.opts(image, form="luks"))
        self.unlocks(image, "second")
        self.compare("qemu-img", image, "luks", "second")
        active = [s["active"] for s in json.loads(run(IMG, "info", "--output=json", image).stdout)
                  ["format-specific"]["data"]["slots"]]
        self.assertEqual(active, [True, False, False, False, False, True, False, False])
        run("qemu-img", "amend", *self.secret("second"), "-o",
            "state=inactive,old-secret=second", "--image-opts", self.opts(image, "second", "luks"),
            code=None)
        run(IMG, "amend", *self.secret("first"), "-o", "state=inactive,old-secret=first", "-f",
            "luks", image, code=None)
        left = [n for n in ("first", "second") if self.unlocks(image, n, code=None).returncode == 0]
        self.assertEqual(len(left), 1)  # the last one stays
        last = run(IMG, "amend", *self.secret(left[0]), "-o",
                   f"state=inactive,old-secret={left[0]}", "-f", "luks", image, code=1)
        self.assertIn("no passphrase would be left", last.stderr)
        self.unlocks(image, left[0])
        run(IMG, "amend", "--force", *self.secret(left[0]), "-o",
            f"state=inactive,old-secret={left[0]}", "-f", "luks", image)
        self.unlocks(image, left[0], code=None)
        self.assertNotIn("ENABLED", run("cryptsetup", "luksDump", image).stdout)

    def test_what_is_not_written_and_what_grows(self):
        image = self.folder / "ours"
        run(IMG, "create", "-q", *self.secret(), "-f", "luks", "-o",
            f"key-secret=first,{QUICK},preallocation=full", image, "1M")
        zeroes = self.folder / "zeroes"
        zeroes.write_bytes(bytes(MIB))
        self.compare("qemu-img", image, "luks", raw=zeroes)
        run(IMG, "resize", "-q", *self.secret(), "--image-opts", self.opts(image, form="luks"),
            "2M")
        zeroes.write_bytes(bytes(2 * MIB))
        self.compare("qemu-img", image, "luks", raw=zeroes)
        need = json.loads(run(IMG, "measure", "-O", "luks", "--output=json", "--size", "2M",
                              ).stdout)
        self.assertEqual(need["required"], image.stat().st_size)


class Qcow2(Rig):
    def convert(self, program, target, *options):
        words = ["encrypt.format=luks", "encrypt.key-secret=first", "encrypt." + QUICK, *options]
        make(program, "convert", *self.secret(), "-O", "qcow2", "-o", ",".join(words), self.raw,
            target)

    def test_ours_in_other_hands(self):
        for options in ((), ("cluster_size=512",), ("cluster_size=2M",), ("extended_l2=on",),
                        ("compat=0.10",), ("encrypt.cipher-mode=cbc", "encrypt.ivgen-alg=essiv"),
                        ("preallocation=metadata",)):
            with self.subTest(options=options):
                image = self.folder / "ours.qcow2"
                self.convert(IMG, image, *options)
                self.compare("qemu-img", image)
                self.compare(IMG, image)
                run("qemu-img", "check", *self.secret(), "--image-opts", self.opts(image))
                run(IMG, "check", image)

    def test_theirs_in_our_hands(self):
        for options in ((), ("cluster_size=4k",), ("extended_l2=on",)):
            with self.subTest(options=options):
                image = self.folder / "theirs.qcow2"
                self.convert("qemu-img", image, *options)
                self.compare(IMG, image)
                run(IMG, "check", image)
                run("qemu-io", *self.secret(), "--image-opts", "-c", "write -P 7 1000 70000",
                    "-c", "write -z 1M 100k", self.opts(image))
                flat = self.folder / "flat"
                run("qemu-img", "convert", *self.secret(), "--image-opts", "-O", "raw",
                    self.opts(image), flat)
                self.compare(IMG, image, raw=flat)

    def test_the_same_facts(self):
        image = self.folder / "ours.qcow2"
        self.convert(IMG, image)
        ours, theirs = (json.loads(run(p, "info", "--output=json", image).stdout)
                        for p in (IMG, "qemu-img"))
        self.assertEqual(ours["format-specific"], theirs["format-specific"])
        self.assertTrue(ours["encrypted"] and theirs["encrypted"])
        self.assertIn("encrypted: yes", run(IMG, "info", image).stdout)
        self.assertEqual([e.get("offset") for e in
                          json.loads(run(IMG, "map", "--output=json", image).stdout)
                          if e["data"]].count(None) > 0, True)

    def test_written_over_nbd(self):
        """Writes of any alignment, snapshots, a resize; qemu-img judges."""
        image = self.folder / "ours.qcow2"
        self.convert(IMG, image, "cluster_size=4k")
        socket = self.folder / "s"
        run(IMG, "serve", "--fork", "-q", "-k", socket, *self.secret(), "--image-opts",
            self.opts(image))
        steps = ["write -P 1 1 511", "write -P 2 5000 10", "write -P 3 100k 300k",
                 "write -z 200k 9000", "discard 1M 64k", "write -P 4 2M 1", "flush"]
        words = [w for step in steps for w in ("-c", step)]
        run("qemu-io", "-f", "raw", *words, f"nbd+unix:///?socket={socket}")
        with open(self.raw, "r+b") as model:
            for at, byte, length in ((1, 1, 511), (5000, 2, 10), (100 << 10, 3, 300 << 10),
                                     (200 << 10, 0, 9000), (MIB, 0, 65536), (2 * MIB, 4, 1)):
                model.seek(at)
                model.write(bytes([byte]) * length)
        self.wait_closed(socket)
        self.compare("qemu-img", image)
        run(IMG, "snapshot", "-c", "s", image)
        run(IMG, "resize", "-q", image, "4M")
        run("qemu-img", "check", *self.secret(), "--image-opts", self.opts(image))
        with open(self.raw, "r+b") as model:
            model.truncate(4 * MIB)
        self.compare("qemu-img", image)

    @staticmethod
    def wait_closed(socket):
        for _ in range(400):
            if not socket.exists():
                return
            run("sleep", "0.05")
        raise AssertionError("the server does not end")

    def test_keys_come_and_go(self):
        image = self.folder / "ours.qcow2"
        self.convert(IMG, image)
        run(IMG, "amend", *self.secret(), *self.secret("second"), "-o",
            f"encrypt.state=active,encrypt.new-secret=second,encrypt.{QUICK}", "--image-opts",
            self.opts(image))
        self.compare("qemu-img", image, key="second")
        run("qemu-img", "amend", *self.secret(), "-o",
            "encrypt.state=inactive,encrypt.old-secret=first", "--image-opts", self.opts(image))
        self.compare(IMG, image, key="second")
        refused = self.compare(IMG, image, code=2)
        self.assertIn("the passphrase is wrong", refused.stderr)
        run(IMG, "check", image)

    def test_chains(self):
        base = self.folder / "base.qcow2"
        self.convert(IMG, base)
        top = self.folder / "top.qcow2"
        run(IMG, "create", "-q", *self.secret("second"), "-f", "qcow2", "-b", base, "-F", "qcow2",
            "-o", f"encrypt.format=luks,encrypt.key-secret=second,encrypt.{QUICK}", top)
        names = self.opts(top, "second", **{"backing.encrypt.key-secret": "first"})
        both = [*self.secret(), *self.secret("second")]
        run("qemu-io", *both, "--image-opts", "-c", "write -P 9 64k 3000", names)
        flat = self.folder / "flat"
        run("qemu-img", "convert", *both, "--image-opts", "-O", "raw", names, flat)
        run(IMG, "compare", *both, "--image-opts", names, f"driver=raw,file.filename={flat}")
        refused = self.compare(IMG, top, key="second", code=2)
        self.assertIn("base.qcow2' is encrypted", refused.stderr)
        run(IMG, "commit", "-q", *both, "--image-opts", names)
        self.compare("qemu-img", base, raw=flat)
        run("qemu-img", "check", *self.secret(), "--image-opts", self.opts(base))


class Secrets(Rig):
    def setUp(self):
        super().setUp()
        self.image = self.folder / "image"
        make("qemu-img", "create", "-q", *self.secret(), "-f", "luks", "-o",
            f"key-secret=first,{QUICK}", self.image, "64k")
        self.phrase = (self.folder / "first").read_bytes()

    def read(self, *objects, code=0):
        return run(IMG, "bench", "-q", "-c", "1", *[w for o in objects for w in ("--object", o)],
                   "--image-opts", self.opts(self.image, "s", "luks"), code=code)

    def test_every_form(self):
        coded = base64.b64encode(self.phrase).decode()
        (self.folder / "coded").write_text(coded + "\n")
        self.read("secret,id=s,data=" + self.phrase.decode())
        self.read(f"secret,id=s,format=base64,data={coded}")
        self.read(f"secret,id=s,format=base64,file={self.folder / 'coded'}")
        # Under the other key, fixed like this one, the last byte is 0x9a: no padding by chance.
        key, iv = bytes(range(32)), bytes(range(16))
        sealed = subprocess.run(["openssl", "enc", "-aes-256-cbc", "-K", key.hex(), "-iv",
                                 iv.hex()], input=self.phrase, capture_output=True,
                                check=True).stdout
        master = f"secret,id=m,format=base64,data={base64.b64encode(key).decode()}"
        inner = (f"secret,id=s,keyid=m,format=base64,data={base64.b64encode(sealed).decode()},"
                 f"iv={base64.b64encode(iv).decode()}")
        self.read(master, inner)
        other = f"secret,id=m,format=base64,data={base64.b64encode(bytes(32)).decode()}"
        self.assertIn("does not decrypt", self.read(other, inner, code=1).stderr)
        name = json.dumps({"driver": "luks", "key-secret": "s",
                           "file": {"driver": "file", "filename": str(self.image)}})
        run(IMG, "bench", "-q", "-c", "1", "--object", "secret,id=s,data=" + self.phrase.decode(),
            "json:" + name)

    def test_wrong_words(self):
        for objects, part in (
                (["secret,id=s,data=nonsense"], "the passphrase is wrong"),
                (["secret,id=t,data=x"], "no secret with the id 's'"),
                (["secret,id=s"], "either data=… or file=FILE"),
                (["secret,id=s,data=x,file=y"], "either data=… or file=FILE"),
                (["secret,id=s,file=/no/such"], "open '/no/such'"),
                (["secret,id=s,data=x,format=hex"], "format 'hex'"),
                (["secret,id=s,data=x=y,format=base64"], "not base64"),
                (["secret,id=s,data="], "secret 's' is empty"),
                (["secret,id=s,data=x,keyid=none"], "no secret with the id 'none'"),
                (["secret,id=s,colour=red,data=x"], "no property 'colour'"),
                (["secret,data=x"], "has no id")):
            done = self.read(*objects, code=1)
            self.assertIn(part, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)
        plain = run(IMG, "convert", "-O", "raw", self.image, self.folder / "out", code=1)
        self.assertIn("is encrypted", plain.stderr)
        self.assertFalse((self.folder / "out").exists())
        for words, part in ((["-f", "luks"], "key-secret is missing"),
                            (["-f", "qcow2", "-o", "encrypt.format=aes"], "encrypt.format 'aes'"),
                            (["-f", "qcow2", "-o", "encrypt.key-secret=first"],
                             "wants encrypt.format=luks"),
                            (["-f", "luks", "-o", "key-secret=first,cipher-alg=des"], "'des'"),
                            (["-f", "luks", "-o", "key-secret=first,iter-time=0"], "iter-time"),
                            (["-f", "luks", "-o", "key-secret=first,hash-alg=md5"], "'md5'")):
            done = run(IMG, "create", *self.secret(), *words, self.folder / "new", "1M", code=1)
            self.assertIn(part, done.stderr)
            self.assertFalse((self.folder / "new").exists())
        for name, part in (("json:{\"driver\":", "should be a value"), ("json:[]", "an object"),
                           ("json:{}", "name of the file is missing"),
                           ("json:{\"driver\":\"luks\",\"file\":{\"driver\":\"ftp\"}}", "'ftp'")):
            self.assertIn(part, run(IMG, "info", name, code=1).stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--qemu-clock", default=CLOCK)
    arguments, sys.argv[1:] = parser.parse_known_args()
    CLOCK = arguments.qemu_clock
    nbd_rig.main()
