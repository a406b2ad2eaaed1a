#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Wrong input ends in one clear sentence on stderr and exit code 2, before anything starts.

    tests/system/wrong_input_test.py --build DIR [unittest arguments]
"""

import argparse
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
KERNEL = ASSETS / "vmlinuz"
OPTIONS = argparse.Namespace(build=None)


class WrongInput(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)
        self.addCleanup(self.temporary.cleanup)

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def refused(self, *arguments, says):
        """Runs doppel; `says`: words that the sentence must contain."""
        command = [str(OPTIONS.build / "bin" / "doppel"), *map(str, arguments)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=30, check=False)
        where = f"{' '.join(command)}\nstdout: {done.stdout}\nstderr: {done.stderr}"
        self.assertEqual(done.returncode, 2, where)
        self.assertEqual(done.stdout, "", where)
        lines = done.stderr.strip().splitlines()
        self.assertTrue(1 <= len(lines) <= 2, f"one sentence, perhaps a hint\n{where}")
        for words in says:
            self.assertIn(words, done.stderr, where)

    def refused_run(self, *arguments, says, kernel=KERNEL):
        self.refused("run", "--kernel", kernel, *arguments, says=says)

    def test_missing_kernel(self):
        path = self.folder / "nothing"
        self.refused_run(kernel=path, says=[str(path)])

    def test_no_kernel_given(self):
        self.refused("run", says=["--kernel"])

    def test_text_file_as_kernel(self):
        path = self.file("letter.txt", b"Dear kernel,\nplease boot.\n" * 100)
        self.refused_run(kernel=path, says=[str(path)])

    def test_empty_file_as_kernel(self):
        path = self.file("empty", b"")
        self.refused_run(kernel=path, says=[str(path)])

    def test_truncated_kernel(self):
        whole = KERNEL.read_bytes()
        for size in (600, 0x210, 4096, len(whole) // 2, len(whole) - 4096):
            with self.subTest(size=size):
                path = self.file("short", whole[:size])
                self.refused_run(kernel=path, says=[str(path)])

    def test_directory_as_file(self):
        self.refused_run(kernel=self.folder, says=[str(self.folder), "directory"])
        self.refused_run("--initrd", self.folder, says=[str(self.folder), "directory"])

    def test_missing_initrd(self):
        path = self.folder / "nothing"
        self.refused_run("--initrd", path, says=[str(path)])

    def test_initrd_larger_than_memory(self):
        path = self.folder / "large"
        with open(path, "wb") as file:
            file.truncate(300 << 20)
        self.refused_run("--initrd", path, "--memory", "256M", says=["ramdisk"])

    def test_memory(self):
        for size in ("3Q", "", "M", "-5M", "0", "1.5G", "512 M", "99999999999999999999", "1K"):
            with self.subTest(size=size):
                self.refused_run(f"--memory={size}", says=["memory"])

    def test_kernel_larger_than_memory(self):
        for size in (16, 64):  # the second is enough for the file, not for what is in it
            self.refused_run("--memory", f"{size}M",
                             says=[f"MiB of memory, the VM has {size} MiB", "--memory"])

    def test_cpus(self):
        for count in ("0", "-1", "two", "1000000", "1.5", ""):
            with self.subTest(count=count):
                self.refused_run(f"--cpus={count}", says=["cpus"])

    def test_unknown_names(self):
        self.refused_run("--engine", "quantum", says=["quantum", "engine"])
        self.refused_run("--cpu", "i4004", says=["i4004"])
        self.refused_run("--log", "loud", says=["loud"])
        self.refused_run("--console", "teletype", says=["teletype"])
        self.refused_run("--flavour", "vanilla", says=["--flavour"])

    def test_time(self):
        self.refused_run("--time", "imaginary", says=["--time", "imaginary"])
        self.refused_run("--check", "--time", "real", says=["--time", "real time"])
        self.refused_run("--check", "--engine", "interpreter", says=["--engine", "interpreter"])

    def test_console_that_cannot_be_opened(self):
        path = self.folder / "nowhere" / "log"
        self.refused_run("--console", f"file:{path}", says=[str(path)])

    def test_disks(self):
        disk = self.file("disk.img", b"\0" * 4096)
        missing = self.folder / "nothing"
        self.refused_run("--disk", missing, says=[str(missing)])
        self.refused_run("--disk", self.folder, says=[str(self.folder), "directory"])
        self.refused_run("--disk", f"{disk},colour=red", says=[str(disk), "colour"])
        self.refused_run("--disk", f"{disk},format=zip", says=["zip", "raw"])
        self.refused_run("--disk", f"{disk},cache=much", says=["much", "writeback"])
        self.refused_run("--disk", f"{disk},readonly=perhaps", says=["perhaps"])
        self.refused_run("--disk", f"{disk},serial={'x' * 21}", says=["21", "20"])
        self.refused_run("--disk", f"{disk},addr=here", says=["here", "00:08.0"])
        self.refused_run("--disk", f"{disk},addr=00:02.0", "--rng", says=["00:02.0"])
        self.refused_run("--disk", disk, "--disk", disk, says=[str(disk), "in use"])

    def test_disks_that_were_open_when_something_else_was_wrong(self):
        image, other = self.folder / "tracked.qcow2", self.file("other", b"no qcow2" * 512)
        for words in (("create", "-q", "-f", "qcow2", image, "8M"),
                      ("bitmap", "--add", image, "since-backup")):
            subprocess.run([OPTIONS.build / "bin" / "doppel-img", *words], check=True)
        disk = ("--disk", f"{image},format=qcow2")
        for wrong, kernel in ((("--disk", f"{other},format=qcow2"), KERNEL), ((), other)):
            self.refused_run(*disk, *wrong, says=[str(other)], kernel=kernel)
            facts = subprocess.run(["qemu-img", "info", "--output=json", image], check=True,
                                   capture_output=True, text=True).stdout
            bitmap, = json.loads(facts)["format-specific"]["data"]["bitmaps"]
            self.assertEqual(bitmap["flags"], ["auto"], "it is not in use any more")

    def test_networks(self):
        self.refused_run("--net", "token-ring", says=["--net", "token-ring", "user"])
        self.refused_run("--net", "user,forward=tcp:22", says=["--net", "tcp:22"])
        self.refused_run("--net", "user,forward=tcp:x:22", says=["'x'", "65535"])
        self.refused_run("--net", "user,mac=52:54:00:12:34:5", says=["52:54:00:12:34:5"])
        self.refused_run("--net", "user,forward=tcp:127.0.0.1:2222:10.9.9.9:22", says=["10.9.9.9"])
        self.refused_run("--net", "user,forward=tcp:192.0.2.1:2222:22", says=["192.0.2.1:2222"])
        self.refused_run("--net", "user", "--time", "virtual", says=["--net", "virtual"])

    def test_forwarded_port_that_is_taken(self):
        for protocol, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
            with self.subTest(protocol=protocol), socket.socket(type=kind) as owner:
                owner.bind(("127.0.0.1", 0))
                if protocol == "tcp":
                    owner.listen()
                port = owner.getsockname()[1]
                self.refused_run("--net", f"user,forward={protocol}:{port}:22",
                                 says=[f"127.0.0.1:{port}", "in use", "another port"])

    def test_debug_exit_port(self):
        self.refused_run("--debug-exit=0x10000", says=["debug-exit"])
        self.refused_run("--debug-exit=exit", says=["debug-exit"])

    def test_commands(self):
        self.refused("fly", says=["fly"])
        self.refused("--fly", says=["--fly"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
