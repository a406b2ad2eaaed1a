/* SPDX-License-Identifier: Apache-2.0 */
/* A clock for qemu-img, by LD_PRELOAD. Before it makes a LUKS header, QEMU 7.2 measures twice how
   many rounds of key derivation its thread does in a second: that takes seconds, whatever iter-time
   says, and fails on a busy machine. Here a thread has used one second more at each look, so that
   its first measurement is its last, and the same everywhere. */

#include <string.h>
#include <sys/resource.h>

int getrusage(int who, struct rusage* usage) {
    static long seconds;
    (void)who;
    memset(usage, 0, sizeof *usage);
    usage->ru_utime.tv_sec = ++seconds;
    return 0;
}
