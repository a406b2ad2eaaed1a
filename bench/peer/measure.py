# SPDX-License-Identifier: Apache-2.0
"""Runs a command and observes it from outside: wall and CPU time, memory, the host's other load."""

import dataclasses
import os
import pathlib
import re
import resource
import signal
import subprocess
import threading
import time

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count()
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
LIMIT = 0.05  # of the host's CPUs, for other load and for steal


@dataclasses.dataclass
class Mark:
    """A line of output: when it came, and the CPU time the command had used by then."""
    text: str
    wall_ns: int
    cpu_ns: int


@dataclasses.dataclass
class Run:
    status: int = 0
    output: str = ""
    marks: list = dataclasses.field(default_factory=list)
    wall_ns: int = 0
    cpu_ns: int = 0
    other_load: float = 0.0
    steal: float = 0.0

    @property
    def is_quiet(self):
        return self.other_load <= LIMIT and self.steal <= LIMIT


def host_ticks():
    """(busy, steal) of all CPUs since boot."""
    fields = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return user + nice + system + irq + softirq, steal


def descendants(pid):
    """The process and all below it."""
    found = [pid]
    try:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += descendants(int(child))
    except OSError:
        pass  # it has just ended
    return found


def cpu_ns_of(pid):
    """User and system time of a process, its children and what they have waited for (proc(5),
    stat)."""
    ticks = 0
    for process in descendants(pid):
        try:
            fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended, and its parent counts it
        ticks += sum(int(x) for x in fields[11:15])
    return ticks * TICK_NS


def own_cpu_ns():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


def read_marks(process, marked):
    """All output, and a Mark for each line that starts with one of `marked`."""
    output, marks, line = [], [], b""
    descriptor = process.stdout.fileno()
    while chunk := os.read(descriptor, 65536):
        now = time.monotonic_ns()
        output.append(chunk)
        *complete, line = (line + chunk).split(b"\n")
        for text in complete:
            if text.startswith(marked):
                words = text.decode(errors="replace").strip()
                marks.append(Mark(words, now, cpu_ns_of(process.pid)))
    return b"".join(output).decode(errors="replace"), marks, None


def read_until(process, text):
    """All output up to `text`, then kills. With the CPU time: who is killed waits for no child."""
    output = b""
    while text not in output and (chunk := os.read(process.stdout.fileno(), 65536)):
        output += chunk
    cpu_ns = cpu_ns_of(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    return output.decode(errors="replace"), [], cpu_ns


def execute_until(command, text, timeout):
    """Until the command has written `text`, or has ended; all its processes are killed then."""
    return observe(command, timeout, lambda process: read_until(process, text.encode()))


def execute(command, timeout, marked=(b"clock ", b"bench ", b"skip ", b"wrong ", b"end ")):
    return observe(command, timeout, lambda process: read_marks(process, marked))


def observe(command, timeout, read):
    """A Run; `read` says when it is over: it returns output, marks, and the CPU time unless all
    processes have been waited for by then."""
    run = Run()
    busy_before, steal_before = host_ticks()
    own_before, start = own_cpu_ns(), time.monotonic_ns()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)
    timer = threading.Timer(timeout, os.killpg, [process.pid, signal.SIGKILL])
    timer.start()
    try:
        run.output, run.marks, cpu_ns = read(process)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    process.returncode = run.status = os.waitstatus_to_exitcode(status)
    run.wall_ns = time.monotonic_ns() - start
    run.cpu_ns = int((usage.ru_utime + usage.ru_stime) * 1e9) if cpu_ns is None else cpu_ns
    busy, steal = host_ticks()
    other = (busy - busy_before) * TICK_NS - run.cpu_ns - (own_cpu_ns() - own_before)
    run.other_load = max(0.0, other / (run.wall_ns * CPUS))
    run.steal = (steal - steal_before) * TICK_NS / (run.wall_ns * CPUS)
    return run


def memory_kib(pid, guest_mib):
    """(resident memory besides guest RAM, resident guest RAM) of a process and its children. Guest
    RAM is known by its size or its name. Pss: what is mapped twice or shared counts once."""
    own = guest = 0
    for process in descendants(pid):
        is_guest = False
        size = 0
        for line in pathlib.Path(f"/proc/{process}/smaps").read_text().splitlines():
            if MAPPING.match(line):
                is_guest = "doppel-ram" in line
            elif line.startswith("Size:"):
                size = int(line.split()[1])
            elif line.startswith("Pss:"):
                if is_guest or size == guest_mib << 10:
                    guest += int(line.split()[1])
                else:
                    own += int(line.split()[1])
    return own, guest


def peak_memory_kib(command, guest_mib, timeout):
    """The most that memory_kib() shows while the command runs, looked at every 20 ms."""
    peak = (0, 0)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        try:
            peak = max(peak, memory_kib(process.pid, guest_mib))
        except OSError:
            break  # it has just ended
        time.sleep(0.02)
    process.kill()
    process.wait()
    return peak
