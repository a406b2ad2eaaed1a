// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bench.h"

uint64_t get_pid(uint64_t iterations);
uint64_t read_byte(uint64_t iterations);
const char* prepare_read(void);
uint64_t access_root(uint64_t iterations);
uint64_t signal_self(uint64_t iterations);

enum { kFaultPages = 256 };
uint64_t page_faults(uint64_t iterations);
uint64_t map_touch_unmap(uint64_t iterations);
uint64_t protection_faults(uint64_t iterations);

uint64_t fork_exit_wait(uint64_t iterations);
uint64_t vfork_exec_wait(uint64_t iterations);
uint64_t thread_join(uint64_t iterations);
uint64_t pipe_ping_pong(uint64_t iterations);
uint64_t futex_ping_pong(uint64_t iterations);

uint64_t cross_pipe(uint64_t iterations);
uint64_t shootdown(uint64_t iterations);
uint64_t message_crowd(uint64_t iterations);
const char* prepare_cross(void);
