#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`doppel run` as a person or a script uses it: consoles, exit codes, the end of either process.

    tests/system/run_test.py --build DIR [unittest arguments]
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = argparse.Namespace(build=None)
SAYS = re.compile(r"^ok ", re.M)
# A boot sector that echoes what the serial port gets, and prints a dot first:
#   mov dx, 3f8h; mov al, '.'; out dx, al
#   1: mov dx, 3fdh; in al, dx; test al, 1; jz 1b; mov dx, 3f8h; in al, dx; out dx, al; jmp 1b
ECHO = (bytes.fromhex("baf803b02eee" "bafd03eca80174f8baf803eceeebf1").ljust(510, b"\0") +
        b"\x55\xaa")


def exits_with(value):
    """A boot sector that writes `value` to port f4h and halts."""
    return (b"\xb0" + bytes([value]) + b"\xe6\xf4\xf4").ljust(510, b"\0") + b"\x55\xaa"


def children(pid):
    return [int(word) for word in
            pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Run(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def file(self, content):
        path = self.folder / "kernel"
        path.write_bytes(content)
        return path

    def command(self, kernel, *more):
        return [str(OPTIONS.build / "bin" / "doppel"), "run", "--kernel", str(kernel),
                "--memory", "16M", *more]

    def finish(self, *command):
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60, check=False)

    def start(self, *command):
        vm = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (vm.kill(), vm.communicate()))
        return vm

    def test_debug_exit_gives_the_code_that_people_know(self):
        for value in (0, 1, 2, 63, 127):
            with self.subTest(value=value):
                kernel = self.file(exits_with(value))
                done = self.finish(*self.command(kernel, "--debug-exit"))
                self.assertEqual(done.returncode, value << 1 | 1, done.stderr)

    def test_dry_run_prints_the_description_and_starts_nothing(self):
        kernel = self.file(exits_with(0))
        done = self.finish(*self.command(kernel, "--dry-run", "--cpus", "3", "--name", "box"))
        self.assertEqual(done.returncode, 0, done.stderr)
        machine = json.loads(done.stdout)
        self.assertEqual((machine["cpus"], machine["name"]), (3, "box"))
        self.assertEqual(machine["boot"]["kernel"], str(kernel))

    def test_console_in_a_file(self):
        log = self.folder / "log"
        log.write_text("before\n")
        guest = OPTIONS.build / "guest" / "gates"
        done = self.finish(*self.command(guest, "--debug-exit", "--console", f"file:{log}"))
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(log.read_text(), SAYS)
        self.assertTrue(log.read_text().startswith("before\n"), "it appends")
        self.assertEqual(done.stdout, "")

    def test_console_on_a_socket(self):
        path = self.folder / "socket"
        vm = self.start(*self.command(self.file(ECHO), "--console", f"socket:{path}"))
        for text in (b"first client", b"second"):
            while not self.echoed(path, text):
                pass
        vm.send_signal(signal.SIGTERM)
        self.assertEqual(vm.wait(20), 0)
        self.assertFalse(path.exists(), "the socket is removed")

    def connected(self, path):
        deadline = time.monotonic() + 20
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(20)
            try:
                client.connect(str(path))
                return client
            except OSError:
                client.close()
                if time.monotonic() > deadline:
                    raise

    def echoed(self, path, text):
        """False: the client before us was still there, and we were sent away."""
        got = b""
        with self.connected(path) as client:
            try:
                client.sendall(text)
                while text not in got:
                    more = client.recv(100)
                    if not more:
                        return False
                    got += more
            except ConnectionError:
                return False
        return True

    def test_console_on_a_new_terminal(self):
        vm = self.start(*self.command(self.file(ECHO), "--console", "pty"))
        name = re.search(r"console is (/dev/pts/\d+)", vm.stderr.readline()).group(1)
        terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
        os.write(terminal, b"hello")
        got = b""
        while b"hello" not in got:
            got += os.read(terminal, 100)
        os.close(terminal)
        vm.send_signal(signal.SIGTERM)
        self.assertEqual(vm.wait(20), 0)

    def test_a_killed_vm_gives_the_terminal_back(self):
        with Terminal(self.command(self.file(ECHO))) as console:
            console.expect(r"\.")
            self.assertTrue(console.is_raw())
            os.kill(children(console.pid)[0], signal.SIGKILL)
            self.assertEqual(console.wait(20), 128 + signal.SIGKILL)
            self.assertEqual(console.settings(), console.settings_before)
            console.expect(r"the VM's process died of signal 9")

    def test_a_killed_launcher_takes_the_vm_with_it(self):
        vm = self.start(*self.command(self.file(ECHO), "--console", "none"))
        deadline = time.monotonic() + 20
        while not (of_vm := children(vm.pid)):
            self.assertLess(time.monotonic(), deadline)
        vm.kill()
        vm.wait(20)
        while pathlib.Path(f"/proc/{of_vm[0]}/exe").exists():
            self.assertLess(time.monotonic(), deadline)

    def test_a_crash_report_comes_behind_the_guest_s_output_in_whole_lines(self):
        with Terminal(self.command(OPTIONS.build / "guest" / "triple_fault",
                                   "--debug-exit")) as console:
            console.expect(r"^ok before$")
            console.expect(r"^doppel: the guest crashed: triple fault on vCPU 0$")
            console.expect(r"^ +#PF error 0000 at rip [0-9a-f]+, address 7efeed0000$")
            self.assertEqual(console.wait(20), 4)
            self.assertEqual(console.settings(), console.settings_before)

    def test_what_a_pipe_brings_goes_to_the_guest(self):
        vm = subprocess.Popen(self.command(self.file(ECHO)), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
        self.addCleanup(lambda: (vm.kill(), vm.wait(), vm.stdin.close(), vm.stdout.close()))
        vm.stdin.write(b"\x01x is not for us here")
        vm.stdin.flush()
        got = b""
        while len(got) < 22:
            got += os.read(vm.stdout.fileno(), 100)
        self.assertEqual(got, b".\x01x is not for us here")
        vm.send_signal(signal.SIGTERM)
        self.assertEqual(vm.wait(20), 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
