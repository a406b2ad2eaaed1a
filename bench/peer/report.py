# SPDX-License-Identifier: Apache-2.0
"""Medians, spreads, geometric means, and a table of them."""

import math
import os
import pathlib
import statistics
import subprocess

from peer.machines import SOURCE


def median(values):
    return statistics.median(values)


def spread(values):
    """Half of the range, as a part of the median."""
    middle = median(values)
    return (max(values) - min(values)) / 2 / middle if middle else 0.0


def geomean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def number(value):
    """Three significant digits, no exponent."""
    if value is None or math.isnan(value):
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def table(header, rows):
    """A Markdown table that also reads well as text: first column left, the others right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) if i == 0 else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(row, widths))]
        lines.append("| " + " | ".join(padded) + " |")
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def verdict(what, value, wanted, at_most=True, notes=()):
    """A line that says whether `value` is what is wanted; `notes`: why not to believe it."""
    met = value <= wanted if at_most else value >= wanted
    line = (f"Verdict: {what}: {number(value)}, wanted {'at most' if at_most else 'at least'} "
            f"{wanted:g}: {'met' if met else 'MISSED'}")
    return line + (" (not to be judged by: loaded runs)" if notes else "")


def host():
    """What the results depend on."""
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo")
                if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", SOURCE, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "cpus": os.cpu_count(), "kernel": os.uname().release,
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            "load_average": pathlib.Path("/proc/loadavg").read_text().split()[0], "commit": commit}
