# SPDX-License-Identifier: Apache-2.0
"""The machines that are compared, each as a command line.

native    the host itself: programs run directly
doppel    build/bin/doppel; doppel:ENGINE, doppel@PATH and doppel@PATH:ENGINE choose what they say,
          doppel+no-WHAT (before these) leaves out one of the translator's optimizations
tcg       QEMU with its translator, without default devices where they only add firmware time
"""

import dataclasses
import pathlib
import re
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
ASSETS = SOURCE / "build" / "assets"
DOPPEL = SOURCE / "build" / "bin" / "doppel"


class Failure(Exception):
    """One clear sentence for the user."""


@dataclasses.dataclass
class Guest:
    initrd: str
    append: str
    memory_mib: int
    cpus: int = 1
    net: str = ""  # options of a user-mode network: Doppel's; QEMU's are its defaults
    kernel_name: str = "vmlinuz"
    disk: str = ""  # raw, behind virtio-blk

    @property
    def kernel(self):
        return str(ASSETS / self.kernel_name)

    @property
    def initrd_path(self):
        return str(ASSETS / self.initrd)


@dataclasses.dataclass
class Machine:
    name: str
    executable: str = ""
    engine: str = ""
    translator: str = ""  # what --translator says

    @property
    def is_native(self):
        return self.name == "native"

    @property
    def is_doppel(self):
        return self.name.startswith("doppel")

    def command(self, guest):
        if self.name == "tcg":
            nic = ["-nic", "user,model=virtio-net-pci"] if guest.net else []
            disk = ["-drive", f"file={guest.disk},if=virtio,format=raw"] if guest.disk else []
            return [self.executable, "-accel", "tcg", "-cpu", "max,la57=off", "-M", "q35",
                    "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
                    "-m", str(guest.memory_mib), "-smp", str(guest.cpus),
                    "-kernel", guest.kernel, "-initrd", guest.initrd_path, "-append", guest.append,
                    *nic, *disk]
        disk = ["--disk", guest.disk] if guest.disk else []
        engine = ["--engine", self.engine] if self.engine else []
        if self.translator:
            engine += ["--translator", self.translator]
        nic = ["--net", guest.net] if guest.net else []
        return [self.executable, "run", "--kernel", guest.kernel, "--initrd", guest.initrd_path,
                "--append", guest.append, "--memory", f"{guest.memory_mib}M",
                "--cpus", str(guest.cpus), "--console", "stdio", *nic, *disk, *engine]

    def sector_command(self, image, memory_mib):
        """Doppel with a boot sector that ends it through the debug-exit port."""
        engine = ["--engine", self.engine] if self.engine else []
        return [self.executable, "run", "--kernel", str(image), "--memory", f"{memory_mib}M",
                "--console", "stdio", "--debug-exit", *engine]

    def version(self):
        """What to write beside the results."""
        if self.is_native:
            return "the host"
        try:
            result = subprocess.run([self.executable, "--version"], capture_output=True, text=True)
        except OSError as error:
            raise Failure(f"{self.name}: {self.executable}: {error.strerror}") from None
        return (result.stdout or result.stderr).strip().split("\n")[0]


IN_ROOT = """
set -e
mount -o loop,ro "$0" /mnt
mount -t tmpfs tmp /mnt/tmp
mount --rbind /proc /mnt/proc
mount --rbind /dev /mnt/dev
exec chroot /mnt /usr/bin/env -i -C /tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    HOME=/tmp LANG=C "$@"
"""


def in_root_of(image, command):
    """The command on the host, with a raw image's file system as its root, as
    bench/guest/debian/init has it in a guest. Takes root."""
    return ["unshare", "--mount", "sh", "-c", IN_ROOT, str(image), *command]


def machine(text):
    if text == "native":
        return Machine(text)
    if text == "tcg":
        return Machine(text, "qemu-system-x86_64")
    base, _, engine = text.partition(":")
    kind, _, path = base.partition("@")
    kind, _, translator = kind.partition("+")
    if kind != "doppel":
        raise Failure(f"no such machine: {text} (native, doppel[+no-WHAT][@PATH][:ENGINE], tcg)")
    return Machine(text, path or str(DOPPEL), engine, translator)


def each_without(path="", always=""):
    """Doppel, and Doppel without each of the optimizations that it says it has; `always`: one
    without which all of them are."""
    at = f"@{path}" if path else ""
    doppel = machine(f"doppel{f'+{always}' if always else ''}{at}")
    try:
        said = subprocess.run(
            [doppel.executable, "run", "--translator", "?", "--kernel", "/dev/null"],
            capture_output=True, text=True).stderr
    except OSError as error:
        raise Failure(f"cannot run {doppel.executable}: {error.strerror}") from None
    switches = re.findall(r"no-[a-z-]+", said)
    if not switches:
        raise Failure(f"{doppel.executable} does not say what --translator takes: {said.strip()}")
    with_it = f"{always}," if always else ""
    return [doppel, *(machine(f"doppel+{with_it}{switch}{at}") for switch in switches
                      if switch != always)]


def make_assets(*names):
    try:
        subprocess.run([SOURCE / "tools" / "guest-assets", *names], check=True)
    except subprocess.CalledProcessError:
        raise Failure("tools/guest-assets failed") from None
