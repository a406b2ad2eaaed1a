#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""hot_symbols.py LIBRARY …: what may be called while the guest's vector registers are live.

Such a library is compiled with general registers only, but that says nothing of what it calls: a
libc memcpy would clobber the guest's vectors. So every undefined symbol must be defined by another
of the given libraries or stand in hot_symbols.txt. And since the linker keeps one copy of a weak
function, maybe another library's, which uses vector registers, weak functions are refused too.
"""

import subprocess
import sys
from pathlib import Path
from typing import Iterable

from finding import ROOT, Finding, read_table


class Symbols:
    """What `nm` says of one library."""

    def __init__(self, library: str, listing: str):
        self.library = library
        self.defined: set[str] = set()
        self.undefined: set[str] = set()
        self.weak: set[str] = set()
        for words in (line.split() for line in listing.splitlines()):
            if len(words) == 2 and words[0] in "Uw":
                self.undefined.add(words[1])
            elif len(words) == 3:
                self.defined.add(words[2])
                if words[1] == "W":
                    self.weak.add(words[2])


def read(library: str) -> Symbols:
    command = ["nm", library]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Symbols(library, listing)


def complaints(libraries: Iterable[Symbols], allowed: set[str]) -> list[Finding]:
    libraries = list(libraries)
    inside = set().union(*(library.defined for library in libraries)) | allowed
    findings = []
    for library in libraries:
        name = Path(library.library).name
        findings += [Finding(name, 0, f"calls {symbol}, which may clobber vector registers")
                     for symbol in sorted(library.undefined - inside)]
        findings += [Finding(name, 0, f"{symbol} is weak: another library's copy may be linked "
                                      "instead (make it static, or force it inline)")
                     for symbol in sorted(library.weak - allowed)]
    return findings


def main() -> int:
    allowed = {row[0] for row in read_table(ROOT / "tools/lint/hot_symbols.txt")}
    findings = complaints(map(read, sys.argv[1:]), allowed)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
