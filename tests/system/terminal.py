# SPDX-License-Identifier: Apache-2.0
"""A program on a pseudo-terminal of its own, as a person at a console would drive it."""

import os
import pty
import re
import select
import signal
import termios
import time


class Terminal:
    """Starts the program; `expect` and `type` talk to it, `wait` returns its exit code."""

    def __init__(self, command):
        self.output = ""  # all that came
        self.seen = 0     # up to here, expect() has looked
        self.status = None
        leader, follower = pty.openpty()
        self.fd, self.keeper = leader, follower  # the terminal outlives the program
        self.settings_before = termios.tcgetattr(follower)
        self.pid = os.fork()
        if self.pid == 0:
            os.login_tty(follower) if hasattr(os, "login_tty") else self.take(follower)
            os.execv(command[0], command)

    @staticmethod
    def take(follower):
        os.setsid()
        for fd in (0, 1, 2):
            os.dup2(follower, fd)
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it the controlling terminal

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)
        os.close(self.keeper)

    def read(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if ready:
            self.output += os.read(self.fd, 65536).decode(errors="replace").replace("\r", "")

    def expect(self, pattern, seconds=60):
        """Waits for the regular expression behind what was expected last; returns the match."""
        deadline = time.monotonic() + seconds
        while True:
            match = re.compile(pattern, re.M).search(self.output, self.seen)
            if match:
                self.seen = match.end()
                return match
            left = deadline - time.monotonic()
            if left <= 0 or self.ended():
                raise AssertionError(f"no {pattern!r} in:\n{self.output[-3000:]}")
            self.read(min(left, 0.2))

    def type(self, text):
        os.write(self.fd, text.encode())

    def ended(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self.read(0)
                return False  # what came last shall be looked at too
        return self.status is not None

    def wait(self, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.ended() and self.status is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"does not end:\n{self.output[-3000:]}")
            self.read(0.05)
        return self.status

    def settings(self):
        return termios.tcgetattr(self.keeper)

    def is_raw(self):
        return not self.settings()[3] & (termios.ICANON | termios.ECHO)
