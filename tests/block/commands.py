# SPDX-License-Identifier: Apache-2.0
"""What the image tests share: commands that must end as said, servers that are up."""

import subprocess
import time
from pathlib import Path

LISTENS = "00010000"  # the flag __SO_ACCEPTCON in /proc/net/unix


def run(*words, code=0, timeout=None, **more):
    """What the command did; its exit code is `code`, one of several, or anything (None)."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False,
                          timeout=timeout, **more)
    wanted = code if isinstance(code, tuple) else (code,)
    if code is not None and done.returncode not in wanted:
        raise AssertionError(f"{words}: exit code {done.returncode}, wanted {code}\n"
                             f"{done.stdout}{done.stderr}")
    return done


def listens(socket):
    """Whether a client would be heard: the name alone is there a moment before (bind, listen)."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[-1] == str(socket) and line[3] == LISTENS for line in lines)


def wait_listening(process, socket):
    """Until the server that was just started takes clients on a unix socket."""
    deadline = time.monotonic() + 20
    while not listens(socket):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{process.args}: no server on {socket}")
        time.sleep(0.01)
