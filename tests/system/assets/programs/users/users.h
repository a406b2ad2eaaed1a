/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a program sees of the processor, in words that are the same on every one: run on the host
 * and in a guest it prints the same, or one of them is wrong. No address, no time, no feature is
 * printed. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Compute for some milliseconds, so that the program is one who does not call its kernel. */
void work(unsigned milliseconds);
/* Prints "NAME: ok", or what it is instead. */
void check(const char* name, uint64_t got, uint64_t wanted);

void exceptions(void);
void single_steps(void);
void registers(void);
void segments(void);
void memory(void);
void code(void);
void secrets(void);
void time_stamps(void);
void functions(void);
void many_functions(void);
void loops(void);
void threads(void);

/* Instead: how often the counter can be read within so much of the guest's time, and the largest
 * gap between two readings. */
void time_stamp_gaps(unsigned milliseconds);
