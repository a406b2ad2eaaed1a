#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every #include of src/ respects the table in layers.txt, and no header is slow to compile."""

import re
from pathlib import Path
from typing import Iterable

from finding import ROOT, Finding, main, read_table

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')
# Half a second each in every file that includes them.
NEVER = {"iostream", "regex", "future"}
NOT_IN_HEADERS = {"filesystem"}


class Layers:
    """The table: which folders and single headers a folder may include."""

    def __init__(self, rows: list[list[str]]):
        self.direct = {row[0]: row[1:] for row in rows}
        for folder, allowed in self.direct.items():
            for name in allowed:
                if not name.startswith("=") and name not in self.direct:
                    raise SystemExit(f"layers: {folder} names {name}, which has no line of its own")
        self.reach = {folder: self._closure(folder) for folder in self.direct}

    def _closure(self, folder: str) -> set[str]:
        found, todo = set(), [folder]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.direct.get(name, [])
        return found

    def folder_of(self, path: str) -> str | None:
        parts = path.split("/")  # a single file may have a line of its own
        while parts:
            if "/".join(parts) in self.direct:
                return "/".join(parts)
            parts.pop()
        return None

    def complaint(self, source: str, header: str) -> str | None:
        """Why `source` may not include `header` (both relative to src/), or None."""
        mine, theirs = self.folder_of(source), self.folder_of(header)
        if mine is None:
            return f"folder of {source} is not in tools/lint/layers.txt"
        if theirs is None:
            return f'"{header}" is in no folder of tools/lint/layers.txt'
        if theirs in self.reach[mine] or "=" + header in self.reach[mine]:
            return None
        return f'{mine} must not include "{header}": {theirs} is not among what it may use'


def is_test(source: str) -> bool:
    name = source.rsplit("/", 1)[-1]
    return name.startswith("test_") or "_test." in name or "_test_" in name


def check_include(layers: Layers, root: Path, source: str, kind: str, header: str) -> str | None:
    if kind == "<":
        if header in NEVER:
            return f"<{header}> is slow to compile: not in src/"
        if header in NOT_IN_HEADERS and source.endswith(".hpp"):
            return f"<{header}> is slow to compile: only in .cpp files"
        return None
    if is_test(source):
        return None
    if not (root / "src" / header).is_file():
        return f'"{header}" does not exist below src/ (includes are relative to it)'
    return layers.complaint(source, header)


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    layers = Layers(read_table(ROOT / "tools/lint/layers.txt"))
    findings = []
    for path in paths:
        if not path.startswith("src/") or not path.endswith((".hpp", ".cpp", ".inc")):
            continue
        source = path.removeprefix("src/")
        for number, line in enumerate((root / path).read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            if found and (text := check_include(layers, root, source, *found.groups())):
                findings.append(Finding(path, number, text))
    return findings


if __name__ == "__main__":
    main(check)
