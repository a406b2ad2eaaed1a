// SPDX-License-Identifier: Apache-2.0
// Page tables: faults, mappings, protections. 4 KiB pages throughout.
#include "kernel.h"

#include <signal.h>
#include <sys/mman.h>

enum { kPage = 4096 };

uint64_t page_faults(uint64_t iterations) {
    const size_t bytes = (size_t)kFaultPages * kPage;
    uint8_t* memory = pages(bytes);
    uint64_t digest = 0;
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    for (uint64_t i = 0; i < iterations; ++i) {
        for (size_t at = 0; at < bytes; at += kPage)
            digest += ++memory[at];
        if (madvise(memory, bytes, MADV_DONTNEED))
            die("madvise");
    }
    munmap(memory, bytes);
    return digest;
}

uint64_t map_touch_unmap(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations * 10; ++i) {
        uint8_t* page = pages(kPage);
        digest += ++*page;
        if (munmap(page, kPage))
            die("munmap");
    }
    return digest;
}

static uint8_t* guarded;
static volatile uint64_t faults;

static void allow(int number, siginfo_t* info, void* context) {
    (void)number, (void)context;
    if (info->si_addr != guarded || mprotect(guarded, kPage, PROT_READ | PROT_WRITE))
        die("mprotect in the handler");
    ++faults;
}

uint64_t protection_faults(uint64_t iterations) {
    struct sigaction action = {.sa_sigaction = allow, .sa_flags = SA_SIGINFO};
    guarded = pages(kPage);
    faults = 0;
    sigaction(SIGSEGV, &action, NULL);
    for (uint64_t i = 0; i < iterations * 10; ++i) {
        if (mprotect(guarded, kPage, PROT_READ))
            die("mprotect");
        *(volatile uint8_t*)guarded = (uint8_t)i;
    }
    action = (struct sigaction){.sa_handler = SIG_DFL};
    sigaction(SIGSEGV, &action, NULL);
    munmap(guarded, kPage);
    return faults;
}
