#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our NBD server under libnbd's and QEMU's clients, our client at nbdkit and qemu-nbd, TLS both
ways, and peers that lie."""

import argparse
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

IMG = "doppel-img"
MIB = 1 << 20
OPTIONS = {"LIST": 3, "GO": 7, "STRUCTURED": 8}


def run(*words, code=0, timeout=60, **more):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False,
                          timeout=timeout, **more)
    if code is not None and done.returncode != code:
        raise AssertionError(f"{words}: exit code {done.returncode}, wanted {code}\n"
                             f"{done.stdout}{done.stderr}")
    return done


def content(size, seed):
    """Data and holes in pieces of 64 KiB, the last one odd."""
    piece = bytes((i * seed + i // 251) & 0xff for i in range(65536))
    out = bytearray()
    while len(out) < size:
        out += piece if (len(out) // 65536 * seed) % 3 else bytes(65536)
    return bytes(out[:size])


class Rig(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-nbd-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.raw = self.folder / "raw"
        self.bytes = content(5 * MIB + 512, 7)
        self.raw.write_bytes(self.bytes)
        self.socket = self.folder / "s"
        self.url = f"nbd+unix:///?socket={self.socket}"

    def qcow2(self, name="disk.qcow2", *options):
        path = self.folder / name
        run("qemu-img", "convert", "-O", "qcow2", *options, self.raw, path)
        return path

    @contextlib.contextmanager
    def server(self, *words, ready=None):
        """A server of any kind on self.socket; yields the process."""
        with subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline = time.monotonic() + 20
                while not (ready or self.socket).exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise AssertionError(f"{words}: {process.stderr.read()}")
                    time.sleep(0.01)
                yield process
            finally:
                process.terminate()
                process.wait(timeout=20)

    def ours(self, image, *options, persistent=True):
        ready = self.folder / "pid"
        for old in (ready, self.socket):
            old.unlink(missing_ok=True)
        return self.server(IMG, "serve", "-k", self.socket, "--pid-file", ready,
                           *(["-t"] if persistent else []), *options, image, ready=ready)


class Serving(Rig):
    def test_nbdinfo_sees_what_there_is(self):
        with self.ours(self.qcow2(), "-f", "qcow2", "-x", "a b", "-D", "a disk", "-A"):
            url = f"nbd+unix:///a%20b?socket={self.socket}"
            facts = json.loads(run("nbdinfo", "--json", url).stdout)["exports"][0]
            self.assertEqual(facts["export-size"], len(self.bytes))
            self.assertEqual(facts["description"], "a disk")
            self.assertEqual(set(facts["contexts"]), {"base:allocation", "qemu:allocation-depth"})
            for flag in ("multi_conn", "trim", "zero", "fua", "flush", "df"):
                self.assertTrue(facts["can_" + flag], flag)
            self.assertEqual(facts["block_size_maximum"], 32 * MIB)
            listed = json.loads(run("nbdinfo", "--json", "--list", self.url).stdout)["exports"]
            self.assertEqual([one["export-name"] for one in listed], ["a b"])
            run("nbdinfo", self.url, code=1)  # the empty name is not exported

    def test_copies_are_equal(self):
        for image, form in ((self.raw, "raw"), (self.qcow2(), "qcow2"),
                            (self.qcow2("packed", "-c"), "qcow2")):
            with self.subTest(image=image.name), self.ours(image, "-f", form, "-r"):
                copy = self.folder / "copy"
                run("nbdcopy", self.url, copy)
                self.assertEqual(copy.read_bytes(), self.bytes)
                run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.url, self.raw)
                run(IMG, "compare", "-f", "raw", "-F", "raw", self.url, self.raw)
                ours = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw",
                                      self.url).stdout)
                theirs = json.loads(run("qemu-img", "map", "--output=json", "-f", form,
                                        image).stdout)
                zeroes = [{(e["start"], e["length"]) for e in m if e["zero"]}
                          for m in (ours, theirs)]
                if form == "qcow2":
                    self.assertEqual(*zeroes)
                self.assertTrue(zeroes[0] or form == "raw")

    def test_clients_write(self):
        for form in ("raw", "qcow2"):
            target = self.folder / f"target.{form}"
            run(IMG, "create", "-q", "-f", form, target, len(self.bytes))
            with self.subTest(form=form), self.ours(target, "-f", form) as server:
                run("nbdcopy", self.raw, self.url)
                run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.url, self.raw)
                run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", self.raw, self.url)
                run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1000 3000", "-c", "flush",
                    "-c", "write -z -u 1M 128k", "-c", "discard 2M 64k",
                    "-c", "aio_write -P 1 3M 4k", "-c", "aio_flush", self.url)
                server.terminate()
                server.wait(timeout=20)
                expected = bytearray(self.bytes)
                expected[1000:4000] = b"\x5a" * 3000
                expected[MIB:MIB + 131072] = bytes(131072)
                expected[3 * MIB:3 * MIB + 4096] = b"\x01" * 4096
                back = self.folder / "back"
                run("qemu-img", "convert", "-f", form, "-O", "raw", target, back)
                got = bytearray(back.read_bytes())
                got[2 * MIB:2 * MIB + 65536] = expected[2 * MIB:2 * MIB + 65536]  # discarded
                self.assertEqual(got, expected)
                if form == "qcow2":
                    run("qemu-img", "check", target)

    def test_many_clients_at_once(self):
        with self.ours(self.qcow2(), "-f", "qcow2"):
            copies = [subprocess.Popen(["nbdcopy", self.url, self.folder / f"copy{i}"])
                      for i in range(4)]
            self.assertEqual([one.wait(timeout=60) for one in copies], [0] * 4)
            for i in range(4):
                self.assertEqual((self.folder / f"copy{i}").read_bytes(), self.bytes)

    def test_read_only_is_read_only(self):
        with self.ours(self.raw, "-f", "raw", "-r"):
            self.assertTrue(json.loads(run("nbdinfo", "--json", self.url).stdout)
                            ["exports"][0]["is_read_only"])
            run("qemu-io", "-f", "raw", "-c", "write 0 4k", self.url, code=1)
            refused = run(IMG, "convert", "-n", "-O", "raw", self.raw, self.url, code=1)
            self.assertIn("read only", refused.stderr)
        self.assertEqual(self.raw.read_bytes(), self.bytes)

    def test_bitmaps_and_snapshots(self):
        image = self.qcow2()
        run("qemu-img", "snapshot", "-c", "before", image)
        run("qemu-img", "bitmap", "--add", image, "b0")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 64k", image)
        with self.ours(image, "-f", "qcow2", "-r", "-B", "b0"):
            done = run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b0", self.url)
            marked = [(e["offset"], e["length"]) for e in json.loads(done.stdout) if e["type"] == 1]
            self.assertEqual(marked, [(MIB, 65536)])
        with self.ours(image, "-f", "qcow2", "-l", "before"):
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.url, self.raw)
        run(IMG, "serve", "-r", "-B", "none", "-k", self.socket, image, code=1)

    def test_ends_as_it_should(self):
        with self.ours(self.raw, "-f", "raw", "-r", persistent=False) as server:
            run("nbdinfo", "--size", self.url)
            self.assertEqual(server.wait(timeout=20), 0)
        self.assertFalse(self.socket.exists())
        size = run("nbdinfo", "--size", "--", "[", IMG, "serve", "-q", "-r", "-f", "raw", self.raw,
                   "]")
        self.assertEqual(int(size.stdout), len(self.bytes))
        with self.ours(self.raw, "-f", "raw", "-r", "-e", "1"), socket.socket(
                socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(self.socket))
            self.assertEqual(first.recv(8), b"NBDMAGIC")
            second.connect(str(self.socket))
            second.settimeout(0.3)
            with self.assertRaises(TimeoutError):
                second.recv(8)
            first.close()
            second.settimeout(20)
            self.assertEqual(second.recv(8), b"NBDMAGIC")

    def test_wrong_words(self):
        for words, part in (([], "wanted: FILE"), (["-k", "x" * 200, self.raw], "too long"),
                            (["-k", "s", "-p", "1", self.raw], "-k is a unix socket"),
                            (["-e", "many", self.raw], "-e is 'many'"),
                            (["--tls-creds", "t", self.raw], "no TLS object"),
                            (["--object", "rng,id=1", self.raw], "type 'rng' is unknown"),
                            (["-p", "10809", "-b", "no.such.host.invalid", self.raw], "address"),
                            (["-k", self.folder / "no" / "s", self.raw], "make the socket"),
                            (["-k", self.raw, self.raw], "make the socket"),
                            (["-l", "none", "-k", self.socket, self.raw], "no internal snapshots")):
            done = run(IMG, "serve", *words, code=1)
            self.assertIn(part, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)
        self.assertEqual(self.raw.read_bytes(), self.bytes)


class Connecting(Rig):
    SERVERS = (
        ("qemu-nbd", "-t", "-e", "16", "-k", "SOCKET", "-f", "qcow2", "QCOW2"),
        ("nbdkit", "-f", "-U", "SOCKET", "file", "RAW"),
        ("nbdkit", "-f", "-U", "SOCKET", "--no-sr", "file", "RAW"),
        ("nbdkit", "-f", "-U", "SOCKET", "--mask-handshake=0", "file", "RAW"),
        ("nbdkit", "-f", "-U", "SOCKET", "--filter=noextents", "file", "RAW"),
        ("nbdkit", "-f", "-U", "SOCKET", "--filter=blocksize-policy", "file", "RAW",
         "blocksize-minimum=512", "blocksize-maximum=64K", "blocksize-error-policy=error"),
    )

    def start(self, words):
        names = {"SOCKET": self.socket, "RAW": self.raw}
        if "QCOW2" in words:
            names["QCOW2"] = self.qcow2("served.qcow2")
        self.socket.unlink(missing_ok=True)
        return self.server(*[names.get(w, w) for w in words])

    def test_reads_from_every_server(self):
        for words in self.SERVERS:
            with self.subTest(server=words), self.start(words):
                run(IMG, "compare", "-f", "raw", "-F", "raw", self.url, self.raw)
                copy = self.folder / "copy"
                run(IMG, "convert", "-f", "raw", "-O", "qcow2", self.url, copy)
                run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.raw, copy)
                run("qemu-img", "check", copy)
                self.assertIn(str(len(self.bytes)), run(IMG, "info", "-f", "raw", self.url).stdout)
                run(IMG, "map", "-f", "raw", self.url)

    def test_writes_to_every_server(self):
        other = self.folder / "other"
        wanted = content(len(self.bytes), 11)
        other.write_bytes(wanted)
        for words in self.SERVERS:
            with self.subTest(server=words), self.start(words):
                run(IMG, "convert", "-n", "-f", "raw", "-O", "raw", other, self.url)
                run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.url, other)
                run(IMG, "convert", "-f", "raw", "-O", "raw", other, self.url)
                run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.url, other)
            self.raw.write_bytes(self.bytes)

    def test_a_qcow2_image_in_an_export(self):
        with self.server("nbdkit", "-f", "-U", self.socket, "memory", "16M"):
            run(IMG, "convert", "-f", "raw", "-O", "qcow2", self.raw, self.url)
            run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.raw, self.url)
            run(IMG, "check", "-f", "qcow2", self.url)
            run(IMG, "snapshot", "-c", "s", self.url)
            run("qemu-img", "check", "-f", "qcow2", self.url)
            full = run(IMG, "create", "-f", "raw", self.url, "17M", code=1)
            self.assertIn("17825792 are needed", full.stderr)

    def test_errors_of_a_server(self):
        with self.server("nbdkit", "-f", "-U", self.socket, "--filter=error", "file", self.raw,
                         "error-pread=EIO", "error-pread-rate=100%"):
            done = run(IMG, "convert", "-f", "raw", "-O", "raw", self.url, self.folder / "out",
                       code=1)
            self.assertIn("input/output error", done.stderr)
            self.assertFalse((self.folder / "out").exists())
        with self.ours(self.raw, "-f", "raw", "-r"):
            done = run(IMG, "info", f"nbd+unix:///none?socket={self.socket}", code=1)
            self.assertIn("no such export", done.stderr)

    def test_wrong_urls(self):
        for url, part in (("nbd://localhost:0/", "no port"), ("nbd://[::1/", "no ']'"),
                          ("nbd+unix:///", "socket is missing"), ("nbds://localhost/", "TLS wants"),
                          ("nbd://localhost/%zz", "no %XX"), ("nbd://x/?color=1", "unknown"),
                          (f"nbd+unix:///?socket={self.folder}/none", "connect to"),
                          ("nbd://localhost:1/", "connect to"),
                          ("nbd+unix:///?socket=/s&tls-psk-file=/p", "belongs to nbds")):
            done = run(IMG, "info", url, code=1)
            self.assertIn(part, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)


class Tls(Rig):
    def setUp(self):
        super().setUp()
        self.certificates = self.folder / "pki"
        self.certificates.mkdir()
        self.psk = self.folder / "psk"
        self.psk.mkdir()
        (self.psk / "keys.psk").write_text("alice:" + "5a" * 32 + "\nqemu:" + "a5" * 32 + "\n")
        self.make_authority(self.certificates)

    def make_authority(self, folder):
        def openssl(*words):
            run("openssl", *words, cwd=folder)
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca",
                "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
        for who in ("server", "client"):
            openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout",
                    f"{who}-key.pem", "-out", f"{who}.csr")
            (folder / "extensions").write_text("subjectAltName=DNS:localhost\n")
            openssl("x509", "-req", "-in", f"{who}.csr", "-CA", "ca-cert.pem", "-CAkey",
                    "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out",
                    f"{who}-cert.pem")

    def test_certificates(self):
        creds = f"tls-creds-x509,id=t,dir={self.certificates},endpoint=server"
        url = f"nbds+unix:///?socket={self.socket}&tls-certificates={self.certificates}"
        with self.ours(self.raw, "-f", "raw", "-r", "--tls-creds", "t", "--object", creds):
            self.assertEqual(int(run("nbdinfo", "--size", url).stdout), len(self.bytes))
            copy = self.folder / "copy"
            run("nbdcopy", url, copy)
            self.assertEqual(copy.read_bytes(), self.bytes)
            run(IMG, "compare", "-f", "raw", "-F", "raw", url, self.raw)
            run("qemu-img", "compare", "--object",
                f"tls-creds-x509,id=c,dir={self.certificates},endpoint=client", "--image-opts",
                f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={self.socket},"
                "file.tls-creds=c,file.tls-hostname=localhost",
                f"driver=raw,file.driver=file,file.filename={self.raw}")
            refused = run(IMG, "info", self.url, code=1)
            self.assertIn("wants TLS", refused.stderr)
            run("nbdinfo", "--size", self.url, code=1)
            wrong = run(IMG, "info", url + "&tls-hostname=example.org", code=1)
            self.assertIn("TLS", wrong.stderr)
            stranger = self.folder / "stranger"
            stranger.mkdir()
            self.make_authority(stranger)
            run(IMG, "info", f"nbds+unix:///?socket={self.socket}&tls-certificates={stranger}",
                code=1)
            run("nbdinfo", "--size", url)  # it goes on

    def test_keys(self):
        creds = f"tls-creds-psk,id=t,dir={self.psk},endpoint=server"
        url = f"nbds+unix://USER@/?socket={self.socket}&tls-psk-file={self.psk}/keys.psk"
        with self.ours(self.raw, "-f", "raw", "-r", "--tls-creds", "t", "--object", creds):
            alice = url.replace("USER", "alice")
            self.assertEqual(int(run("nbdinfo", "--size", alice).stdout), len(self.bytes))
            run(IMG, "compare", "-f", "raw", "-F", "raw", alice, self.raw)
            done = run(IMG, "info", url.replace("USER", "mallory"), code=1)
            self.assertIn("no key of user 'mallory'", done.stderr)
            other = self.folder / "other.psk"
            other.write_text("alice:" + "00" * 32 + "\n")
            run(IMG, "info", f"nbds+unix://alice@/?socket={self.socket}&tls-psk-file={other}",
                code=1)

    def test_our_client_at_others(self):
        with self.server("nbdkit", "-f", "-U", self.socket, "--tls=require",
                         f"--tls-certificates={self.certificates}", "file", self.raw):
            run(IMG, "compare", "-f", "raw", "-F", "raw",
                f"nbds+unix:///?socket={self.socket}&tls-certificates={self.certificates}",
                self.raw)
        self.socket.unlink(missing_ok=True)
        with self.server("qemu-nbd", "-t", "-r", "-k", self.socket, "-f", "raw", "--object",
                         f"tls-creds-psk,id=t,dir={self.psk},endpoint=server", "--tls-creds", "t",
                         self.raw):
            run(IMG, "compare", "-f", "raw", "-F", "raw",
                f"nbds+unix://alice@/?socket={self.socket}&tls-psk-file={self.psk}/keys.psk",
                self.raw)


def greeting(flags=3):
    return b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags)


def answer(option, kind, data=b""):
    return struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data)) + data


class Lies(Rig):
    """A client of ours meets these servers, a server of ours these clients."""

    def fake_server(self, talk):
        listener = socket.socket(socket.AF_UNIX)
        self.socket.unlink(missing_ok=True)
        listener.bind(str(self.socket))
        listener.listen()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.settimeout(10)
                        talk(peer)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        return listener

    @staticmethod
    def export(peer, size=MIB, flags=1, structured=True, infos=b""):
        """Shakes hands as a good server does."""
        peer.sendall(greeting())
        peer.recv(4)
        while True:
            head = b""
            while len(head) < 16:
                head += peer.recv(16 - len(head)) or exit(0)
            option, length = struct.unpack(">8xII", head)
            peer.recv(length)
            if option == OPTIONS["STRUCTURED"]:
                peer.sendall(answer(option, 1 if structured else 0x80000001))
            elif option == OPTIONS["GO"]:
                peer.sendall(answer(option, 3, struct.pack(">HQH", 0, size, flags)) + infos +
                             answer(option, 1))
                return
            else:
                peer.sendall(answer(option, 0x80000001))

    def replies(self, make, structured=True, flags=1):
        """To each request what `make` says about its cookie, offset and length."""
        def talk(peer):
            self.export(peer, structured=structured, flags=flags)
            while True:
                head = b""
                while len(head) < 28:
                    got = peer.recv(28 - len(head))
                    if not got:
                        return
                    head += got
                cookie, offset, length = struct.unpack(">8xQQI", head)
                peer.sendall(make(cookie, offset, length))
        return talk

    def test_servers(self):
        def chunk(flags, kind, cookie, data):
            return struct.pack(">IHHQI", 0x668e33ef, flags, kind, cookie, len(data)) + data

        def data(cookie, offset, length, **more):
            return chunk(more.get("flags", 1), 1, cookie,
                         struct.pack(">Q", offset) + bytes(length))
        opt = OPTIONS["STRUCTURED"]
        talks = {
            "silence": lambda peer: None,
            "noise": lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 50),
            "old style": lambda peer: peer.sendall(b"NBDMAGIC" +
                                                   struct.pack(">QQI124x", 0x420281861253, 9, 0)),
            "half a greeting": lambda peer: peer.sendall(greeting()[:9]),
            "a huge answer": lambda peer: (peer.sendall(greeting()), peer.sendall(
                struct.pack(">QIII", 0x3e889045565a9, opt, 1, 0xfffffff0)), peer.recv(1 << 16)),
            "another option's answer": lambda peer: (peer.sendall(greeting() + answer(99, 1)),
                                                     peer.recv(1 << 16)),
            "infos without end": lambda peer: self.export(
                peer, infos=answer(7, 3, struct.pack(">H", 99)) * 5000),
            "a huge export": lambda peer: self.export(peer, size=1 << 63),
            "blocks of 3": lambda peer: self.export(
                peer, infos=answer(7, 3, struct.pack(">HIII", 3, 3, 3, 3))),
            "hangs up": lambda peer: (self.export(peer), peer.recv(28)),
            "no magic": self.replies(lambda c, o, n: b"\0" * 64),
            "another cookie": self.replies(lambda c, o, n: data(c + 1, o, n)),
            "data elsewhere": self.replies(lambda c, o, n: data(c, o + n, n)),
            "data before": self.replies(lambda c, o, n: data(c, (o - 1) & (2**64 - 1), n)),
            "too much": self.replies(lambda c, o, n: data(c, o, n + 1)),
            "too little": self.replies(lambda c, o, n: data(c, o, n - 1)),
            "nothing": self.replies(lambda c, o, n: chunk(1, 0, c, b"")),
            "twice": self.replies(lambda c, o, n: data(c, o, n, flags=0) + data(c, o, n)),
            "overlap": self.replies(lambda c, o, n: data(c, o, n // 2, flags=0) +
                                    data(c, o + 1, n // 2, flags=0)),
            "a huge hole": self.replies(lambda c, o, n: chunk(
                1, 2, c, struct.pack(">QI", o, 0xffffffff))),
            "a huge chunk": self.replies(lambda c, o, n: struct.pack(
                ">IHHQI", 0x668e33ef, 1, 1, c, 0xffffffff)),
            "an error without one": self.replies(lambda c, o, n: chunk(
                1, 0x8001, c, struct.pack(">IH", 0, 0))),
            "status for data": self.replies(lambda c, o, n: chunk(1, 5, c, bytes(12))),
            "simple for structured": self.replies(lambda c, o, n: struct.pack(
                ">IIQ", 0x67446698, 0, c) + bytes(n)),
            "structured for simple": self.replies(data, structured=False),
        }
        for name, talk in talks.items():
            with self.subTest(server=name), self.fake_server(talk):
                out = self.folder / "out"
                done = run(IMG, "convert", "-f", "raw", "-O", "raw", self.url, out, code=1,
                           timeout=20)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
                self.assertFalse(out.exists())

    def test_an_answer_before_the_data_was_taken(self):
        """A write's buffer is in use until it has left: the answer must not free it."""
        def talk(peer):
            self.export(peer, size=64 * MIB, structured=False)
            head = peer.recv(28)
            peer.sendall(struct.pack(">IIQ", 0x67446698, 0, struct.unpack(">8xQ", head[:16])[0]))
            time.sleep(0.5)
        big = self.folder / "big"
        with open(big, "wb") as file:
            file.write(os.urandom(64 * MIB))
        with self.fake_server(talk):
            done = run(IMG, "convert", "-n", "-f", "raw", "-O", "raw", big, self.url, code=1,
                       timeout=20)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_clients(self):
        def option(kind, data, length=None):
            return b"IHAVEOPT" + struct.pack(">II", kind, len(data) if length is None else length) \
                + data
        go = option(7, struct.pack(">IH", 0, 0))
        start = struct.pack(">I", 3)

        def request(kind, flags=0, offset=0, length=0, magic=0x25609513):
            return struct.pack(">IHHQQI", magic, flags, kind, 5, offset, length)
        words = {
            "nothing": b"", "noise": os.urandom(4096), "unknown flags": struct.pack(">I", 0xffff),
            "no magic": start + b"x" * 16, "a huge option": start + option(3, b"", 0xffffffff),
            "a long option": start + option(3, bytes(200000)),
            "go with lies": start + option(7, struct.pack(">IH", 0xffffffff, 0)),
            "go with infos missing": start + option(7, struct.pack(">IH", 0, 0xffff)),
            "contexts with lies": start + option(8, b"") + option(
                10, struct.pack(">III", 0, 0xffffffff, 0xffffffff)),
            "options without end": start + option(3, b"") * 3000,
            "a request's magic": start + go + request(0, magic=1),
            "an unknown command": start + go + request(99) + request(2),
            "unknown flags of a request": start + go + request(0, flags=0xffff, length=10) +
            request(2),
            "a read past the end": start + go + request(0, offset=1 << 63, length=10) + request(2),
            "a read that wraps": start + go + request(0, offset=2**64 - 4, length=8) + request(2),
            "a huge read": start + go + request(0, length=0xffffffff) + request(2),
            "a huge write": start + go + request(1, length=0xffffffff),
            "half a write": start + go + request(1, length=4096) + b"x" * 100,
            "status without contexts": start + go + request(7, length=512) + request(2),
            "flush with a range": start + go + request(3, offset=1, length=1) + request(2),
        }
        with self.ours(self.raw, "-f", "raw", "-r") as server:
            for name, sent in words.items():
                with self.subTest(client=name), socket.socket(socket.AF_UNIX) as peer:
                    peer.settimeout(10)
                    peer.connect(str(self.socket))
                    with contextlib.suppress(OSError):
                        peer.sendall(sent)
                        peer.shutdown(socket.SHUT_WR)
                        while peer.recv(1 << 16):
                            pass
                self.assertIsNone(server.poll(), name)
            with socket.socket(socket.AF_UNIX) as deaf:  # asks for much and takes nothing
                deaf.connect(str(self.socket))
                deaf.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    deaf.sendall(start + go)
                    for _ in range(4000):
                        deaf.sendall(request(0, length=MIB))
                time.sleep(0.5)
                status = Path(f"/proc/{server.pid}/status").read_text()
                resident = int(status.split("VmRSS:")[1].split()[0])
                self.assertLess(resident, 200 << 10)
            self.assertEqual(int(run("nbdinfo", "--size", self.url).stdout), len(self.bytes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", default=IMG)
    arguments, rest = parser.parse_known_args()
    IMG = arguments.img
    unittest.main(argv=[sys.argv[0], *rest])
