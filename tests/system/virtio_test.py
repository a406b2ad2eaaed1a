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
import unittest

from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
OPTIONS = argparse.Namespace(build=None, engine="auto")
FILE_BYTES = 3_000_017


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
