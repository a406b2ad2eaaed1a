#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""clang-tidy 19 over translation units of the release build, two at a time."""

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable

from finding import Finding, main

TIDY = "clang-tidy-19"
BUILD = "build/release"
# The database is g++'s; clang's -mgeneral-regs-only rejects the long double in libstdc++'s headers.
EXTRA = ["--extra-arg=-Wno-unknown-warning-option", "--extra-arg=-mx87"]
WARNING = re.compile(r"^(.*?):(\d+):\d+: (?:error|warning): (.*)")


def changed(root: Path) -> set[str]:
    """What differs from the commit before the last (or DOPPEL_LINT_BASE), committed or not."""
    base = os.environ.get("DOPPEL_LINT_BASE", "HEAD~1")
    command = ["git", "-C", str(root), "diff", "--name-only", "-z", base]
    names = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return set(names.split("\0"))


def tidy(root: Path, path: str) -> list[Finding]:
    command = [TIDY, "-p", BUILD, "--quiet", *EXTRA, path]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    return [Finding(os.path.relpath(found[1], root), int(found[2]), found[3])
            for line in output.splitlines() if (found := WARNING.match(line))]


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    database = root / BUILD / "compile_commands.json"
    if not database.exists():
        raise SystemExit("tidy: make build first, it writes compile_commands.json")
    known = {os.path.relpath(entry["file"], root) for entry in json.loads(database.read_text())}
    units = [path for path in paths if path in known and path.endswith(".cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda path: tidy(root, path), units)
    return sorted({finding for result in results for finding in result})


if __name__ == "__main__":
    main(check)
