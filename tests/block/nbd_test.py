#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our NBD server under libnbd's and QEMU's clients, our client at nbdkit and qemu-nbd, TLS both
ways."""

import json
import os
import signal
import socket
import subprocess
import time

from commands import run
from nbd_rig import IMG, MIB, Rig, content, main


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

    def test_in_the_background(self):
        pid = self.folder / "pid"
        done = run(IMG, "serve", "--fork", "-t", "-k", self.socket, "--pid-file", pid, "-f", "raw",
                   self.raw)  # returns, and lets go of our pipes
        self.assertIn("serving", done.stdout)
        number = int(pid.read_text())
        try:
            self.assertEqual(os.getsid(number), number)
            self.assertEqual(int(run("nbdinfo", "--size", self.url).stdout), len(self.bytes))
            again = run(IMG, "serve", "--fork", "-k", self.folder / "other", "-f", "raw", self.raw,
                        code=1)
            self.assertIn("in use", again.stderr)
            self.assertFalse((self.folder / "other").exists())
        finally:
            os.kill(number, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while self.socket.exists():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def test_a_client_that_does_not_finish_the_handshake(self):
        with self.ours(self.raw, "-f", "raw", "-r", "-e", "1", "--handshake-limit",
                       "1") as server, socket.socket(socket.AF_UNIX) as mute:
            mute.connect(str(self.socket))
            mute.settimeout(20)
            self.assertEqual(len(mute.recv(18)), 18)
            self.assertEqual(mute.recv(1), b"")  # and its place is free:
            self.assertEqual(int(run("nbdinfo", "--size", self.url).stdout), len(self.bytes))
            server.terminate()
            self.assertIn("its handshake takes more than 1 s", server.stderr.read())

    def test_wrong_words(self):
        for words, part in (([], "wanted: FILE"), (["-k", "x" * 200, self.raw], "too long"),
                            (["-k", "s", "-p", "1", self.raw], "-k is a unix socket"),
                            (["-e", "many", self.raw], "-e is 'many'"),
                            (["--handshake-limit", "x", self.raw], "--handshake-limit is 'x'"),
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
                          ("nbd://x/?timeout=soon", "timeout is 'soon'"),
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

    def test_writes(self):
        creds = f"tls-creds-x509,id=t,dir={self.certificates},endpoint=server"
        url = f"nbds+unix:///?socket={self.socket}&tls-certificates={self.certificates}"
        for command in (["nbdcopy", self.raw, url],
                        [IMG, "convert", "-n", "-f", "raw", "-O", "raw", self.raw, url]):
            target = self.folder / "target"
            target.write_bytes(b"\1" * len(self.bytes))
            with self.ours(target, "-f", "raw", "--tls-creds", "t", "--object", creds):
                run(*command)
            self.assertEqual(target.read_bytes(), self.bytes)

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


if __name__ == "__main__":
    main()
