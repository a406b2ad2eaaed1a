#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""power_cut_test.py --tests FOLDER [--states N]: what a power cut leaves, in QEMU's eyes.

The unit tests cut the power of simulated disks at any moment of random histories, and keep some of
the states: the image as it lay there, and what it showed to us. qemu-img finds no corruption in it
(lost space is allowed; where the image itself says that it was not closed, after QEMU has repaired
it or replayed its log), and sees the same."""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

TESTS = ""
STATES = 5  # of each form
PASSPHRASE = "open sesame"
NO_CHECK = {"vpc", "luks"}  # formats that qemu-img has no check for
# Forms that QEMU does not read at all.
NOT_QEMU = {("vdi", "small"), ("vdi", "middle"), ("vdi", "static"), ("vpc", "small")}


def call(*words, codes=(0,)):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        raise AssertionError(f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class PowerCuts(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="doppel-power-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def states(self, kind):
        """The folders of the states: form → list."""
        every = 20
        environment = os.environ | {"DOPPEL_KEEP_STATES": str(self.folder),
                                    "DOPPEL_KEEP_EVERY": str(every),
                                    "DOPPEL_POWER_CUTS": str(every * STATES)}
        subprocess.run([Path(TESTS) / f"doppel_block_{kind}_test", "-tc=*power cut*"], check=True,
                       env=environment, stdout=subprocess.DEVNULL)
        forms = {}
        for state in sorted(self.folder.iterdir()):
            forms.setdefault(state.name.rpartition("-")[0], []).append(state)
        return forms

    def look_at(self, kind, form, state):
        image = state / f"disk.{kind}"
        node = {"driver": kind, "file": {"driver": "file", "filename": str(image)}}
        if form in ("data-file", "raw-data"):
            node["data-file"] = {"driver": "file", "filename": str(state / "data")}
        if kind == "luks":
            node["key-secret"] = "s"
        elif form == "luks":
            node["encrypt"] = {"format": "luks", "key-secret": "s"}
        name = f"json:{json.dumps(node)}"
        secret = ["--object", f"secret,id=s,data={PASSPHRASE}"]
        if kind not in NO_CHECK:
            if kind == "vhdx" or self.unclosed(kind, image):
                call("qemu-img", "check", "-q", "-r", "all", *secret, name)
            call("qemu-img", "check", "-q", *secret, name, codes=(0, 3))
        if kind == "vpc":
            self.finish_copy(image)
        raw = {"driver": "raw", "file": {"driver": "file", "filename": str(state / "shown.raw")}}
        call("qemu-img", "compare", "-q", *secret, f"json:{json.dumps(raw)}", name)

    @staticmethod
    def finish_copy(image):
        """QEMU goes by the copy of the footer in a dynamic disk's first sector, we by the footer,
        which is written first: between the two QEMU would show the disk before its resize."""
        data = bytearray(image.read_bytes())
        if data[:8] == data[-512:-504]:
            data[:512] = data[-512:]
            image.write_bytes(data)

    def unclosed(self, kind, image):
        facts = json.loads(call("qemu-img", "info", "-U", "-f", kind, "--output=json", image))
        return facts.get("dirty-flag", False)

    def examine(self, kind, least):
        forms = self.states(kind)
        self.assertGreaterEqual(len(forms), least)
        for form, states in forms.items():
            self.assertGreaterEqual(len(states), STATES)
            if (kind, form) in NOT_QEMU:
                continue
            for state in states:
                with self.subTest(format=kind, state=state.name):
                    self.look_at(kind, form, state)

    def test_qcow2(self):
        self.examine("qcow2", 8)

    def test_vdi(self):
        self.examine("vdi", 3)

    def test_vhdx(self):
        self.examine("vhdx", 2)

    def test_vmdk(self):
        self.examine("vmdk", 5)

    def test_vpc(self):
        self.examine("vpc", 3)

    def test_luks(self):
        self.examine("luks", 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tests", required=True, help="the folder of the unit tests' executables")
    parser.add_argument("--states", type=int, default=STATES)
    arguments, rest = parser.parse_known_args()
    TESTS, STATES = arguments.tests, arguments.states
    unittest.main(argv=[__file__, *rest])
