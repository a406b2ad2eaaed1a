// SPDX-License-Identifier: Apache-2.0
// Control flow: calls and returns, indirect calls, the switch of an interpreter.
#include "cpu.h"

__attribute__((noinline, optimize("no-optimize-sibling-calls,no-inline"))) static uint64_t
fib(uint64_t n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

uint64_t fib_calls(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i)
        digest = mix(digest, fib(21)); // kFibCalls of them
    return digest;
}

enum { kTargets = 8, kCalls = 4096 };
typedef uint64_t (*target)(uint64_t);

#define TARGET(n, expression)                                                                      \
    __attribute__((noinline)) static uint64_t target_##n(uint64_t x) { return expression; }
TARGET(0, x + 1)
TARGET(1, x ^ 0x55)
TARGET(2, x * 3)
TARGET(3, x - 7)
TARGET(4, x << 1 | x >> 63)
TARGET(5, ~x)
TARGET(6, x + (x >> 3))
TARGET(7, x ^ x >> 9)

static const target targets[kTargets] = {target_0, target_1, target_2, target_3,
                                         target_4, target_5, target_6, target_7};
static target same[kCalls], cycle[kCalls], shuffled[kCalls];

const char* prepare_calls(void) {
    uint64_t random = 7;
    for (int i = 0; i < kCalls; ++i) {
        same[i] = targets[3];
        cycle[i] = targets[i % kTargets];
        shuffled[i] = targets[next_random(&random) >> 20 & (kTargets - 1)];
    }
    return NULL;
}

static uint64_t call_all(const target* list, uint64_t iterations) {
    uint64_t value = 1;
    for (uint64_t i = 0; i < iterations; ++i)
        for (int at = 0; at < kCalls; ++at)
            value = list[at](value);
    return value;
}

uint64_t call_same(uint64_t iterations) { return call_all(same, iterations); }
uint64_t call_cycle(uint64_t iterations) { return call_all(cycle, iterations); }
uint64_t call_random(uint64_t iterations) { return call_all(shuffled, iterations); }

enum op { kLoad, kAdd, kXor, kShift, kStore, kDecrement, kLoop, kHalt };
struct instruction {
    uint8_t op, operand;
};

/// A stack-less byte code: one accumulator, eight registers; 1000 rounds of six operations.
static uint64_t interpret(const struct instruction* program, uint64_t seed) {
    uint64_t registers[8] = {seed, 3, 5, 0, 0, 0, 0, 1000}, accumulator = 0;
    for (const struct instruction* at = program;; ++at) {
        switch ((enum op)at->op) {
        case kLoad: accumulator = registers[at->operand]; break;
        case kAdd: accumulator += registers[at->operand]; break;
        case kXor: accumulator ^= registers[at->operand]; break;
        case kShift: accumulator = accumulator << at->operand | accumulator >> 60; break;
        case kStore: registers[at->operand] = accumulator; break;
        case kDecrement: --registers[at->operand]; break;
        case kLoop:
            if (registers[7])
                at = program - 1;
            break;
        case kHalt: return accumulator;
        }
    }
}

uint64_t interpreter(uint64_t iterations) {
    static const struct instruction program[] = {{kAdd, 0},   {kShift, 3},     {kXor, 1},
                                                 {kStore, 0}, {kDecrement, 7}, {kLoop, 0},
                                                 {kLoad, 0},  {kHalt, 0}};
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i)
        digest = mix(digest, interpret(program, i));
    return digest;
}
