// SPDX-License-Identifier: Apache-2.0
// What two CPUs are worth and how late timers are; for bench/run-smp. Output:
//   scaling ALONE_NS BOTH_NS    the same loop on CPU 0, and on CPUs 0 and 1 at once (the slower
//   one) timer P50_NS P99_NS MAX_NS  how late a thread wakes that wants to wake every millisecond
#define _GNU_SOURCE
#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { kTable = 1024, kWakeups = 2000, kPeriodNs = 1000000 };
static const uint64_t kLoops = 12000000;
static atomic_int g_ready, g_wanted;

const struct test tests[] = {{0}};
const char* const own_mode = "measure";

struct worker {
    int cpu;
    uint64_t elapsed_ns, digest;
};

static void* compute(void* argument) {
    struct worker* worker = argument;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(worker->cpu, &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) != 0)
        die("sched_setaffinity");
    uint64_t table[kTable], state = 88172645463325252u;
    for (int i = 0; i < kTable; ++i)
        table[i] = next_random(&state);
    atomic_fetch_add(&g_ready, 1);
    while (atomic_load(&g_ready) != g_wanted)
        sched_yield();
    uint64_t start = now_ns(), digest = 0;
    for (uint64_t i = 0; i < kLoops; ++i) {
        uint64_t* place = &table[digest % kTable];
        *place += i;
        digest = mix(digest, *place);
    }
    worker->elapsed_ns = now_ns() - start;
    worker->digest = digest;
    return NULL;
}

/// Nanoseconds that the slowest of `count` loops takes, all at once.
static uint64_t at_once(int count) {
    struct worker workers[2] = {{.cpu = 0}, {.cpu = 1}};
    pthread_t threads[2];
    atomic_store(&g_ready, 0);
    g_wanted = count;
    for (int i = 0; i < count; ++i)
        if (pthread_create(&threads[i], NULL, compute, &workers[i]) != 0)
            die("pthread_create");
    uint64_t slowest = 0;
    for (int i = 0; i < count; ++i) {
        pthread_join(threads[i], NULL);
        if (workers[i].elapsed_ns > slowest)
            slowest = workers[i].elapsed_ns;
        if (workers[i].digest != workers[0].digest)
            printf("wrong loop %016lx %016lx\n", workers[0].digest, workers[i].digest);
    }
    return slowest;
}

static int by_value(const void* left, const void* right) {
    uint64_t a = *(const uint64_t*)left, b = *(const uint64_t*)right;
    return (a > b) - (a < b);
}

static void measure_timer(void) {
    static uint64_t late[kWakeups];
    struct sched_param priority = {.sched_priority = 80};
    sched_setscheduler(0, SCHED_FIFO, &priority); // without the right to it: as it is
    uint64_t due = now_ns();
    for (int i = 0; i < kWakeups; ++i) {
        due += kPeriodNs;
        struct timespec at = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) != 0) {
        }
        uint64_t now = now_ns();
        late[i] = now - due;
        if (now > due + kPeriodNs)
            due = now; // far behind: the next one is not late because of this one
    }
    qsort(late, kWakeups, sizeof late[0], by_value);
    printf("timer %lu %lu %lu\n", late[kWakeups / 2], late[kWakeups * 99 / 100],
           late[kWakeups - 1]);
}

int run_own_mode(void) {
    uint64_t alone = UINT64_MAX, both = UINT64_MAX;
    for (int i = 0; i < 3; ++i) {
        uint64_t one = at_once(1), two = at_once(2);
        alone = one < alone ? one : alone;
        both = two < both ? two : both;
    }
    printf("scaling %lu %lu\n", alone, both);
    measure_timer();
    return 0;
}
