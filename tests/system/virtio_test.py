#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Virtio devices under Linux's own drivers, in a busybox guest: network, console, entropy; saved
and restored with them.

    tests/system/virtio_test.py --build DIR [--engine NAME] [unittest arguments]
"""

import argparse
import functools
import hashlib
import http.server
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests/block"))

from commands import wait_listening  # noqa: E402
from terminal import Terminal  # noqa: E402

ASSETS = SOURCE / "build" / "assets"
OPTIONS = argparse.Namespace(build=None, engine="auto")
FILE_BYTES = 3_000_017
MIB = 1 << 20


DOPPEL = "bin/doppel"


class Guest(Terminal):
    """The busybox guest with virtio drivers, at its shell."""

    def __init__(self, *more, append="console=ttyS0"):
        super().__init__([str(OPTIONS.build / DOPPEL), "run",
                          "--kernel", str(ASSETS / "vmlinuz"),
                          "--initrd", str(ASSETS / "initrd-virtio.cpio.gz"), "--memory", "256M",
                          "--append", append, "--engine", OPTIONS.engine, *more])
        self.expect("^guest# ", 120)
        self.type("stty -echo; PS1='rea''dy# '; dmesg -n 1\r")
        self.expect("^ready# ")

    @classmethod
    def restored(cls, state):
        guest = cls.__new__(cls)
        Terminal.__init__(guest, [str(OPTIONS.build / DOPPEL), "run", "--restore", str(state),
                                  "--engine", OPTIONS.engine])
        guest.type("\r")
        guest.expect("^ready# ")
        return guest

    def run(self, command, seconds=60):
        """Its output; AssertionError unless its exit code is 0."""
        self.type(f"{command}; echo status=$?\r")
        before = self.seen
        status = self.expect(r"status=(\d+)\n(?:\x1b\S*)?ready# ", seconds)
        output = self.output[before:status.start()]
        if status.group(1) != "0":
            raise AssertionError(f"{command}: exit code {status.group(1)}\n{output}")
        return output.strip()

    def power_off(self):
        self.type("poweroff -f\r")
        return self.wait(60)


class Server:
    """HTTP on a port of the host's 127.0.0.1; `folder` is what it shows."""

    def __init__(self, folder):
        handler = functools.partial(Quiet, directory=folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Network(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.content = os.urandom(FILE_BYTES)
        (self.folder / "file").write_bytes(self.content)
        self.digest = hashlib.sha256(self.content).hexdigest()

    def test_dhcp_and_a_file_both_ways(self):
        port = free_port()
        with Server(self.folder) as server, \
                Guest("--net", f"user,forward=tcp:{port}:8080,mac=52:54:00:aa:bb:cc") as guest:
            self.assertIn("52:54:00:aa:bb:cc", guest.run("cat /sys/class/net/eth0/address"))
            self.assertIn("10.0.2.15", guest.run("udhcpc -n -q -i eth0 -s /scripts/dhcp"))
            guest.run("ping -c 1 -W 5 10.0.2.2")
            guest.run(f"wget -q -O /tmp/file http://10.0.2.2:{server.port}/file")
            self.assertTrue(guest.run("sha256sum /tmp/file").startswith(self.digest))
            # To the host, through the forwarded port.
            guest.run("(nc -l -p 8080 </tmp/file >/dev/null &) ; sleep 0.2")
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                got = b"".join(iter(lambda: connection.recv(65536), b""))
            self.assertEqual(hashlib.sha256(got).hexdigest(), self.digest)
            self.assertEqual(guest.power_off(), 0)

    def test_restrict_and_another_subnet(self):
        with Server(self.folder) as server, \
                Guest("--net", "user,restrict=on,subnet=192.168.5.0/24,ipv6=off") as guest:
            self.assertIn("192.168.5.15", guest.run("udhcpc -n -q -i eth0 -s /scripts/dhcp"))
            guest.run("ping -c 1 -W 5 192.168.5.2")
            guest.run(f"! wget -q -T 3 -O /dev/null http://192.168.5.2:{server.port}/file")
            self.assertEqual(guest.power_off(), 0)

    def test_the_driver_leaves_and_comes_back(self):
        with Server(self.folder) as server, Guest("--net", "user,mtu=9000") as guest:
            for _ in range(2):
                guest.run("udhcpc -n -q -i eth0 -s /scripts/dhcp")
                self.assertIn("mtu 9000", guest.run("ip link show eth0"))
                guest.run(f"wget -q -O /tmp/file http://10.0.2.2:{server.port}/file")
                self.assertTrue(guest.run("sha256sum /tmp/file").startswith(self.digest))
                guest.run("rmmod virtio_net && insmod /modules/virtio_net.ko")
            self.assertEqual(guest.power_off(), 0)


class Disk(unittest.TestCase):
    """Disks that are more than a file: encrypted, throttled, behind a server."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="doppel-disk-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.content = (os.urandom(MIB) + b"text " * (MIB // 5)).ljust(4 * MIB, b"\0")
        self.raw, self.secret = self.folder / "raw", self.folder / "secret"
        self.raw.write_bytes(self.content)
        self.secret.write_text("12345678")
        self.object = f"secret,id=s0,file={self.secret}"

    def qemu_img(self, *words):
        """With a clock by which measuring the processor is short: see qemu_clock.c."""
        clock = {**os.environ, "LD_PRELOAD": str(OPTIONS.build / "lib/qemu_clock.so")}
        subprocess.run(["qemu-img", *map(str, words)], check=True, timeout=120, env=clock)

    def encrypted(self, kind, key):
        """Made by QEMU, with few rounds: the passphrase shall not take seconds."""
        image = self.folder / f"{kind}.img"
        form = f"{key}key-secret=s0,{key}iter-time=10"
        if kind == "qcow2":
            form += ",encrypt.format=luks"
        self.qemu_img("create", "-q", "--object", self.object, "-f", kind, "-o", form, image,
                      len(self.content))
        self.qemu_img("convert", "--object", self.object, "-n", "-f", "raw",
                      "--target-image-opts", self.raw,
                      f"driver={kind},{key}key-secret=s0,file.filename={image}")
        return image

    def test_luks_is_read_and_written(self):
        for kind, key in (("qcow2", "encrypt."), ("luks", "")):
            with self.subTest(format=kind):
                image = self.encrypted(kind, key)
                with Guest("--object", self.object, "--disk",
                           f"{image},format={kind},{key}key-secret=s0") as guest:
                    self.assertEqual(guest.run("cat /sys/block/vda/size"),
                                     str(len(self.content) // 512))
                    digest = hashlib.sha256(self.content).hexdigest()
                    self.assertTrue(guest.run("sha256sum /dev/vda").startswith(digest))
                    guest.run("printf changed | dd of=/dev/vda bs=512 seek=4096 conv=fsync")
                    self.assertEqual(guest.power_off(), 0)
                self.qemu_img("convert", "--object", self.object, "--image-opts", "-O", "raw",
                              f"driver={kind},{key}key-secret=s0,file.filename={image}",
                              self.folder / "back")
                changed = bytearray(self.content)
                changed[MIB * 2:MIB * 2 + 7] = b"changed"
                got = (self.folder / "back").read_bytes()
                self.assertEqual(got[:MIB * 2 + 7], changed[:MIB * 2 + 7])
                self.assertEqual(got[MIB * 2 + 512:], changed[MIB * 2 + 512:])

    def test_a_wrong_passphrase_starts_nothing(self):
        image = self.encrypted("qcow2", "encrypt.")
        self.secret.write_text("87654321")
        done = subprocess.run([OPTIONS.build / DOPPEL, "run", "--kernel", ASSETS / "vmlinuz",
                               "--object", self.object, "--disk",
                               f"{image},format=qcow2,encrypt.key-secret=s0"], check=False,
                              capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("passphrase", done.stderr)

    def test_limits_are_kept(self):
        """100 operations a second of 4 KiB, each past the guest's cache: 200 take 2 s."""
        with Guest("--disk", f"{self.raw},iops=100") as guest:
            start = time.monotonic()
            guest.run("dd if=/dev/vda of=/dev/null bs=4k count=200 iflag=direct")
            took = time.monotonic() - start
            print(f"(200 reads at 100 a second took {took:.2f} s)")
            self.assertGreater(took, 1.7)  # a tenth of a second's worth comes at once
            self.assertLess(took, 20)
            self.assertEqual(guest.power_off(), 0)
        with Guest("--disk", f"{self.raw},bps=1000000") as guest:
            start = time.monotonic()
            guest.run("dd if=/dev/vda of=/dev/null bs=64k count=40 iflag=direct")
            self.assertGreater(time.monotonic() - start, 2.3)  # 2.6 MB
            self.assertEqual(guest.power_off(), 0)

    def test_a_disk_behind_a_server(self):
        image, socket_path = self.folder / "served.qcow2", self.folder / "socket"
        self.qemu_img("convert", "-f", "raw", "-O", "qcow2", self.raw, image)
        name = f"nbd+unix:///?socket={socket_path}"
        named = '{"driver": "raw", "file": {"driver": "nbd", "path": "%s"}}' % socket_path
        command = ["qemu-nbd", "-t", "-f", "qcow2", "-k", socket_path, image]
        with subprocess.Popen(command) as server:
            try:
                for disk in (name, f"json:{named}"):
                    wait_listening(server, socket_path)
                    with Guest("--disk", disk) as guest:
                        digest = hashlib.sha256(self.content).hexdigest()
                        self.assertTrue(guest.run("sha256sum /dev/vda").startswith(digest))
                        self.assertEqual(guest.power_off(), 0)
            finally:
                server.terminate()


class Console(unittest.TestCase):
    def test_a_shell_on_hvc0(self):
        with Guest("--virtio-console", "stdio", append="doppel.shell=hvc0") as guest:
            self.assertEqual(guest.run("tty"), "/dev/hvc0")
            self.assertEqual(guest.run("seq 1 20000").split(), [str(n) for n in range(1, 20001)])
            text = "".join(f"{n} " + "x" * 60 + "\n" for n in range(200))
            guest.type("cat >/tmp/text <<END\r" + text.replace("\n", "\r") + "END\r")
            guest.expect("(> )+ready# ")
            digest = hashlib.sha256(text.encode()).hexdigest()
            self.assertTrue(guest.run("sha256sum /tmp/text").startswith(digest))
            self.assertEqual(guest.power_off(), 0)

    def test_beside_the_serial_port(self):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log"
            with Guest("--virtio-console", f"file:{log}") as guest:
                guest.run("echo printed on hvc0 >/dev/hvc0")
                self.assertEqual(guest.power_off(), 0)
            self.assertEqual(log.read_bytes(), b"printed on hvc0\r\n")


class Saved(unittest.TestCase):
    def test_network_console_and_entropy_go_on(self):
        """In a new process: same addresses, new connections."""
        with tempfile.TemporaryDirectory(prefix="doppel-virtio-") as folder:
            os.environ["XDG_RUNTIME_DIR"] = folder
            (pathlib.Path(folder) / "file").write_text("from the host")
            state, port = pathlib.Path(folder) / "state", free_port()
            fetch = "wget -q -O - http://10.0.2.2:%d/file"
            with Server(folder) as server:
                with Guest("--name", "vm", "--rng", "--virtio-console", "stdio", "--net",
                           f"user,forward=tcp:{port}:8080", append="doppel.shell=hvc0") as guest:
                    guest.run("udhcpc -n -q -i eth0 -s /scripts/dhcp")
                    self.assertEqual(guest.run(fetch % server.port), "from the host")
                    subprocess.run([OPTIONS.build / DOPPEL, "save", "vm", state, "--stop"],
                                   check=True, timeout=120, capture_output=True)
                    guest.wait(60)
                with Guest.restored(state) as guest:
                    self.assertEqual(guest.run(fetch % server.port), "from the host")
                    guest.run("head -c 64 /dev/hwrng >/dev/null")
                    guest.run("(echo here | nc -l -p 8080 >/dev/null &) ; sleep 0.2")
                    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                        self.assertEqual(connection.recv(100), b"here\n")
                    self.assertEqual(guest.power_off(), 0)


class Entropy(unittest.TestCase):
    def test_hwrng(self):
        with Guest("--rng") as guest:
            self.assertEqual(guest.run("cat /sys/class/misc/hw_random/rng_current"),
                             "virtio_rng.0")
            count = "head -c 65536 /dev/hwrng | wc -c"
            self.assertEqual(guest.run(count), "65536")
            # What does not look random compresses, and does not come twice.
            guest.run("head -c 65536 /dev/hwrng >/tmp/a; head -c 65536 /dev/hwrng >/tmp/b")
            self.assertGreater(int(guest.run("gzip -c /tmp/a | wc -c")), 65000)
            guest.run("! cmp -s /tmp/a /tmp/b")
            self.assertEqual(guest.power_off(), 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--engine", default="auto")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
