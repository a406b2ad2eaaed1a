# SPDX-License-Identifier: Apache-2.0
"""manual_check.py DOPPEL: manual and completions know exactly the options of `doppel run`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# How each text writes an option: --memory, Fl -memory, -l memory.
TEXTS = {
    "docs/man/doppel-run.1": r"^\.It Fl (?:\w , )?-([a-z-]+)",
    "packaging/completion/doppel.bash": r"--([a-z-]+)",
    "packaging/completion/_doppel": r"--([a-z-]+)",
    "packaging/completion/doppel.fish": r"-l ([a-z-]+)",
}


def options_of_program(program: str) -> set[str]:
    command = [program, "run", "--help"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^\s+(?:-\w,\s*)?--([a-z-]+)", text, re.MULTILINE))


def main() -> int:
    real = options_of_program(sys.argv[1]) - {"help"}
    wrong = 0 if real else 1
    for name, pattern in TEXTS.items():
        known = set(re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE))
        known -= {"help", "version"}
        for option in sorted(real ^ known):
            print(f"{name}: --{option} is", "missing" if option in real else "not an option")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
