// SPDX-License-Identifier: Apache-2.0
// Runs the tests of the program it is linked into. Arguments: the beginnings of the names wanted.
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { kRepetitions = 3 };
static const uint64_t kTargetNs = 120000000;  // of one repetition
static const uint64_t kGiveUpNs = 2000000000; // calibration ends here on a slow machine

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void die(const char* what) {
    printf("failed %s: %s\n", what, strerror(errno));
    fflush(stdout);
    _Exit(1);
}

void* pages(size_t bytes) {
    void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

static uint64_t timed(const struct test* test, uint64_t iterations, uint64_t* digest) {
    uint64_t start = now_ns();
    *digest = test->run(iterations);
    uint64_t elapsed = now_ns() - start;
    return elapsed ? elapsed : 1;
}

/// Iterations that take about kTargetNs.
static uint64_t calibrate(const struct test* test) {
    uint64_t iterations = test->check_runs, digest, started = now_ns();
    for (;;) {
        uint64_t elapsed = timed(test, iterations, &digest);
        if (elapsed >= kTargetNs / 4 || now_ns() - started > kGiveUpNs) {
            uint64_t wanted = (uint64_t)((double)iterations * (double)kTargetNs / (double)elapsed);
            return wanted ? wanted : 1;
        }
        iterations *= elapsed * 16 < kTargetNs ? 4 : 2;
    }
}

static void run_test(const struct test* test) {
    const char* obstacle = test->prepare ? test->prepare() : NULL;
    if (obstacle) {
        printf("skip %s %s\n", test->name, obstacle);
        return;
    }
    uint64_t check = test->run(test->check_runs);
    uint64_t iterations = calibrate(test);
    uint64_t best = UINT64_MAX, sum = 0, first = 0;
    for (int i = 0; i < kRepetitions; ++i) {
        uint64_t digest;
        uint64_t elapsed = timed(test, iterations, &digest);
        best = elapsed < best ? elapsed : best;
        sum += elapsed;
        first = i == 0 ? digest : first;
        if (digest != first)
            printf("wrong %s %016lx %016lx\n", test->name, first, digest);
    }
    uint64_t units = iterations * test->per_run;
    double mean = (double)sum / kRepetitions / (double)units;
    printf("bench %s %.4f %lu %s %s %016lx %.4f %lu\n", test->name, (double)best / (double)units,
           units, test->unit, test->class, check, mean, now_ns());
}

static bool chosen(const struct test* test, int count, char** names) {
    for (int i = 0; i < count; ++i)
        if (strncmp(test->name, names[i], strlen(names[i])) == 0)
            return true;
    return count == 0;
}

int main(int argc, char** argv) {
    if (own_mode && argc == 2 && strcmp(argv[1], own_mode) == 0)
        return run_own_mode();
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("clock %lu\n", now_ns());
    for (const struct test* test = tests; test->name; ++test)
        if (chosen(test, argc - 1, argv + 1))
            run_test(test);
    printf("end %lu\n", now_ns());
    return 0;
}
