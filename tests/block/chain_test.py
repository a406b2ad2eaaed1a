#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""chain_test.py --img DOPPEL_IMG [--rounds N] [--seed S]: random operations on chains of images.

A chain of qcow2 images is written, trimmed, resized, snapshotted, committed, rebased, flattened and
grown by new overlays, by doppel-img and qemu-img in turn, while plain bytes remember what every
image shows. qemu-img compares each image with them and checks it."""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from commands import wait_listening

KIB = 1024
MIB = 1024 * KIB
FORMS = ("", "cluster_size=512", "cluster_size=4k,refcount_bits=64", "cluster_size=2M",
         "extended_l2=on,cluster_size=32k", "lazy_refcounts=on", "compat=0.10")
WRITES = 25  # by one qemu-io


class Image:
    def __init__(self, path, content, behind):
        self.path, self.content, self.behind = path, bytearray(content), behind
        self.snapshots = {}  # name: content


class Chain:
    """The images from the base to the top; each shows its `content`."""

    def __init__(self, folder, img, rng):
        self.folder, self.img, self.rng = folder, img, rng
        self.made = self.operations = 0
        size = rng.choice((3 * MIB, 5 * MIB + 512, 9 * MIB + 4 * KIB))
        self.images = []
        self.add_overlay(size)

    def run(self, *words):
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                              check=False, cwd=self.folder)
        if done.returncode != 0:
            raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout}"
                                 f"{done.stderr}")

    def tool(self, *words):
        """Either tool: what one leaves the other takes."""
        self.operations += 1
        self.run(self.rng.choice((self.img, "qemu-img")), *words)

    @property
    def top(self):
        return self.images[-1]

    def add_overlay(self, size=None):
        path = self.folder / f"{self.made}.qcow2"
        self.made += 1
        behind = self.top if self.images else None
        form = self.rng.choice(FORMS)
        flags = ["-o", form] if form else []
        if behind:
            flags += ["-b", behind.path.name, "-F", "qcow2"]
        self.tool("create", "-q", "-f", "qcow2", *flags, path, *([] if behind else [size]))
        self.images.append(Image(path, behind.content if behind else bytes(size), behind))

    def write(self):
        """Into the top: data, zeroes, discards; half of the time through our NBD server."""
        image, commands = self.top, []
        for _ in range(WRITES):
            size = len(image.content)
            at = self.rng.randrange(size // 512) * 512
            length = min(self.rng.choice((512, 5 * KIB, 64 * KIB, 333 * KIB)), size - at)
            length -= length % 512
            kind = self.rng.randrange(4)
            value = self.rng.randrange(1, 256) if kind < 3 else 0
            commands += ["-c", f"write -P {value} {at} {length}" if kind < 3 else
                         f"write -z {'-u ' if self.rng.randrange(2) else ''}{at} {length}"]
            image.content[at:at + length] = bytes([value]) * length
        self.operations += WRITES
        if self.rng.randrange(2):
            self.run("qemu-io", "-f", "qcow2", *commands, image.path)
            return
        socket = self.folder / "socket"
        with subprocess.Popen([self.img, "serve", "-q", "-t", "-f", "qcow2", "-k", str(socket),
                               str(image.path)]) as server:
            try:
                wait_listening(server, socket)
                self.run("qemu-io", "-f", "raw", *commands, f"nbd+unix:///?socket={socket}")
            finally:
                server.terminate()
        socket.unlink(missing_ok=True)

    def snapshot(self):
        image = self.top
        if image.path.suffix != ".qcow2" or len(image.snapshots) == 3:
            name = self.rng.choice(sorted(image.snapshots))
            self.tool("snapshot", "-d", name, image.path)
            del image.snapshots[name]
        elif image.snapshots and self.rng.randrange(2):
            name = self.rng.choice(sorted(image.snapshots))
            if len(image.snapshots[name]) == len(image.content):  # else a resize, too
                self.tool("snapshot", "-a", name, image.path)
                image.content[:] = image.snapshots[name]
        else:
            name = f"s{self.made}-{self.operations}"
            self.tool("snapshot", "-c", name, image.path)
            image.snapshots[name] = bytes(image.content)

    def grow(self):
        image = self.top
        more = self.rng.choice((512, 70 * KIB, MIB))
        if image.snapshots or (image.behind and len(image.behind.content) > len(image.content)):
            return
        self.tool("resize", "-q", "-f", "qcow2", image.path, len(image.content) + more)
        image.content += bytes(more)

    def commit(self):
        """Into the image behind; the top is empty afterwards, and shows the same."""
        image = self.top
        if image.behind is None or image.snapshots or image.behind.snapshots:
            return
        self.tool("commit", "-q", "-f", "qcow2", image.path)
        behind = image.behind
        if len(image.content) < len(behind.content):
            behind.content[:len(image.content)] = image.content
        else:
            behind.content[:] = image.content

    def rebase(self):
        """The top leaves out the image behind it, or stands alone."""
        image = self.top
        if image.behind is None or image.snapshots:
            return
        further = image.behind.behind
        if further is not None and self.rng.randrange(2):
            self.tool("rebase", "-q", "-f", "qcow2", "-b", further.path.name, "-F", "qcow2",
                      image.path)
            self.images.remove(image.behind)
            image.behind = further
        else:
            self.tool("rebase", "-q", "-f", "qcow2", "-b", "", image.path)
            image.behind = None
            self.images = [image]

    def flatten(self):
        path = self.folder / f"{self.made}.qcow2"
        self.made += 1
        self.tool("convert", *self.rng.choice(((), ("-c",))), "-f", "qcow2", "-O", "qcow2",
                  self.top.path, path)
        self.images = [Image(path, self.top.content, None)]

    def verify(self):
        for image in self.images:
            raw = self.folder / "model.raw"
            raw.write_bytes(image.content)
            self.run("qemu-img", "check", "-q", "-f", "qcow2", image.path)
            self.run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, image.path)
            self.run(self.img, "check", "-q", "-f", "qcow2", image.path)
            self.run(self.img, "compare", "-q", "-f", "raw", "-F", "qcow2", raw, image.path)

    def step(self):
        deed = self.rng.choice((self.write, self.write, self.write, self.snapshot, self.grow,
                                self.commit, self.rebase, self.flatten, self.add_overlay,
                                self.add_overlay))
        if deed == self.add_overlay and len(self.images) > 3:
            deed = self.commit
        deed()
        return deed.__name__


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--img", required=True)
    parser.add_argument("--rounds", type=int, default=4, help="chains")
    parser.add_argument("--steps", type=int, default=20, help="of each chain")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    operations = 0
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        folder = Path(tempfile.mkdtemp(prefix="doppel-chain-"))
        try:
            chain = Chain(folder, str(Path(arguments.img).resolve()), random.Random(seed))
            deeds = []
            for _ in range(arguments.steps):
                deeds.append(chain.step())
                chain.verify()
            operations += chain.operations
        except AssertionError as error:
            sys.exit(f"seed {seed}, {deeds}: {error}")
        finally:
            shutil.rmtree(folder)
    print(f"{operations} random operations in {arguments.rounds} chains: all as the plain bytes")


if __name__ == "__main__":
    main()
