# SPDX-License-Identifier: Apache-2.0
"""What all linters share: findings, the tracked files, allow-lists, the command line."""

import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterable, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Finding(NamedTuple):
    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def tracked_files(root: Path = ROOT) -> list[str]:
    """Every file git knows and that still exists, plus new ones that are not ignored."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others",
               "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in names.split("\0") if name and (root / name).is_file()})


def read_table(path: Path) -> list[list[str]]:
    """The words of every line of a data file; `#` starts a comment."""
    rows = (line.split("#", 1)[0].split() for line in path.read_text().splitlines())
    return [row for row in rows if row]


def main(check: Callable[[Path, Iterable[str]], list[Finding]]) -> None:
    """Runs a linter over the files of the command line, or over all tracked ones."""
    findings = check(ROOT, sys.argv[1:] or tracked_files())
    for finding in findings:
        print(finding)
    sys.exit(1 if findings else 0)
