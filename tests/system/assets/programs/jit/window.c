// SPDX-License-Identifier: Apache-2.0
/// Code that is rewritten while others run it, without asking them: by one aligned store, or
/// anywhere by the way of a breakpoint, as Linux patches itself (arch/x86/kernel/alternative.c).
#define _GNU_SOURCE
#include "jit.h"

#include <linux/membarrier.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kBytes = 2 * kPage, kSites = 32, kTargets = 8 };
static const uint8_t kLoadEax = 0xb8, kReturn = 0xc3, kBreakpoint = 0xcc, kJump = 0xe9;

struct window {
    _Alignas(kLine) atomic_uint started;
    _Alignas(kLine) atomic_uint published;
    uint8_t* code; // where it runs
    uint8_t* alias;
};

static struct arena g_arena;
static struct window g_windows[kSites];

static void barrier_for_cores(void) {
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
        die("membarrier");
}

/// The instruction `mov eax, VERSION` is being written: do what it will do.
static void on_trap(int signal, siginfo_t* info, void* context) {
    (void)signal, (void)info;
    greg_t* const registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    for (unsigned i = 0; i < kSites; ++i) {
        if ((greg_t)(uintptr_t)g_windows[i].code != registers[REG_RIP] - 1)
            continue;
        registers[REG_RAX] = (greg_t)g_windows[i].started;
        registers[REG_RIP] += 4;
        return;
    }
    die("a breakpoint that nobody has set");
}

/// All sites lie in two pages, at distances that put their instructions at every place of a cache
/// line, and one across both pages.
void prepare_window(struct team* team) {
    (void)team;
    if (g_arena.run == NULL) {
        g_arena = make_arena(kBytes);
        struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
        if (sigaction(SIGTRAP, &action, NULL) != 0)
            die("sigaction");
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
            die("membarrier");
    }
    memset(g_arena.alias, kReturn, kBytes);
    for (unsigned i = 0; i < kSites; ++i) {
        const size_t at = i == 0 ? kPage - 2 : kPage - 16 * kSites + i * 61u;
        g_windows[i].code = g_arena.run + at;
        g_windows[i].alias = g_arena.alias + at;
        g_windows[i].started = g_windows[i].published = 0;
    }
}

static uint32_t call(const struct window* window) {
    return ((uint32_t (*)(void))(void*)window->code)();
}

/// A few calls, each of which must return a version of the window. With `exact`, the writer has
/// made all CPUs serialise before it published.
static void run_window(struct player* player, struct window* window, bool exact) {
    uint32_t low = window->published;
    if (!exact)
        serialise();
    const unsigned times = 1 + (unsigned)(next_random(&player->random) % 64);
    for (unsigned i = 0; i < times; ++i, ++player->calls) {
        if (exact)
            low = window->published;
        const uint32_t got = call(window), high = window->started;
        if (got < low || got > high)
            wrong(got, low, high);
    }
}

static bool is_writer(const struct player* player) {
    return player->index == player->team->round % player->team->threads;
}

static struct window* any_window(struct player* player) {
    // Mostly a few, so that writer and runners meet.
    const uint64_t number = next_random(&player->random);
    return &g_windows[number % (number >> 32 & 3 ? 4 : kSites)];
}

static void publish(struct player* player, struct window* window, uint32_t version) {
    window->published = version;
    ++player->writes;
    for (int i = 0; i < 20; ++i) // else the windows are always wide
        relax();
}

// --- aligned: the operand of `mov eax` is rewritten by one store ---

/// The operand lies in an aligned word (of 8 bytes with what is before it).
static void align(struct window* window) {
    const size_t to = (size_t)(-(uintptr_t)(window->code + 1) & 3);
    window->code += to, window->alias += to;
}

static void write_operands(struct player* player) {
    while (!player->team->over) {
        struct window* const window = any_window(player);
        const uint32_t version = window->published + 1;
        window->started = version;
        if (!write_is_lost(player)) {
            uint8_t* const code = version & 1 ? window->code : window->alias;
            if (version == 1)
                code[0] = kLoadEax;
            atomic_store((atomic_uint*)(void*)(code + 1), version);
        }
        publish(player, window, version);
    }
}

/// Who writes gives every site its first version before anyone runs it.
static void begin(struct player* player) {
    if (!is_writer(player)) {
        while (g_windows[kSites - 1].published == 0 && !player->team->over)
            relax();
        return;
    }
    for (unsigned i = 0; i < kSites; ++i) {
        const uint32_t version = 1;
        g_windows[i].alias[0] = kLoadEax;
        memcpy(g_windows[i].alias + 1, &version, 4);
        g_windows[i].alias[5] = kReturn;
        g_windows[i].started = version;
        g_windows[i].published = version;
    }
}

void play_aligned(struct player* player) {
    if (is_writer(player))
        for (unsigned i = 0; i < kSites; ++i)
            align(&g_windows[i]);
    begin(player);
    if (is_writer(player)) {
        write_operands(player);
        return;
    }
    while (!player->team->over)
        run_window(player, any_window(player), false);
}

// --- jump: an aligned `jmp` changes its target ---

/// Version n jumps to target n % kTargets, which returns that.
static void make_targets(void) {
    memset(g_arena.alias, kReturn, kBytes);
    for (uint32_t i = 0; i < kTargets; ++i) { // in the first page, the jumps are in both
        uint8_t* const code = g_arena.alias + 64 * i;
        code[0] = kLoadEax;
        memcpy(code + 1, &i, 4);
    }
}

static void store_jump(const struct window* window, uint32_t version) {
    const uint8_t* const target = g_arena.run + (size_t)64 * (version % kTargets);
    const uint32_t distance = (uint32_t)(target - (window->code + 5));
    const uint64_t word = kJump | (uint64_t)distance << 8 | 0xcccccc0000000000u;
    atomic_store((atomic_ulong*)(void*)window->alias, word);
}

static bool is_possible(uint32_t target, uint32_t low, uint32_t high) {
    return target < kTargets && (target - low) % kTargets <= high - low;
}

static void write_jumps(struct player* player) {
    for (unsigned i = 0; i < kSites; ++i) {
        const size_t to = (size_t)(-(uintptr_t)g_windows[i].code & 7);
        g_windows[i].code += to, g_windows[i].alias += to;
    }
    make_targets();
    for (unsigned i = 0; i < kSites; ++i) {
        store_jump(&g_windows[i], 1);
        g_windows[i].started = 1;
        g_windows[i].published = 1;
    }
    while (!player->team->over) {
        struct window* const window = any_window(player);
        const uint32_t version = window->published + 1;
        window->started = version;
        if (!write_is_lost(player))
            store_jump(window, version);
        publish(player, window, version);
    }
}

void play_jump(struct player* player) {
    if (is_writer(player)) {
        write_jumps(player);
        return;
    }
    while (g_windows[kSites - 1].published == 0 && !player->team->over)
        relax();
    while (!player->team->over) {
        struct window* const window = any_window(player);
        const uint32_t low = window->published;
        serialise();
        const uint32_t got = call(window), high = window->started;
        ++player->calls;
        if (!is_possible(got, low, high))
            wrong(got, low, high);
    }
}

// --- breakpoint: anywhere, in three steps ---

static void write_with_breakpoints(struct player* player) {
    while (!player->team->over) {
        struct window* const window = any_window(player);
        const uint32_t version = window->published + 1;
        window->started = version;
        if (!write_is_lost(player)) {
            uint8_t* const code = version & 1 ? window->code : window->alias;
            *(volatile uint8_t*)code = kBreakpoint;
            barrier_for_cores();
            memcpy(code + 1, &version, 4);
            barrier_for_cores();
            *(volatile uint8_t*)code = kLoadEax;
            barrier_for_cores();
        }
        publish(player, window, version);
    }
}

void play_breakpoint(struct player* player) {
    begin(player);
    if (is_writer(player)) {
        write_with_breakpoints(player);
        return;
    }
    while (!player->team->over)
        run_window(player, any_window(player), true);
}
