# SPDX-License-Identifier: Apache-2.0
"""Finds the functions of a C++ file by their braces: no parser, but right for the code we write."""

import re
from typing import Iterator, NamedTuple

_SKIP = re.compile(
    r'//[^\n]*|/\*.*?\*/'              # comments
    r'|R"([^(]*)\(.*?\)\1"'            # raw strings
    r'|"(?:\\.|[^"\\\n])*"'            # strings
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'"  # characters, but not 1'000
    r'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*',  # directives
    re.DOTALL | re.MULTILINE)
_SCOPE = re.compile(r'\b(namespace|class|struct|union|enum)\b[^()=]*$|\bextern\s*$')
_TEMPLATE = re.compile(r'\btemplate\s*<(?:[^<>]|<(?:[^<>]|<[^<>]*>)*>)*>')
_INIT_LIST = re.compile(r'\)\s*(?:noexcept\s*)?:(?!:)')
_BODY_AFTER = re.compile(r'(?:[)}]|\b(?:const|noexcept|override|final|try|mutable))\s*$')
_ASSIGNED = re.compile(r'(?<!operator)(?<![=!<>+\-*/%&|^])=(?!=)')


class Function(NamedTuple):
    name: str
    line: int
    lines: int


def blank(text: str) -> str:
    """The text without comments, literals and directives; every line stays where it was."""
    return _SKIP.sub(lambda found: re.sub(r'[^\n]', ' ', found.group()), text)


def _outside_parens(text: str) -> str:
    out, depth = [], 0
    for char in text:
        depth += (char in '([') - (char in ')]')
        if depth <= 0:
            out.append(char)
    return ''.join(out)


def _kind(head: str) -> str:
    """What a `{` after this text opens: scope, function or value."""
    head = _TEMPLATE.sub(' ', head)
    flat = _outside_parens(head)
    if '(' not in head:
        return 'scope' if _SCOPE.search(head) else 'value'
    if _SCOPE.search(flat) and flat.rstrip()[-1:] != ')':
        return 'scope'
    if _ASSIGNED.search(flat):
        return 'value'
    if _INIT_LIST.search(head) and not _BODY_AFTER.search(head):
        return 'value'
    return 'function'


def _name(head: str) -> str:
    words = re.findall(r'(?:operator[^\s(\w]+|[\w:~]+)(?=\s*\()', _TEMPLATE.sub(' ', head))
    return words[0] if words else '?'


def functions(text: str) -> Iterator[Function]:
    """Every outermost function, with its lines from the opening to the closing brace."""
    text = blank(text)
    head_start, line = 0, 1
    stack: list[str] = []  # what each open brace opened
    inside = None          # (depth, name, line) of the function we are in
    for position, char in enumerate(text):
        if char == '\n':
            line += 1
        elif char == '{':
            head = text[head_start:position]
            stack.append('code' if inside else _kind(head))
            if stack[-1] == 'function':
                inside = (len(stack), _name(head), line)
            if stack[-1] != 'value':
                head_start = position + 1
        elif char == '}' and stack:
            kind = stack.pop()
            if inside and len(stack) < inside[0]:
                yield Function(inside[1], inside[2], line - inside[2] + 1)
                inside = None
            if kind != 'value':
                head_start = position + 1
        elif char == ';' and not inside and 'value' not in stack:
            head_start = position + 1
