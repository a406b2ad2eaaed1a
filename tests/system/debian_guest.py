# SPDX-License-Identifier: Apache-2.0
"""The Debian guest of tools/guest-assets on a disk of the test's own, at its serial console."""

import base64
import pathlib
import re
import shlex
import socket
import subprocess
import tempfile

from terminal import Terminal

SOURCE = pathlib.Path(__file__).resolve().parents[2]
ASSETS = SOURCE / "build" / "assets"
PASSWORD = "doppel"
BOOT_SECONDS = 300
KERNEL_TROUBLE = re.compile(r"WARNING:|BUG:|Oops|stall|lockup|Call Trace|I/O error|hung|corrupt|"
                            r"Machine check|clocksource.*unstable|Spurious|NETDEV WATCHDOG")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Guest:
    """A VM from power-on to power-off. `machine` is the path of doppel, or "qemu": then the tests
    ask the other implementation, which tells a fault of theirs from one of ours."""

    def __init__(self, machine, cpus=1, memory_mib=1024, more=()):
        self.folder = tempfile.TemporaryDirectory(dir=ASSETS.parent, prefix="debian-test-")
        self.disk = pathlib.Path(self.folder.name) / "disk.raw"
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", ASSETS / "debian.raw",
                        self.disk], check=True)
        self.port = free_port()
        append = "root=/dev/vda console=ttyS0 quiet"
        if str(machine) == "qemu":
            command = ["/usr/bin/qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,la57=off",
                       "-M", "q35", "-nodefaults", "-display", "none", "-serial", "stdio",
                       "-m", str(memory_mib), "-smp", str(cpus), "-drive",
                       f"file={self.disk},if=virtio,format=raw", "-nic",
                       f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self.port}-:22",
                       "-kernel", str(ASSETS / "vmlinuz-debian"),
                       "-initrd", str(ASSETS / "initrd-debian"), "-append", append]
        else:
            command = [str(machine), "run", "--memory", f"{memory_mib}M", "--cpus", str(cpus),
                       "--disk", str(self.disk), "--net", f"user,forward=tcp:{self.port}:22",
                       "--kernel", str(ASSETS / "vmlinuz-debian"),
                       "--initrd", str(ASSETS / "initrd-debian"), "--append", append, *more]
        self.console = Terminal(command)

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.console.__exit__(*what)
        self.folder.cleanup()

    def login(self, seconds=BOOT_SECONDS):
        """From power-on or a reboot to a shell that echoes nothing and prompts `ready# `."""
        console = self.console
        console.expect(r"debian login: ", seconds)
        console.type("root\r")
        console.expect(r"Password: ")
        console.type(PASSWORD + "\r")
        console.expect(r"root@debian:.*# ")
        console.type("stty -echo; bind 'set enable-bracketed-paste off'; PS1='rea''dy# '; PS2=\r")
        console.expect(r"ready# $")
        self.run("dmesg -n 1")  # what the kernel says is looked at in the end

    def run(self, command, seconds=120):
        """The output of a command; AssertionError unless its exit code is 0."""
        self.console.type(f"{command}; printf '\\nstatus=%s\\n' $?\r")
        before = self.console.seen
        status = self.console.expect(r"^status=(\d+)\nready# ", seconds)
        output = self.console.output[before:status.start()]
        if status.group(1) != "0":
            raise AssertionError(f"{command}: exit code {status.group(1)}\n{output}")
        return output.strip("\n")

    def put(self, text, path):
        packed = base64.b64encode(text.encode()).decode()
        assert len(packed) < 3500, "a line of the terminal is at most 4095 bytes"
        self.run(f"echo {packed} | base64 -d > {shlex.quote(path)}")

    def ssh(self, command, seconds=120, put=b""):
        """What the command prints, as bytes; `put` is its input."""
        result = subprocess.run(
            ["ssh", "-q", "-i", ASSETS / "debian-key", "-p", str(self.port),
             "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
             "-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "root@127.0.0.1", command],
            input=put, capture_output=True, timeout=seconds, check=False)
        if result.returncode != 0:
            raise AssertionError(f"ssh: {result.returncode}: {result.stderr}{result.stdout}")
        return result.stdout

    def trouble(self):
        """Lines of the kernel's log that speak of something wrong."""
        return [line for line in self.run("dmesg").splitlines() if KERNEL_TROUBLE.search(line)]

    def power_off(self):
        self.console.type("poweroff\r")
        return self.console.wait(120)
