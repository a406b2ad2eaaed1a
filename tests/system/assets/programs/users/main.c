/* SPDX-License-Identifier: Apache-2.0 */
#include "users.h"

#include <time.h>

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void work(unsigned milliseconds) {
    for (uint64_t end = now_ms() + milliseconds; now_ms() < end;) {
        volatile unsigned n = 2000000;
        while (n != 0)
            n--;
    }
}

void check(const char* name, uint64_t got, uint64_t wanted) {
    if (got == wanted)
        printf("%s: ok\n", name);
    else
        printf("%s: %#llx, not %#llx\n", name, (unsigned long long)got, (unsigned long long)wanted);
    fflush(stdout);
}

int main(int argc, char** argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 2 && strcmp(argv[1], "gaps") == 0) {
        time_stamp_gaps((unsigned)atoi(argv[2]));
        return 0;
    }
    work(60);
    exceptions();
    single_steps();
    registers();
    segments();
    memory();
    code();
    secrets();
    time_stamps();
    functions();
    many_functions();
    loops();
    threads();
    puts("users: done");
    return 0;
}
