// SPDX-License-Identifier: Apache-2.0
// Runs the guest programs of the spike and prints, per program, the least cycles seen.
// usage: harness REPETITIONS [PROGRAM...]
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

uint8_t bytecode[4096];
void* chase_head[8];
uint64_t stream_area[1 << 17];
uint32_t sort_area[1 << 14];
uint8_t text_area[1 << 18], packed_area[1 << 20], unpacked_area[1 << 18];
uint64_t packed_size;

uint64_t wl_fib(uint64_t), wl_interp(uint64_t), wl_chase(uint64_t), wl_sum(uint64_t), wl_sort(uint64_t),
    wl_sha(uint64_t), wl_kernel(uint64_t), wl_nbody(uint64_t), wl_zstd_c(uint64_t), wl_zstd_d(uint64_t), wl_pipe(uint64_t);

#define CHASE(i, n) ((uint64_t)(i) << 32 | (n))
static const struct { const char* name; uint64_t (*run)(uint64_t); uint64_t argument; } programs[] = {
    {"zstd_c", wl_zstd_c, 1 << 18}, {"zstd_d", wl_zstd_d, 1 << 18}, {"fib", wl_fib, 22},
    {"interp", wl_interp, 300},     {"sort", wl_sort, 1 << 13},     {"sha", wl_sha, 1 << 17},
    {"kernel", wl_kernel, 2000},    {"nbody", wl_nbody, 2000},      {"sum", wl_sum, 1 << 16},
    {"pipe", wl_pipe, 500},
    {"chase16K", wl_chase, CHASE(0, 100000)},  {"chase512K", wl_chase, CHASE(1, 50000)},
    {"page64", wl_chase, CHASE(2, 50000)},     {"page1K", wl_chase, CHASE(3, 50000)},
    {"page4K", wl_chase, CHASE(4, 50000)},     {"page16K", wl_chase, CHASE(5, 50000)},
};

static uint64_t seed = 88172645463325252ULL;
static uint64_t rnd(void) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return seed; }

// A ring through `count` nodes `stride` apart, in random order; page strides vary the line.
static void* ring(size_t count, size_t stride) {
    size_t bytes = count * stride, *order = malloc(count * sizeof *order);
    char* base = mmap(NULL, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    base = (char*)(((uintptr_t)base + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
    madvise(base, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < count; i++) order[i] = i;
    for (size_t i = count - 1; i; i--) { size_t j = rnd() % (i + 1), t = order[i]; order[i] = order[j]; order[j] = t; }
#define AT(k) (void*)(base + order[(k) % count] * stride + (stride >= 4096 ? order[(k) % count] * 64 % 4096 : 0))
    for (size_t i = 0; i < count; i++) *(void**)AT(i) = AT(i + 1);
    void* head = AT(0);
    free(order);
    return head;
}

static void make_data(void) {
    static const char* words[64];
    static char letters[64][12];
    for (int i = 0; i < 64; i++) {
        int n = 2 + (int)(rnd() % 9);
        for (int j = 0; j < n; j++) letters[i][j] = (char)('a' + rnd() % 26);
        words[i] = letters[i];
    }
    for (size_t n = 0; n < sizeof text_area;) {
        uint64_t r = rnd();
        const char* w = words[r % (1 + (r >> 32) % 64)];
        for (; *w && n < sizeof text_area; w++) text_area[n++] = (uint8_t)*w;
        if (n < sizeof text_area) text_area[n++] = r >> 60 ? ' ' : (uint8_t)('0' + (r >> 20) % 10);
    }
    for (int i = 0; i < 1020; i += 3) {
        bytecode[i] = (uint8_t)(rnd() % 11);
        bytecode[i + 1] = (uint8_t)rnd();
        bytecode[i + 2] = (uint8_t)rnd();
    }
    bytecode[1020] = bytecode[1023] = bytecode[1026] = 11;
    for (size_t i = 0; i < 1 << 17; i++) stream_area[i] = rnd();
    chase_head[0] = ring(16384 / 64, 64);
    chase_head[1] = ring(524288 / 64, 64);
    chase_head[2] = ring(64, 4096);
    chase_head[3] = ring(1024, 4096);
    chase_head[4] = ring(4096, 4096);
    chase_head[5] = ring(16384, 4096);
}

#ifdef REWRITTEN
extern uint64_t lay_rtag, lay_wtag, lay_radd, lay_wadd, lay_stride, lay_bits, lay_size, lay_joined, lay_bias,
    lay_form;
char *vcpu_area, *tlb_area, *guest_stack_top;
uint64_t misses_read, misses_write;
uint64_t run_guest(uint64_t (*)(uint64_t), uint64_t);
// A four-level table as the guest's paging would be; entries are made on first use.
static uint64_t* root;
static uint64_t* next_table(uint64_t* slot) {
    if (!*slot) *slot = (uint64_t)aligned_alloc(4096, 4096) | 1, memset((void*)(*slot & ~1ULL), 0, 4096);
    return (uint64_t*)(*slot & ~0xfffULL);
}
static uint64_t walk(uint64_t address) {
    uint64_t* t = root;
    for (int shift = 39; shift > 12; shift -= 9) {
        uint64_t* slot = &t[(address >> shift) & 511];
        t = *slot & 1 ? (uint64_t*)(*slot & ~0xfffULL) : next_table(slot);
    }
    uint64_t* slot = &t[(address >> 12) & 511];
    if (!(*slot & 0x20)) *slot = (address & ~0xfffULL) | 0x21;
    return *slot & ~0xfffULL;
}
// The directions share one addend (but in i16), so a tag of another page must not stay beside it. A
// page that may be written may be read, so a store's miss sets both tags.
static uint64_t fill(uint64_t address, int write, char* instance) {
    uint64_t page = address >> 12, index = page & ((1ULL << lay_bits) - 1), host = walk(address);
    uint64_t tag = lay_form == 'E' ? page : page << 12;
    uint64_t addend = lay_form == 'H' ? host : host - (page << 12);
    char* entry = instance + index * lay_stride;
    uint64_t *rtag = (uint64_t*)(entry + lay_rtag), *wtag = (uint64_t*)(entry + lay_wtag);
    if (!write) {
        *rtag = tag;
        if (*wtag != tag && lay_radd == lay_wadd) *wtag = 0;
    } else {
        *rtag = *wtag = tag;
        *(uint64_t*)(entry + lay_wadd) = addend;
    }
    *(uint64_t*)(entry + lay_radd) = addend;
    return host - (page << 12);
}
static int present(uint64_t address, int write, char* instance) {
    uint64_t page = address >> 12, index = page & ((1ULL << lay_bits) - 1);
    return *(uint64_t*)(instance + index * lay_stride + (write ? lay_wtag : lay_rtag)) ==
           (lay_form == 'E' ? page : page << 12);
}
static uint64_t miss(uint64_t address, uint32_t size, int write, char* instance, uint64_t* counter) {
    uint64_t last = address + size - 1;
    if ((address ^ last) >> 12) {
        if (!present(address, write, instance)) fill(address, write, instance), ++*counter;
        if (!present(last, write, instance)) fill(last, write, instance), ++*counter;
        return 0;
    }
    ++*counter;
    return fill(address, write, instance);
}
uint64_t fill_read(uint64_t address, uint32_t size, char* instance) {
    return miss(address, size, 0, instance + (lay_joined ? 4096 : 0), &misses_read);
}
uint64_t fill_write(uint64_t address, uint32_t size, char* instance) {
    return miss(address, size, 1, instance + (lay_joined ? 4096 : 0), &misses_write);
}
// Six TLB instances (user, kernel and kernel with AC of two processes), each followed by what the
// variant wants beside it; the frames are made so that any of them can be the current one.
static void make_engine(void) {
    const size_t huge = 2 << 20, stack = 1 << 16, frame = 4096, views = 6;
    size_t each = (stack + frame + lay_size + 4 * 4096 + 65535) & ~(size_t)65535;
    size_t bytes = views * each + 2 * huge;
    char* area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area = (char*)(((uintptr_t)area + huge - 1) & ~(uintptr_t)(huge - 1));
    if (!getenv("SPIKE_SMALL_PAGES")) madvise(area, bytes - huge, MADV_HUGEPAGE);
    vcpu_area = area + stack - 16384 + 8192;
    tlb_area = lay_joined ? vcpu_area + frame : area + stack;
    for (size_t v = 0; v < views; v++)
        for (size_t k = 0; k < views; k++)
            ((char**)(vcpu_area + v * each * lay_joined + 0x60))[k] =
                (lay_joined ? vcpu_area : tlb_area + lay_bias) + k * each;
    root = next_table(&(uint64_t){0});
    guest_stack_top = (char*)aligned_alloc(4096, 1 << 20) + (1 << 20) - 4096;
}
#define ENGINE make_engine();
#else
void view_0(void) {}
void view_1(void) {}
void view_2(void) {}
void view_3(void) {}
void view_4(void) {}
void view_5(void) {}
static uint64_t misses_read, misses_write;
static uint64_t run_guest(uint64_t (*f)(uint64_t), uint64_t a) { return f(a); }
#define ENGINE
#endif

int main(int argc, char** argv) {
    int repetitions = argc > 1 ? atoi(argv[1]) : 5;
    ENGINE
    make_data();
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        int wanted = argc < 3 || (i == 0 && !strcmp(argv[2], "zstd_d"));
        for (int a = 2; a < argc; a++) wanted |= !strcmp(argv[a], programs[i].name);
        if (!wanted) continue;
        if (!strcmp(programs[i].name, "zstd_d")) memset(unpacked_area, 0, sizeof unpacked_area);
        uint64_t best = ~0ULL, value = run_guest(programs[i].run, programs[i].argument);
        uint64_t before = misses_read + misses_write;
        for (int r = 0; r < repetitions; r++) {
            uint64_t t = __rdtsc();
            value = run_guest(programs[i].run, programs[i].argument);
            t = __rdtsc() - t;
            if (t < best) best = t;
        }
        if (!strcmp(programs[i].name, "zstd_d") && memcmp(text_area, unpacked_area, sizeof text_area))
            for (size_t k = 0, shown = 0; k < sizeof text_area && shown < 9; k++)
                if (text_area[k] != unpacked_area[k]) fprintf(stderr, "differs at %zu: %02x %02x\n", k, text_area[k], unpacked_area[k]), shown++;
        printf("%s %lu %lx %lu\n", programs[i].name, best, value,
               (misses_read + misses_write - before) / (uint64_t)repetitions);
    }
    if (getenv("SPIKE_DUMP")) fwrite(packed_area, 1, packed_size, stderr);
    return 0;
}
