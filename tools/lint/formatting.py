#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""C++ stands as clang-format 19 would write it (.clang-format); `make format` rewrites it so."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable

from finding import Finding, main

FORMAT = "clang-format-19"
WARNING = re.compile(r"^(.*?):(\d+):\d+: (?:error|warning): code should be clang-formatted")


def formatted(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.endswith((".cpp", ".hpp", ".c", ".h"))]


def dry_run(root: Path, paths: list[str]) -> str:
    return subprocess.run([FORMAT, "--dry-run", "-Werror", *paths], text=True, cwd=root,
                          capture_output=True, check=False).stderr


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    names = formatted(paths)
    if not names:
        return []
    chunks = [names[start:start + 16] for start in range(0, len(names), 16)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = "".join(pool.map(lambda chunk: dry_run(root, chunk), chunks))
    first: dict[str, int] = {}
    for line in errors.splitlines():
        if found := WARNING.match(line):
            first.setdefault(found[1], int(found[2]))
    if errors and not first:
        raise SystemExit(f"{FORMAT}: {errors}")
    return [Finding(path, line, "not formatted: make format") for path, line in first.items()]


if __name__ == "__main__":
    main(check)
