#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every source file says its licence in the first line (the second after #!)."""

import re
from pathlib import Path
from typing import Iterable

from finding import Finding, main

LINE = re.compile(r'^(//|#|;|/\*|\.\\"|<!--|--) ?SPDX-License-Identifier: Apache-2\.0\b')
# Prose, data without a comment syntax, and what is compared byte for byte.
EXEMPT_SUFFIX = (".md", ".json", ".golden", ".bin", ".gitignore", ".gitattributes", ".svg", ".png")
EXEMPT_FOLDER = ("tests/golden/",)


def exempt(path: str) -> bool:
    return (path == "LICENSE" or path.endswith(EXEMPT_SUFFIX) or path.startswith(EXEMPT_FOLDER)
            or "/seeds/" in path)


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    findings = []
    for path in paths:
        if exempt(path):
            continue
        lines = (root / path).read_text(errors="replace").splitlines()[:2]
        first = lines[1:] if lines and lines[0].startswith(("#!", "#compdef")) else lines[:1]
        if not (first and LINE.match(first[0])):
            findings.append(Finding(path, 1, "first line is not an SPDX line (Apache-2.0)"))
    return findings


if __name__ == "__main__":
    main(check)
