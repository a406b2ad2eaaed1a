// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The frame of the programs that measure a machine from inside: natively, under Doppel or QEMU.
///
/// Output, one line per test, made for bench/run-guest:
///   clock NS                 (monotonic, at the start; `end NS` at the end)
///   bench NAME NS_PER_UNIT UNITS UNIT CLASS CHECK MEAN NS
///   skip NAME REASON
///   wrong NAME FIRST OTHER   (two equal runs had different results)
/// NS_PER_UNIT is of the best repetition, MEAN of all. CHECK (hexadecimal) depends on the test
/// alone: all machines must agree on it.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct test {
    const char* name;
    const char* class;   // rows of one class share a geometric mean
    const char* unit;    // what the time is divided by
    uint64_t per_run;    // units in one iteration
    uint64_t check_runs; // iterations that yield CHECK: a few milliseconds on real hardware
    /// Does the work that often, always from the same start; returns a digest of the results.
    uint64_t (*run)(uint64_t iterations);
    /// Optional: allocates and fills what run() needs; returns why it cannot run here, or NULL.
    const char* (*prepare)(void);
};

extern const struct test tests[];  // ends with a test without a name
extern const char* const own_mode; // a word that makes the program call run_own_mode(), or NULL
int run_own_mode(void);

static inline uint64_t mix(uint64_t digest, uint64_t value) {
    return (digest ^ value) * 0x9e3779b97f4a7c15u + (digest >> 29);
}

/// xorshift64: the same numbers everywhere.
static inline uint64_t next_random(uint64_t* state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

uint64_t now_ns(void);
/// Zeroed pages, or the end of the program.
void* pages(size_t bytes);
/// Ends the program with this and errno's text: for what never fails on a sound machine.
void die(const char* what);
