// SPDX-License-Identifier: Apache-2.0
// Processes, threads and switches between two of them. The switches happen on one CPU.
#define _GNU_SOURCE
#include "kernel.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t exit_status_of(pid_t child) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child)
        die("fork or waitpid");
    return WIFEXITED(status) ? (uint64_t)WEXITSTATUS(status) : 1000;
}

uint64_t fork_exit_wait(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i) {
        pid_t child = fork();
        if (child == 0)
            _exit(3);
        digest += exit_status_of(child);
    }
    return digest;
}

/// In a function of its own: the child shares this frame until it executes.
__attribute__((noinline)) static pid_t execute_self(void) {
    static char* const arguments[] = {"kernel", "exit", NULL};
    pid_t child = vfork();
    if (child == 0) {
        execv("/proc/self/exe", arguments);
        _exit(1);
    }
    return child;
}

uint64_t vfork_exec_wait(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i)
        digest += exit_status_of(execute_self());
    return digest;
}

static void* give_back(void* argument) { return argument; }

uint64_t thread_join(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i) {
        pthread_t thread;
        void* result;
        if (pthread_create(&thread, NULL, give_back, (void*)(uintptr_t)i) ||
            pthread_join(thread, &result))
            die("pthread");
        digest += (uintptr_t)result;
    }
    return digest;
}

/// Keeps this thread, and those it makes, on the CPU it is on; returns where it was allowed before.
static cpu_set_t stay_here(void) {
    cpu_set_t before, one;
    sched_getaffinity(0, sizeof before, &before);
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    return before;
}

uint64_t pipe_ping_pong(uint64_t iterations) {
    const uint64_t rounds = iterations * 100;
    int there[2], back[2];
    uint8_t byte = 1;
    uint64_t digest = 0;
    cpu_set_t before = stay_here();
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t child = fork();
    if (child == 0) {
        for (uint64_t i = 0; i < rounds; ++i) {
            if (read(there[0], &byte, 1) != 1)
                _exit(1);
            ++byte;
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    for (uint64_t i = 0; i < rounds; ++i) {
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            die("pipe");
        digest += byte;
    }
    digest += exit_status_of(child) << 32;
    for (int end = 0; end < 2; ++end)
        close(there[end]), close(back[end]);
    sched_setaffinity(0, sizeof before, &before);
    return digest;
}

static _Atomic uint32_t turn; // 0: the first thread's, 1: the second's
static uint64_t turns_each;

/// Waits for `mine`, then gives the turn to the other, turns_each times.
static void* take_turns(void* argument) {
    const uint32_t mine = (uint32_t)(uintptr_t)argument;
    for (uint64_t i = 0; i < turns_each; ++i) {
        while (atomic_load(&turn) != mine)
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, 1 - mine, NULL, NULL, 0);
        atomic_store(&turn, 1 - mine);
        syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    return NULL;
}

uint64_t futex_ping_pong(uint64_t iterations) {
    pthread_t other;
    cpu_set_t before = stay_here();
    turns_each = iterations * 100;
    atomic_store(&turn, 0);
    if (pthread_create(&other, NULL, take_turns, (void*)1))
        die("pthread_create");
    take_turns((void*)0);
    pthread_join(other, NULL);
    sched_setaffinity(0, sizeof before, &before);
    return turns_each + atomic_load(&turn);
}
