#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Relative links of the documents lead to files that exist."""

import re
from pathlib import Path
from typing import Iterable

from finding import Finding, main

LINK = re.compile(r'\]\(([^)#\s]+)(?:#[^)]*)?\)')


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    findings = []
    for path in paths:
        if not path.endswith(".md"):
            continue
        for number, line in enumerate((root / path).read_text().splitlines(), 1):
            for target in LINK.findall(line):
                if "://" in target or target.startswith("mailto:"):
                    continue
                if not ((root / path).parent / target).exists():
                    findings.append(Finding(path, number, f"link to {target}: no such file"))
    return findings


if __name__ == "__main__":
    main(check)
