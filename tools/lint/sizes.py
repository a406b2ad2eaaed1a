#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Function 60 lines, file 600 lines, line 100 columns; exceptions and their reasons: sizes.txt."""

import ast
import fnmatch
from pathlib import Path
from typing import Iterable, Iterator

from cpp_functions import Function, functions
from finding import ROOT, Finding, main, read_table

FUNCTION_LINES, FILE_LINES, COLUMNS = 60, 600, 100
CPP = (".cpp", ".hpp", ".c", ".h", ".inc")
SCRIPTS = (".py", ".sh", ".cmake", ".S", ".asm")


def python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Function(node.name, node.lineno, node.end_lineno - node.lineno + 1)


def is_source(root: Path, path: str) -> bool:
    if path.endswith(CPP + SCRIPTS) or Path(path).name in ("CMakeLists.txt", "Makefile"):
        return True
    with open(root / path, "rb") as file:
        return file.read(2) == b"#!"


def check_file(path: str, text: str, exempt: set[str]) -> Iterator[Finding]:
    lines = text.splitlines()
    if len(lines) > FILE_LINES and "file" not in exempt:
        yield Finding(path, len(lines), f"file has {len(lines)} lines, at most {FILE_LINES}")
    if "line" not in exempt:
        for number, line in enumerate(lines, 1):
            if len(line) > COLUMNS:
                yield Finding(path, number, f"line has {len(line)} columns, at most {COLUMNS}")
    if "function" in exempt:
        return
    found = functions(text) if path.endswith(CPP) else ()
    if path.endswith(".py"):
        found = python_functions(text)
    for function in found:
        if function.lines > FUNCTION_LINES:
            yield Finding(path, function.line, f"function {function.name} has {function.lines} "
                                               f"lines, at most {FUNCTION_LINES}")


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    rows = read_table(ROOT / "tools/lint/sizes.txt")
    findings = []
    for path in paths:
        if is_source(root, path):
            exempt = {row[1] for row in rows if fnmatch.fnmatch(path, row[0])}
            findings += check_file(path, (root / path).read_text(), exempt)
    return findings


if __name__ == "__main__":
    main(check)
