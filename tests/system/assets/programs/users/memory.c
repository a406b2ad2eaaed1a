/* SPDX-License-Identifier: Apache-2.0 */
#include "users.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES 700

static uint64_t sum(const uint8_t* from) {
    uint64_t total = 0;
    for (int i = 0; i < PAGES; ++i)
        total = total * 3 + *(const uint64_t*)(from + i * 4096 + i % 4000);
    return total;
}
static void fill(uint8_t* to, uint64_t seed) {
    for (int i = 0; i < PAGES; ++i)
        *(uint64_t*)(to + i * 4096 + i % 4000) = seed + (uint64_t)i;
}
static uint8_t* area(size_t bytes, int protection) {
    return mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Which of 64 pages the kernel takes for written to, by the D bits that the CPU has set. */
static void dirty_pages(uint8_t* pages) {
    FILE* const clear = fopen("/proc/self/clear_refs", "w");
    if (clear == NULL)
        return;
    fputs("4", clear);
    fclose(clear);
    for (int i = 0; i < 64; ++i)
        if (i % 3 == 0)
            pages[i * 4096]++;
        else
            *(volatile uint8_t*)(pages + i * 4096);
    const int map = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entries[64] = {0}, wrong = 0, any = 0;
    if (pread(map, entries, sizeof entries, (off_t)((uintptr_t)pages / 4096 * 8)) == sizeof entries)
        for (int i = 0; i < 64; ++i) {
            any |= entries[i] >> 55 & 1;
            wrong += (entries[i] >> 55 & 1) != (uint64_t)(i % 3 == 0);
        }
    close(map);
    check("pages written to", any ? wrong : 0, 0);
}

static void shared_and_large(void) {
    const int file = memfd_create("shared", 0);
    ftruncate(file, 16 * 4096);
    volatile uint64_t* x = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    volatile uint64_t* y = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < 200000; ++i) {
        x[i % 8192] = i;
        wrong += y[i % 8192] != i;
    }
    check("the same memory at two places", wrong, 0);
    uint8_t* const large = area(12 << 20, PROT_READ | PROT_WRITE);
    madvise(large, 12 << 20, MADV_HUGEPAGE);
    for (size_t i = 0; i < 12 << 20; i += 512)
        large[i] = (uint8_t)(i >> 9);
    work(20);
    mprotect(large + (5 << 20), 4096, PROT_READ);
    for (size_t i = 0; i < 12 << 20; i += 512)
        wrong += large[i] != (uint8_t)(i >> 9);
    check("large pages", wrong, 0);
    munmap(large, 12 << 20);
}

void memory(void) {
    uint8_t* a = area(PAGES * 4096, PROT_READ | PROT_WRITE);
    fill(a, 1);
    work(30);
    const uint64_t first = sum(a);
    const pid_t child = fork();
    if (child == 0) {
        fill(a, 1000);
        work(10);
        fill(a, 2000);
        _exit(sum(a) == first);
    }
    work(20);
    int status = 0;
    waitpid(child, &status, 0);
    check("the child has its own", (uint64_t)status, 0);
    check("the parent's are as they were", sum(a), first);
    fill(a, 5);
    uint8_t* b = mremap(a, PAGES * 4096, PAGES * 4096, MREMAP_MAYMOVE | MREMAP_FIXED,
                        area(PAGES * 4096, PROT_NONE));
    fill(b, 1);
    check("moved", sum(b), first);
    madvise(b + 4096, 3 * 4096, MADV_DONTNEED);
    check("given back", *(uint64_t*)(b + 2 * 4096 + 2), 0);
    fill(b, 1);
    for (int i = 0; i < 200; ++i) {
        uint8_t* const page = b + (i * 37 % PAGES) * 4096;
        mprotect(page, 4096, PROT_READ);
        mprotect(page, 4096, PROT_READ | PROT_WRITE);
        page[8]++;
        page[8]--;
    }
    check("protected and not", sum(b), first);
    for (int i = 0; i < 100; ++i) {
        uint8_t* const one = area(64 * 4096, PROT_READ | PROT_WRITE);
        memset(one, i, 64 * 4096);
        if (one[63 * 4096] != i || one[0] != i)
            check("new memory", one[0], (uint64_t)i);
        munmap(one, 64 * 4096);
    }
    dirty_pages(b);
    work(20);
    dirty_pages(b);
    shared_and_large();
}
typedef uint32_t (*Function)(void);
static void put(uint8_t* at, uint32_t number) { /* mov eax, number; ret */
    const uint8_t code[6] = {0xb8,
                             (uint8_t)number,
                             (uint8_t)(number >> 8),
                             (uint8_t)(number >> 16),
                             (uint8_t)(number >> 24),
                             0xc3};
    memcpy(at, code, sizeof code);
}
static uint32_t call(const uint8_t* at) { return ((Function)(uintptr_t)at)(); }

void code(void) {
    uint8_t* const page = area(3 * 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    uint64_t wrong = 0;
    for (uint32_t i = 0; i < 3000; ++i) {
        uint8_t* const at = page + (i % 7 == 0 ? 4093 : i % 4000);
        put(at, i);
        wrong += call(at) != i;
    }
    check("code that is written and run", wrong, 0);
    const int file = memfd_create("code", 0);
    ftruncate(file, 4096);
    uint8_t* const w = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint8_t* const x = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    for (uint32_t i = 0; i < 3000; ++i) {
        put(w + i % 64, i);
        wrong += call(x + i % 64) != i;
    }
    check("code written at another place", wrong, 0);
    for (uint32_t i = 0; i < 1000; ++i) {
        uint8_t bytes[6];
        put(bytes, i);
        if (pwrite(file, bytes, sizeof bytes, 128) != sizeof bytes)
            break;
        wrong += call(x + 128) != i;
    }
    check("code written by the kernel", wrong, 0);
    for (uint32_t i = 0; i < 300; ++i) {
        mprotect(page, 4096, PROT_READ | PROT_WRITE);
        put(page, i);
        mprotect(page, 4096, PROT_READ | PROT_EXEC);
        wrong += call(page) != i;
    }
    check("code that may be written or run", wrong, 0);
    /* cpuid across two pages, and its like where code was before: eax = 0 and leaf 0 both times */
    mprotect(page, 3 * 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    const uint8_t whole[] = {0x53, 0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2, 0x89, 0xd0, 0x5b, 0xc3};
    memcpy(page + 64, whole, sizeof whole);
    const uint32_t vendor = call(page + 64);
    memcpy(page + 4096 - 6, whole, sizeof whole);
    for (int i = 0; i < 100; ++i) {
        put(page + 64, 7);
        wrong += call(page + 64) != 7;
        memcpy(page + 64, whole, sizeof whole);
        wrong += call(page + 64) != vendor;
        wrong += call(page + 4096 - 6) != vendor;
    }
    check("cpuid in code that changes", wrong, 0);
}

static uint64_t cpuid(uint32_t leaf, uint32_t* b, uint32_t* c, uint32_t* d) {
    uint32_t a = leaf;
    *c = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(*b), "+c"(*c), "=d"(*d));
    return a;
}

/* What only the guest's own processor knows: the same whenever it is asked, and as the kernel says.
 */
void secrets(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof one, &one);
    uint32_t b0, c0, d0, b, c, d;
    const uint64_t a0 = cpuid(1, &b0, &c0, &d0);
    char* const line = malloc(1 << 16);
    FILE* const info = fopen("/proc/cpuinfo", "r");
    int hypervisor = 0;
    while (info != NULL && fgets(line, 1 << 16, info) != NULL)
        if (strncmp(line, "flags", 5) == 0)
            hypervisor = strstr(line, " hypervisor") != NULL;
    check("hypervisor", c0 >> 31, (uint64_t)hypervisor);
    uint64_t wrong = 0;
    for (int i = 0; i < 2000; ++i) {
        volatile unsigned n = 3000;
        while (n != 0)
            n--;
        wrong += cpuid(1, &b, &c, &d) != a0 || c != c0 || d != d0;
        uint32_t low, high, limit = 0;
        uint8_t found;
        __asm__ volatile("lsl %2, %0\n\tsetz %1" : "+r"(limit), "=r"(found) : "r"(0x7b) : "cc");
        wrong += found && (limit & 0xfff) != 0;
        if ((c0 >> 27 & 1) != 0) {
            __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
            static uint32_t before;
            wrong += before != 0 && before != low;
            before = low;
        }
    }
    check("the same each time", wrong, 0);
    free(line);
}

static uint64_t counter;
static volatile uint32_t turn;
static uint8_t* shared_code;

static void* count_up(void* argument) {
    (void)argument;
    for (int i = 0; i < 300000; ++i)
        __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
    return NULL;
}
static void* call_code(void* argument) {
    uint64_t* const wrong = argument;
    for (uint32_t i = 1; i <= 2000; ++i) {
        while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != 2 * i - 1)
            sched_yield();
        uint32_t a = 0, bb, cc, dd;
        (void)a;
        cpuid(0, &bb, &cc, &dd); /* serializes */
        *wrong += call(shared_code) != i;
        __atomic_store_n(&turn, 2 * i, __ATOMIC_RELEASE);
    }
    return NULL;
}

void threads(void) {
    cpu_set_t all;
    memset(&all, 0xff, sizeof all);
    sched_setaffinity(0, sizeof all, &all);
    pthread_t thread[4];
    for (int i = 0; i < 4; ++i)
        pthread_create(&thread[i], NULL, count_up, NULL);
    for (int i = 0; i < 4; ++i)
        pthread_join(thread[i], NULL);
    check("counted by four threads", counter, 1200000);
    uint64_t wrong = 0;
    shared_code = area(4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    pthread_create(&thread[0], NULL, call_code, &wrong);
    for (uint32_t i = 1; i <= 2000; ++i) {
        put(shared_code, i);
        __atomic_store_n(&turn, 2 * i - 1, __ATOMIC_RELEASE);
        while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != 2 * i)
            sched_yield();
    }
    pthread_join(thread[0], NULL);
    check("code written by another thread", wrong, 0);
}
