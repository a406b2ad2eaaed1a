// SPDX-License-Identifier: Apache-2.0
// Prints the cost of one change of TLB instance for each candidate (nanoseconds, minimum of many runs).
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

void switch_gs(void*, uint64_t, void*, void*), switch_r15(void*, uint64_t, void*, void*),
    switch_rsp(void*, uint64_t, void*, void*), switch_none(void*, uint64_t, void*, void*);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(void) {
    enum { rounds = 20000, entries = 65536, stack = 8192 };
    static const struct { const char* name; void (*run)(void*, uint64_t, void*, void*); } ways[] = {
        {"none", switch_none}, {"mov r15", switch_r15}, {"mov rsp + 64 B", switch_rsp}, {"wrgsbase", switch_gs}};
    void** cell = aligned_alloc(4096, 4096);
    char* area[2];
    *cell = cell;
    for (int i = 0; i < 2; i++) {
        area[i] = (char*)calloc(1, entries * 8 + stack) + stack;
        area[i] = (char*)((uintptr_t)area[i] & ~(uintptr_t)63);
        ((uint64_t*)area[i])[((uintptr_t)cell >> 12) & (entries - 1)] = (uintptr_t)cell & ~4095ULL;
    }
    double best[4] = {1e9, 1e9, 1e9, 1e9};
    for (int r = 0; r < 200; r++)
        for (int w = 0; w < 4; w++) {
            double t = now();
            ways[w].run(cell, rounds, area[0], area[1]);
            t = (now() - t) / rounds;
            if (t < best[w]) best[w] = t;
        }
    for (int w = 0; w < 4; w++) printf("%-16s %6.2f ns  (%+.2f)\n", ways[w].name, best[w], best[w] - best[0]);
    return 0;
}
