# SPDX-License-Identifier: Apache-2.0
"""What the NBD tests share: an image, a socket, a server of any kind on it."""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from commands import run, wait_listening

MIB = 1 << 20


class Program:
    """doppel-img, wherever --img says it is."""
    path = "doppel-img"

    def __str__(self):
        return self.path


IMG = Program()


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
    def server(self, *words):
        """A server of any kind on self.socket; yields the process."""
        with subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_listening(process, self.socket)
                yield process
            finally:
                process.terminate()
                process.wait(timeout=20)

    def ours(self, image, *options, persistent=True):
        self.socket.unlink(missing_ok=True)
        return self.server(IMG, "serve", "-k", self.socket, *(["-t"] if persistent else []),
                           *options, image)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", default=Program.path)
    arguments, rest = parser.parse_known_args()
    Program.path = arguments.img
    unittest.main(module="__main__", argv=[sys.argv[0], *rest])
