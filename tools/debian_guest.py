# SPDX-License-Identifier: Apache-2.0
"""The whole Debian guest of tools/guest-assets: Debian 12 with systemd on a raw disk.

mmdebstrap installs the packages, a few files make it a machine (serial console, network, root's
password and ssh key), mkfs.ext4 writes the disk. Neither mounts anything of the host, so root is
not needed where user namespaces or fakeroot are there. Downloads stay in the cache, and so does the
finished guest under a name that is the hash of this recipe: another work tree, or the same after
`make clean`, only copies it. Remove the cache to get newer packages.
"""

import fcntl
import hashlib
import os
import pathlib
import subprocess
import tempfile

SUITE = "bookworm"
PACKAGES = [
    "systemd-sysv", "udev", "dbus", "login", "openssh-server", "python3-minimal", "openssl", "zstd",
    "gcc", "libc6-dev", "stress-ng",  # real work in the guest
    "linux-image-cloud-amd64", "initramfs-tools", "e2fsprogs", "kmod", "iproute2",
]
FILES = {
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost debian\n::1 localhost debian\n",
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 1\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/systemd/network/50-dhcp.network": "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n",
}
PASSWORD = "doppel"
DISK_BYTES = 2 << 30
UNUSED = ["doc", "info", "locale", "man"]  # of /usr/share
PARTS = {  # of the guest, by their name in build/assets
    "debian.raw": "disk", "vmlinuz-debian": "kernel", "initrd-debian": "initrd",
    "debian-key": "key", "debian-key.pub": "public key", "stress.tar": "stress-ng",
}
# stress-ng and its libraries, by the names under which its loader looks for them
PACK_STRESS = ('cd "$1" && tar -chf {folder}/stress.tar usr/bin/stress-ng '
               '$(chroot . ldd /usr/bin/stress-ng | grep -o "/[^ ]*" | sed s,^/,,)')


def recipe():
    """What the guest depends on: this file."""
    return hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:16]


def install(folder, archives, key):
    """The command that makes root.tar in `folder`."""
    root = folder / "files"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    quick = ["path-exclude=/usr/share/%s/*" % name for name in UNUSED] + ["force-unsafe-io"]
    hooks = [
        ("setup", 'mkdir -p "$1"/var/cache/apt/archives'),
        ("setup", f"sync-in {archives} /var/cache/apt/archives"),
        ("customize", f"sync-out /var/cache/apt/archives {archives}"),
        ("customize", 'rm -f "$1"/var/cache/apt/archives/*.deb "$1"/etc/resolv.conf'),
        ("customize", f"sync-in {root} /"),
        ("customize", 'mkdir -p -m 700 "$1"/root/.ssh'),
        ("customize", f"upload {key}.pub /root/.ssh/authorized_keys"),
        ("customize", f'echo root:{PASSWORD} | chroot "$1" chpasswd'),
        ("customize", 'chroot "$1" systemctl enable systemd-networkd'),
        ("customize", 'chroot "$1" systemctl disable systemd-networkd-wait-online'),
        ("customize", PACK_STRESS.format(folder=folder)),
        ("customize", f'cp -L "$1"/vmlinuz "$1"/initrd.img {folder}'),
    ]
    return ["mmdebstrap", "--variant=minbase", "--components=main",
            "--include=" + ",".join(PACKAGES), '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt={option}" for option in quick),
            "--skip=download/empty,essential/unlink,cleanup/reproducible",
            *(f"--{when}-hook={what}" for when, what in hooks), SUITE, folder / "root.tar"]


def make_disk(folder, run):
    """disk.raw of root.tar, with the owners it names."""
    disk = folder / "disk.raw"
    with open(disk, "wb") as file:
        file.truncate(DISK_BYTES)
    script = ('mkdir "$1"/root && tar --numeric-owner -xpf "$1"/root.tar -C "$1"/root && '
              '/sbin/mkfs.ext4 -q -L root -d "$1"/root "$1"/disk.raw && rm -rf "$1"/root')
    pretend = [] if os.geteuid() == 0 else ["fakeroot"]
    run([*pretend, "sh", "-c", script, "sh", folder])


def build(finished, cache, run):
    with tempfile.TemporaryDirectory(dir=cache, prefix="debian-new-") as name:
        folder, archives = pathlib.Path(name), cache / "debian-packages"
        archives.mkdir(exist_ok=True)
        folder.chmod(0o755)  # mmdebstrap's other user ids look into it
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "doppel-test", "-f",
             folder / "key"])
        run(install(folder, archives, folder / "key"), env={**os.environ, "TMPDIR": str(cache)})
        make_disk(folder, run)
        made = {"disk": "disk.raw", "kernel": "vmlinuz", "initrd": "initrd.img", "key": "key",
                "public key": "key.pub", "stress-ng": "stress.tar"}
        result = folder / "finished"
        result.mkdir()
        for part, file in made.items():
            os.replace(folder / file, result / part)
        os.replace(result, finished)


def make(out, cache, run, say):
    """Puts PARTS into `out`. `run` and `say` are those of tools/guest-assets."""
    stamp = out / ".debian"
    wanted = recipe()
    if stamp.exists() and stamp.read_text() == wanted and all((out / n).exists() for n in PARTS):
        return
    cache.mkdir(parents=True, exist_ok=True)
    finished = cache / f"debian-{wanted}"
    with open(cache / ".debian.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other work trees wait, and then only copy
        if not finished.exists():
            say("installing Debian 12 on a disk (1 to 2 minutes)")
            build(finished, cache, run)
    for name, part in PARTS.items():
        run(["cp", "--sparse=always", "--reflink=auto", finished / part, out / name])
    stamp.write_text(wanted)
    say("made debian.raw, its kernel, initrd and ssh key, stress.tar")
