// SPDX-License-Identifier: Apache-2.0
// The kernel's paths: entry and exit, memory management, processes, switches between threads.
#include "kernel.h"

// What vfork-exec-wait executes: this program, doing nothing.
const char* const own_mode = "exit";
int run_own_mode(void) { return 7; }

const struct test tests[] = {
    // name, class, unit, units per iteration, iterations of the check, run, prepare
    {"getpid", "syscall", "call", 100, 20, get_pid, NULL},
    {"read-1B", "syscall", "call", 100, 20, read_byte, prepare_read},
    {"access", "syscall", "call", 100, 10, access_root, NULL},
    {"signal", "syscall", "signal", 100, 5, signal_self, NULL},
    {"page-fault", "mapping", "fault", kFaultPages, 2, page_faults, NULL},
    {"mmap-munmap", "mapping", "map", 10, 20, map_touch_unmap, NULL},
    {"mprotect-fault", "mapping", "fault", 10, 20, protection_faults, NULL},
    {"fork-wait", "process", "fork", 1, 10, fork_exit_wait, NULL},
    {"vfork-exec-wait", "process", "exec", 1, 5, vfork_exec_wait, NULL},
    {"thread-join", "process", "thread", 1, 20, thread_join, NULL},
    {"pipe-ping-pong", "switch", "round", 100, 5, pipe_ping_pong, NULL},
    {"futex-ping-pong", "switch", "round", 100, 5, futex_ping_pong, NULL},
    {"cross-pipe", "cross", "round", 100, 2, cross_pipe, prepare_cross},
    {"cross-shootdown", "cross", "page", 100, 2, shootdown, prepare_cross},
    {"cross-messages", "cross", "message", 80, 5, message_crowd, prepare_cross},
    {NULL, NULL, NULL, 0, 0, NULL, NULL},
};
