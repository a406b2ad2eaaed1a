#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Peers that lie, fall silent or take nothing: our NBD client meets such servers, our server such
clients."""

import contextlib
import os
import random
import socket
import struct
import threading
import time
from pathlib import Path

from commands import run
from nbd_rig import IMG, MIB, Rig, main

OPTIONS = {"LIST": 3, "GO": 7, "STRUCTURED": 8}


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

    def test_servers_that_fall_silent(self):
        def later(peer):
            peer.recv(1 << 16)
            time.sleep(5)
        talks = {
            "from the beginning": later,
            "in the greeting": lambda peer: (peer.sendall(greeting()), later(peer)),
            "after the handshake": lambda peer: (self.export(peer), later(peer), later(peer)),
        }
        for name, talk in talks.items():
            with self.subTest(server=name), self.fake_server(talk):
                begin = time.monotonic()
                done = run(IMG, "convert", "-f", "raw", "-O", "raw", self.url + "&timeout=1",
                           self.folder / "out", code=1, timeout=20)
                self.assertIn("has said nothing for 1 s", done.stderr)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
                self.assertLess(time.monotonic() - begin, 4.5)
        with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
            self.socket.unlink(missing_ok=True)
            listener.bind(str(self.socket))
            listener.listen(0)  # nobody takes who connects
            for _ in range(4):
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(str(self.socket))
            done = run(IMG, "info", self.url + "&timeout=1", code=1, timeout=20)
            self.assertIn("timed out", done.stderr)

    def test_a_slow_server_is_waited_for(self):
        with self.server("nbdkit", "-f", "-U", self.socket, "--filter=delay", "file", self.raw,
                         "rdelay=700ms"):
            run(IMG, "compare", "-f", "raw", "-F", "raw", self.url + "&timeout=1", self.raw)

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
            "nothing": b"", "noise": random.Random(1).randbytes(4096),
            "unknown flags": struct.pack(">I", 0xffff),
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
    main()
