#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whole programs in a Debian guest, each timed by the guest's clock; output as bench/guest/bench.h
says. Fixed work, so that all machines do the same; where the result is known its digest is printed,
else 0. Arguments: the beginnings of names; none: all.

python-loops    arithmetic, lists, dictionaries, calls in CPython
gcc-O2          a file of 2000 lines, to assembly
xz              1 MiB of text, level 6
openssl-…       `openssl speed`, the code path chosen by OPENSSL_ia32cap; openssl-sha256-own: as it
                chooses by itself, for a machine without the instructions of another path
"""

import os
import subprocess
import sys
import time

TIMES = 2  # the best of
SECONDS = "2"  # of a line of `openssl speed`

# Bits of OPENSSL_ia32cap (OPENSSL_ia32cap(3)): CPUID 1 EDX, ECX; behind the colon 7 EBX, ECX.
SSSE3, AES, AVX = 1 << 41, 1 << 57, 1 << 60
AVX2, AVX512F, SHA = 1 << 5, 1 << 16, 1 << 29


def without(first, second):
    return f"~{first:#x}:~{second:#x}"


PATHS = [  # name, algorithm, OPENSSL_ia32cap, flags of /proc/cpuinfo that the path needs, unit
    ("openssl-sha256-scalar", ["-evp", "sha256"], without(SSSE3 | AVX, AVX2 | AVX512F | SHA), "",
     "byte"),
    ("openssl-sha256-avx2", ["-evp", "sha256"], without(0, SHA | AVX512F), "avx2", "byte"),
    ("openssl-sha256-shani", ["-evp", "sha256"], without(0, 0), "sha_ni", "byte"),
    ("openssl-sha256-own", ["-evp", "sha256"], without(0, 0), "", "byte"),
    ("openssl-aes-aesni", ["-evp", "aes-128-cbc"], without(AVX, AVX2 | AVX512F), "aes", "byte"),
    ("openssl-gcm-aesni-avx", ["-evp", "aes-128-gcm"], without(0, AVX512F), "aes avx pclmulqdq",
     "byte"),
    ("openssl-chacha-avx2", ["-evp", "chacha20-poly1305"], without(0, AVX512F), "avx2", "byte"),
    ("openssl-rsa2048-mulx", ["rsa2048"], without(0, AVX512F), "bmi2 adx", "sign"),
]


def now_ns():
    return time.monotonic_ns()


def python_loops():
    total, table = 0, {}
    for i in range(400_000):
        total = (total * 31 + i) & 0xffffffff
        table[total & 1023] = table.get(total & 1023, 0) + i
    values = [x * x % 1009 for x in range(200_000)]
    values.sort()

    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)
    return (total ^ sum(table.values()) ^ sum(values[::7]) ^ fib(22)) & 0xffffffffffffffff


def source_file():
    """2000 lines of C: functions of loops, switches and structures, each a little different."""
    lines = ["#include <stdint.h>", "struct node { struct node *next; uint64_t key; int kind; };",
             "extern uint64_t sink(uint64_t);"]
    number = 12345
    while len(lines) < 1990:
        number = (number * 1103515245 + 12345) & 0x7fffffff
        a, b, c = number % 61 + 3, number // 61 % 31 + 1, number // 1891 % 13 + 2
        lines += [
            f"uint64_t work{len(lines)}(struct node *list, const uint32_t *in, int n) {{",
            f"    uint64_t sum = {number};",
            "    for (int i = 0; i < n; ++i) {",
            f"        sum = sum * {a} + (in[i] >> {b % 31});",
            f"        if ((sum & {c}) == {c % 3})",
            f"            sum ^= in[(i + {b}) % n];",
            "    }",
            "    for (struct node *p = list; p != 0; p = p->next) {",
            "        switch (p->kind) {",
            f"        case {c}: sum += p->key * {a}; break;",
            f"        case {c + 1}: sum -= p->key / {b}; break;",
            f"        case {c + 2}: sum = sink(sum) ^ p->key; break;",
            f"        default: sum = (sum << {b % 7 + 1}) | (sum >> {63 - b % 7});",
            "        }",
            "    }",
            "    return sum;",
            "}"]
    lines += ["/* the end */"] * (2000 - len(lines))
    return "\n".join(lines) + "\n"


def text_file():
    words = "the of and machine guest page cache block register code time memory".split()
    number, out = 1, []
    for _ in range(200_000):
        number = (number * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        out.append(words[number >> 60] if number >> 60 < len(words) else f"{number >> 44:x}")
    return " ".join(out)[:1 << 20]


def digest(path):
    return subprocess.run(["sha256sum", path], check=True, capture_output=True,
                          text=True).stdout[:16]


def run(command, output=None, environment=None):
    with open(output or "/dev/null", "wb") as file:
        subprocess.run(command, check=True, stdout=file, env={**os.environ, **(environment or {})})


def report(name, per_run, unit, work):
    """`work` returns a digest."""
    elapsed, checks = [], set()
    for _ in range(TIMES):
        start = now_ns()
        checks.add(work())
        elapsed.append((now_ns() - start) / per_run)
    if len(checks) != 1:
        print("wrong", name, *sorted(checks), flush=True)
    mean = sum(elapsed) / len(elapsed)
    print(f"bench {name} {min(elapsed):.6g} {per_run} {unit} debian {checks.pop()} {mean:.6g} "
          f"{now_ns()}", flush=True)


def compile_file():
    run(["gcc", "-O2", "-S", "-o", "file.s", "file.c"])
    return digest("file.s")


def compress_file():
    run(["/bench/xz", "-6", "-T1", "-c", "text"], output="text.xz")
    return digest("text.xz")


def speed(name, algorithm, capabilities, needs, unit):
    flags = open("/proc/cpuinfo").read().split("flags", 1)[1].split("\n")[0].split()
    missing = [flag for flag in needs.split() if flag not in flags]
    if missing:
        print(f"skip {name} this machine's CPU lacks {' '.join(missing)}", flush=True)
        return
    sizes = ["-bytes", "16384"] if unit == "byte" else []
    said = subprocess.run(["openssl", "speed", "-mr", "-elapsed", "-seconds", SECONDS, *sizes,
                           *algorithm], check=True, capture_output=True, text=True,
                          env={**os.environ, "OPENSSL_ia32cap": capabilities}).stdout
    for line in said.splitlines():
        fields = line.split(":")
        if fields[0] == "+F":  # bytes a second
            ns = 1e9 / float(fields[-1])
        elif fields[0] == "+F2":  # signatures a second, verifications
            ns = 1e9 / float(fields[3])
        else:
            continue
        print(f"bench {name} {ns:.6g} 1 {unit} debian 0 {ns:.6g} {now_ns()}", flush=True)


def main():
    wanted = sys.argv[1:]

    def chosen(name):
        return not wanted or any(name.startswith(start) for start in wanted)
    for name, text in (("file.c", source_file()), ("text", text_file())):
        with open(name, "w") as file:
            file.write(text)
    print(f"clock {now_ns()}", flush=True)
    if chosen("python-loops"):
        report("python-loops", 1, "run", lambda: f"{python_loops():x}")
    if chosen("gcc-O2"):
        report("gcc-O2", 1, "run", compile_file)
    if chosen("xz"):
        report("xz", 1, "run", compress_file)
    for path in PATHS:
        if chosen(path[0]):
            speed(*path)
    print(f"end {now_ns()}", flush=True)


main()
