/* SPDX-License-Identifier: Apache-2.0 */
/* Loops on registers only, so long that they are interrupted often, between other code: who runs
 * directly may leave that for the one and come back for the other. */
#include "users.h"

#define FACTOR 0x5851f42d4c957f2dull /* of a linear congruential generator */
#define ADDEND 0x14057b7ef767814full

/* Where the generator is after so many steps, by doubling them. */
static uint64_t ahead(uint64_t value, uint64_t steps) {
    uint64_t factor = FACTOR, addend = ADDEND;
    for (; steps != 0; steps >>= 1) {
        if (steps & 1)
            value = value * factor + addend;
        addend *= factor + 1;
        factor *= factor;
    }
    return value;
}

void loops(void) {
    const uint64_t kSteps = 25000000;
    uint64_t value = 1, vector[2] = {1, 2};
    long double pi = 0;
    for (unsigned turn = 1; turn <= 4; ++turn) {
        uint64_t left = kSteps, seen[2] = {0, 0};
        __asm__ volatile("movdqu %[vector], %%xmm15\n\t"
                         "fldpi\n\t"
                         "1: imul %[factor], %[value]\n\t"
                         "add %[addend], %[value]\n\t"
                         "dec %[left]\n\t"
                         "jnz 1b\n\t"
                         "fstpt %[pi]\n\t"
                         "movdqu %%xmm15, %[seen]"
                         : [value] "+r"(value), [left] "+r"(left), [pi] "=m"(pi), [seen] "=m"(seen)
                         : [factor] "r"(FACTOR), [addend] "r"(ADDEND), [vector] "m"(vector)
                         : "cc", "xmm15");
        check("a loop on registers", value, ahead(1, kSteps * turn));
        check("vectors behind it", seen[0] + seen[1], 3);
        check("x87 behind it", pi > 3.14159265358979323L && pi < 3.14159265358979324L, 1);
        work(20);
    }
}
