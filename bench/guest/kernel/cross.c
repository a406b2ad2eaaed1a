// SPDX-License-Identifier: Apache-2.0
// What CPUs do to each other: wake, interrupt, fight for locks. Not on a machine with one CPU.
#define _GNU_SOURCE
#include "kernel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kPage = 4096, kPairs = 8, kMessageBytes = 100 };

const char* prepare_cross(void) { return sysconf(_SC_NPROCESSORS_ONLN) < 2 ? "one CPU" : NULL; }

/// This thread, on the first or second of the CPUs it may use.
static void stay_on(size_t which, const cpu_set_t* allowed) {
    cpu_set_t one;
    size_t cpu = 0;
    for (; which > 0 || !CPU_ISSET(cpu, allowed); ++cpu)
        which -= CPU_ISSET(cpu, allowed) ? 1 : 0;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one))
        die("sched_setaffinity");
}

static uint64_t status_of(pid_t child) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
        die("fork or waitpid");
    return (uint64_t)WEXITSTATUS(status);
}

/// Each write wakes a CPU that sleeps.
uint64_t cross_pipe(uint64_t iterations) {
    const uint64_t rounds = iterations * 100;
    int there[2], back[2];
    uint8_t byte = 1;
    uint64_t digest = 0;
    cpu_set_t before;
    sched_getaffinity(0, sizeof before, &before);
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t child = fork();
    stay_on(child == 0, &before);
    for (uint64_t i = 0; i < rounds; ++i) {
        if (child == 0) {
            if (read(there[0], &byte, 1) != 1 || (++byte, write(back[1], &byte, 1)) != 1)
                _exit(1);
        } else if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) {
            die("pipe");
        }
        digest += byte;
    }
    if (child == 0)
        _exit(0);
    digest += status_of(child) << 32;
    for (int end = 0; end < 2; ++end)
        close(there[end]), close(back[end]);
    sched_setaffinity(0, sizeof before, &before);
    return digest;
}

static atomic_int spins;
static cpu_set_t spins_on;

static void* spin(void* argument) {
    stay_on(1, &spins_on);
    atomic_store(&spins, 1);
    while (atomic_load(&spins) != 2)
        ;
    return argument;
}

/// Each change of a page's protection must be known to the CPU that runs the other thread.
uint64_t shootdown(uint64_t iterations) {
    pthread_t other;
    uint64_t digest = 0;
    uint8_t* page = pages(kPage);
    sched_getaffinity(0, sizeof spins_on, &spins_on);
    atomic_store(&spins, 0);
    if (pthread_create(&other, NULL, spin, NULL))
        die("pthread_create");
    stay_on(0, &spins_on);
    while (atomic_load(&spins) == 0)
        sched_yield();
    for (uint64_t i = 0; i < iterations * 100; ++i) {
        digest += ++*page;
        if (mprotect(page, kPage, PROT_READ) || mprotect(page, kPage, PROT_READ | PROT_WRITE))
            die("mprotect");
    }
    atomic_store(&spins, 2);
    pthread_join(other, NULL);
    sched_setaffinity(0, sizeof spins_on, &spins_on);
    munmap(page, kPage);
    return digest;
}

static uint64_t pass_messages(int socket, uint64_t count, int sends) {
    uint8_t message[kMessageBytes] = {0};
    uint64_t digest = 0;
    for (uint64_t i = 0; i < count; ++i) {
        message[0] = (uint8_t)i;
        if ((sends ? write(socket, message, sizeof message)
                   : read(socket, message, sizeof message)) != kMessageBytes)
            die("socket");
        digest += message[0];
    }
    return digest;
}

/// Messages between processes that run anywhere, several senders to each receiver.
uint64_t message_crowd(uint64_t iterations) {
    int ends[2][2];
    pid_t senders[kPairs], receivers[2];
    uint64_t digest = 0;
    for (int i = 0; i < 2; ++i) {
        if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends[i]))
            die("socketpair");
        receivers[i] = fork();
        if (receivers[i] == 0)
            _exit((int)(pass_messages(ends[i][1], kPairs / 2 * iterations * 10, 0) & 127));
    }
    for (int i = 0; i < kPairs; ++i) {
        senders[i] = fork();
        if (senders[i] == 0)
            _exit((int)(pass_messages(ends[i % 2][0], iterations * 10, 1) & 127));
    }
    for (int i = 0; i < kPairs; ++i)
        digest = mix(digest, status_of(senders[i]));
    for (int i = 0; i < 2; ++i) {
        digest = mix(digest, status_of(receivers[i]));
        close(ends[i][0]), close(ends[i][1]);
    }
    return digest;
}
