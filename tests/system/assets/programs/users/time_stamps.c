/* SPDX-License-Identifier: Apache-2.0 */
/* The time-stamp counter, which whoever runs directly may see or not. */
#include "users.h"

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Each on a page of its own: nothing else there keeps users from running directly. */
__asm__(".pushsection .text\n"
        ".balign 4096\n"
        "gap_of_readings:\n\t"
        "xor %r8d, %r8d\n"
        "1: rdtsc\n\t"
        "shl $32, %rdx\n\t"
        "or %rdx, %rax\n\t"
        "mov %rax, %rcx\n\t"
        "sub %rsi, %rcx\n\t"
        "cmp %r8, %rcx\n\t"
        "cmova %rcx, %r8\n\t"
        "mov %rax, %rsi\n\t"
        "dec %rdi\n\t"
        "jnz 1b\n\t"
        "mov %r8, %rax\n\t"
        "mov %rsi, %rdx\n\t"
        "ret\n"
        ".balign 4096\n"
        "readings_elsewhere:\n\t"
        "xor %r8d, %r8d\n"
        "1: rdtscp\n\t"
        "and $0xfff, %ecx\n\t" /* Linux: the node is above it */
        "xor %eax, %eax\n\t"
        "cmp %esi, %ecx\n\t"
        "setne %al\n\t"
        "add %rax, %r8\n\t"
        "dec %rdi\n\t"
        "jnz 1b\n\t"
        "mov %r8, %rax\n\t"
        "ret\n"
        ".balign 4096\n"
        ".popsection");
struct gap {
    uint64_t largest, last;
};
struct gap gap_of_readings(uint64_t count, uint64_t last);
uint64_t readings_elsewhere(uint64_t count, unsigned cpu);

/* Returns when it runs there. */
static void move_to(unsigned cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

enum { kCalls = 800 }; /* of the kernel, until who looks out for RDTSCP may stop */

/* How often the counter went back. */
static uint64_t call_and_read(unsigned times) {
    static uint64_t last;
    uint64_t back = 0;
    for (unsigned i = 0; i < times; ++i) {
        syscall(SYS_getppid);
        const struct gap gap = gap_of_readings(3, last);
        back += gap.largest >> 63;
        last = gap.last;
    }
    return back;
}

/* Readings that tell the CPU, and others that do not. */
static void read_on(unsigned cpu) {
    enum { kTurns = 6, kReadings = 2000 };
    move_to(cpu);
    uint64_t back = 0, elsewhere = 0;
    for (unsigned turn = 0; turn < kTurns; ++turn) {
        elsewhere += readings_elsewhere(kReadings, cpu);
        back += call_and_read(kCalls);
    }
    check("time goes on", back, 0);
    check("RDTSCP tells where", elsewhere, 0);
}

static sigjmp_buf again;

static void denied(int number) { siglongjmp(again, number); }

/* Whether reading it does, in the one way and in the other: 1, 2. */
static unsigned faults(void) {
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = denied;
    sigaction(SIGSEGV, &action, &before);
    volatile unsigned which = 0;
    if (sigsetjmp(again, 1) == 0)
        gap_of_readings(1, 0);
    else
        which |= 1;
    if (sigsetjmp(again, 1) == 0)
        readings_elsewhere(1, 0);
    else
        which |= 2;
    sigaction(SIGSEGV, &before, NULL);
    return which;
}

void time_stamps(void) {
    cpu_set_t all;
    sched_getaffinity(0, sizeof all, &all);
    unsigned first = 0, last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(first, &all))
        ++first;
    while (!CPU_ISSET(last, &all))
        --last;
    for (unsigned turn = 0; turn < 2; ++turn) {
        read_on(first);
        read_on(last);
    }
    sched_setaffinity(0, sizeof all, &all);
    for (unsigned turn = 0; turn < 3; ++turn) {
        check("time goes on", call_and_read(kCalls), 0);
        prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
        check("the counter is denied", faults(), 3);
        prctl(PR_SET_TSC, PR_TSC_ENABLE);
        check("it is not", faults(), 0);
    }
}

static uint64_t now_ms(void) { /* by a call, as what the kernel lends to users has a RDTSCP */
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void time_stamp_gaps(unsigned milliseconds) {
    enum { kReadings = 2000 };
    puts("users: counting");
    const uint64_t first = __builtin_ia32_rdtsc(), begun = now_ms();
    struct gap gap = {0, first};
    uint64_t largest = 0, readings = 0, now;
    do {
        gap = gap_of_readings(kReadings, gap.last);
        largest = gap.largest > largest ? gap.largest : largest;
        readings += kReadings;
        now = now_ms();
    } while (now - begun < milliseconds);
    printf("users: %llu readings, largest gap %llu ms\n", (unsigned long long)readings,
           (unsigned long long)((now - begun) * (largest >> 10) / ((gap.last - first) >> 10)));
}
