#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""other_reader.py FORMAT IMAGE [PARENT …]: what libqcow, libvhdi or libvmdk reads, to stdout.

Run by the system's Python, which Debian's python3-libqcow, -libvhdi and -libvmdk belong to."""

import sys

STEP = 1 << 20


def opened(kind, path):
    if kind == "vmdk":
        import pyvmdk
        image = pyvmdk.handle()
        image.open(path)
        image.open_extent_data_files()
        return image
    if kind == "qcow2":
        import pyqcow as library
    else:
        import pyvhdi as library
    image = library.file()
    image.open(path)
    return image


def main(kind, *paths):
    images = [opened(kind, path) for path in paths]
    for image, parent in zip(images, images[1:]):
        image.set_parent(parent)
    size = images[0].get_media_size()
    for at in range(0, size, STEP):
        sys.stdout.buffer.write(images[0].read_buffer_at_offset(min(STEP, size - at), at))


main(*sys.argv[1:])
