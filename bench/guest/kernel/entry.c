// SPDX-License-Identifier: Apache-2.0
// System calls and signals.
#include "kernel.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

uint64_t get_pid(uint64_t iterations) {
    uint64_t digest = 0;
    long pid = syscall(SYS_getpid);
    for (uint64_t i = 0; i < iterations * 100; ++i)
        digest += syscall(SYS_getpid) == pid;
    return digest;
}

static int zero;

const char* prepare_read(void) {
    zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    return zero < 0 ? "no /dev/zero" : NULL;
}

uint64_t read_byte(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations * 100; ++i) {
        char byte = 1;
        digest += (uint64_t)read(zero, &byte, 1) + (uint64_t)byte;
    }
    return digest;
}

uint64_t access_root(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations * 100; ++i)
        digest += access("/", R_OK) == 0;
    return digest;
}

static volatile uint64_t handled;

static void count_signal(int number) { handled += (uint64_t)number; }

uint64_t signal_self(uint64_t iterations) {
    struct sigaction action = {.sa_handler = count_signal};
    handled = 0;
    sigaction(SIGUSR1, &action, NULL);
    for (uint64_t i = 0; i < iterations * 100; ++i)
        raise(SIGUSR1);
    return handled;
}
