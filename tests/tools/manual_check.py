# SPDX-License-Identifier: Apache-2.0
"""manual_check.py DOPPEL: manual and completions know exactly the options that there are."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = {"run"}
VM = {"ls", "status", "pause", "resume", "save", "stop"}
# Whose options each text has, and how it writes one: --memory, Fl -memory, -l memory.
TEXTS = {
    "docs/man/doppel-run.1": (RUN, r"^\.It Fl (?:\w , )?-([a-z-]+)"),
    "docs/man/doppel-vm.1": (VM, r"^\.It Fl (?:\w , )?-([a-z-]+)"),
    "packaging/completion/doppel.bash": (RUN | VM, r"--([a-z-]+)"),
    "packaging/completion/_doppel": (RUN | VM, r"--([a-z-]+)"),
    "packaging/completion/doppel.fish": (RUN | VM, r"-l ([a-z-]+)"),
}


def options_of_program(program: str, commands: set[str]) -> set[str]:
    texts = [subprocess.run([program, command, "--help"], check=True, capture_output=True,
                            text=True).stdout for command in commands]
    found = re.findall(r"^\s+(?:-\w,\s*)?--([a-z-]+)", "\n".join(texts), re.MULTILINE)
    return set(found) - {"help", "version"}


def check_img(program: str) -> int:
    """Each command of `doppel img` has a section with its options in the manual."""
    def text(*words: str) -> str:
        return subprocess.run([program, "img", *words, "--help"], check=True, capture_output=True,
                              text=True).stdout
    overview = text().split("Commands:")[1].split("Formats:")[0]
    manual = (ROOT / "docs/man/doppel-img.1").read_text()
    wrong = 0
    for command in re.findall(r"^  ([a-z]+) ", overview, re.MULTILINE):
        section = re.search(rf"^\.Ss {command} .*?(?=^\.S[sh])", manual, re.MULTILINE | re.DOTALL)
        known = set(re.findall(r"^\.It Fl (-?[\w-]+)", section.group() if section else "",
                               re.MULTILINE))
        options = text(command).split("\nOptions:\n")[1].split("\n\n")[0]
        real = set(re.findall(r"^ +-(-?[\w-]+)", options, re.MULTILINE))
        for option in sorted(real ^ known):
            print(f"doppel-img.1: {command} -{option} is",
                  "missing" if option in real else "not an option")
            wrong = 1
        for name in ("doppel.bash", "_doppel", "doppel.fish"):
            if not re.search(rf"\b{command}\b", (ROOT / "packaging/completion" / name).read_text()):
                print(f"{name}: img {command} is missing")
                wrong = 1
    return wrong


def main() -> int:
    wrong = 0
    for name, (commands, pattern) in TEXTS.items():
        real = options_of_program(sys.argv[1], commands)
        known = set(re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE))
        known -= {"help", "version"}
        wrong |= not real
        for option in sorted(real ^ known):
            print(f"{name}: --{option} is", "missing" if option in real else "not an option")
            wrong = 1
    return wrong | check_img(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
