#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""clang-tidy 19 over translation units of the release build, several at a time.

A unit takes seconds, so what was found is kept in build/tidy/, under a hash of the preprocessed
unit and of .clang-tidy.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable

from finding import Finding, main

TIDY = "clang-tidy-19"
CLANG = "clang++-19"
CACHE = "build/tidy"
BUILD = "build/release"
# The database is g++'s; clang's -mgeneral-regs-only rejects the long double in libstdc++'s headers.
EXTRA = ["--extra-arg=-Wno-unknown-warning-option", "--extra-arg=-mx87",
         "--extra-arg=-fconstexpr-steps=100000000"]
WARNING = re.compile(r"^(.*?):(\d+):\d+: (?:error|warning): (.*)")


def changed(root: Path) -> set[str]:
    """What differs from the commit before the last (or DOPPEL_LINT_BASE), committed or not."""
    base = os.environ.get("DOPPEL_LINT_BASE", "HEAD~1")
    command = ["git", "-C", str(root), "diff", "--name-only", "-z", base]
    names = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return set(names.split("\0"))


def fingerprint(root: Path, path: str, command: str) -> str:
    """Of all that clang-tidy's answer depends on."""
    words = shlex.split(command)
    flags = [word for word in words if word.startswith(("-D", "-I", "-std"))]
    preprocess = [CLANG, *flags, "-E", "-CC", path]
    text = subprocess.run(preprocess, cwd=root, capture_output=True, check=False).stdout
    return hashlib.sha256((root / ".clang-tidy").read_bytes() + text).hexdigest()


def tidy(root: Path, path: str, command: str) -> list[Finding]:
    kept = root / CACHE / fingerprint(root, path, command)
    if not kept.exists():
        tidy_command = [TIDY, "-p", BUILD, "--quiet", *EXTRA, path]
        answer = subprocess.run(tidy_command, cwd=root, capture_output=True, check=False).stdout
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(answer)
    return [Finding(os.path.relpath(found[1], root), int(found[2]), found[3])
            for line in kept.read_text().splitlines() if (found := WARNING.match(line))]


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    database = root / BUILD / "compile_commands.json"
    if not database.exists():
        raise SystemExit("tidy: make build first, it writes compile_commands.json")
    commands = {os.path.relpath(entry["file"], root): entry["command"]
                for entry in json.loads(database.read_text())}
    units = [path for path in paths if path in commands and path.endswith(".cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda path: tidy(root, path, commands[path]), units)
    return sorted({finding for result in results for finding in result})


if __name__ == "__main__":
    main(check)
