// SPDX-License-Identifier: Apache-2.0
/// Functions in many slots, which any thread takes, checks, and replaces, patches or gives other
/// memory: what a runtime with a compiler does.
#define _GNU_SOURCE
#include "jit.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kPages = 8, kPerPage = 4, kSlots = kPages * kPerPage, kSlot = kPage / kPerPage };

struct slot {
    _Alignas(kLine) atomic_flag taken;
    bool filled;
    struct formula formula;
};

static uint8_t* g_code;
static struct slot g_slots[kSlots];

void prepare_pool(struct team* team) {
    (void)team;
    if (g_code != NULL)
        return;
    g_code = mmap(NULL, kPages * kPage, PROT_READ | PROT_WRITE | PROT_EXEC,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g_code == MAP_FAILED)
        die("mmap");
}

static bool take(struct player* player, struct slot* slot) {
    while (atomic_flag_test_and_set_explicit(&slot->taken, memory_order_acquire)) {
        if (player->team->over)
            return false;
        relax();
    }
    return true;
}

static void give(struct slot* slot) {
    atomic_flag_clear_explicit(&slot->taken, memory_order_release);
}

static void fill(struct player* player, struct slot* slot, uint8_t* code) {
    ++player->writes;
    const bool lost = slot->filled && write_is_lost(player);
    slot->formula = make_formula(&player->random);
    slot->filled = !lost; // what is there now must not be patched
    uint8_t made[kMaxCode];
    const size_t bytes = assemble(&slot->formula, made, &player->random);
    if (!lost)
        memcpy(code, made, bytes);
}

static void check(struct player* player, struct slot* slot, const uint8_t* code) {
    uint64_t (*const call)(uint64_t) = (uint64_t (*)(uint64_t))(void*)code;
    for (unsigned i = 0; i < 8; ++i, ++player->calls) {
        const uint64_t input = next_random(&player->random);
        const uint64_t got = call(input), expected = evaluate(&slot->formula, input);
        if (got != expected)
            wrong(got, expected, expected);
    }
}

/// A child changes its own copy of the page; ours is as before.
static void fork_and_patch(struct player* player, struct slot* slot, uint8_t* code) {
    const pid_t child = fork();
    if (child < 0)
        return; // too many processes
    if (child == 0) {
        const uint64_t before = player->calls;
        fill(player, slot, code);
        check(player, slot, code);
        _exit(player->calls == before);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child || status != 0)
        wrong((uint64_t)status, 0, 0);
    check(player, slot, code);
}

/// The whole page: all its slots are taken. It gets new memory, or loses what is in it.
static void renew_page(struct player* player, size_t page) {
    uint8_t* const memory = g_code + page * kPage;
    for (size_t i = 0; i < kPerPage; ++i)
        if (!take(player, &g_slots[page * kPerPage + i])) {
            while (i-- > 0)
                give(&g_slots[page * kPerPage + i]);
            return;
        }
    if (next_random(&player->random) % 2 == 0) {
        if (madvise(memory, kPage, MADV_DONTNEED) != 0)
            die("madvise");
    } else if (mmap(memory, kPage, PROT_READ | PROT_WRITE | PROT_EXEC,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != memory) {
        die("mmap");
    }
    for (size_t i = 0; i < kPerPage; ++i) {
        struct slot* const slot = &g_slots[page * kPerPage + i];
        slot->filled = false;
        fill(player, slot, memory + i * kSlot);
        check(player, slot, memory + i * kSlot);
        give(slot);
    }
}

void play_pool(struct player* player) {
    while (!player->team->over) {
        const uint64_t number = next_random(&player->random);
        const size_t index = number % kSlots;
        const unsigned action = (unsigned)(number >> 16 & 255);
        if (action < 4) {
            renew_page(player, index / kPerPage);
            continue;
        }
        struct slot* const slot = &g_slots[index];
        uint8_t* const code = g_code + index * kSlot;
        if (!take(player, slot))
            return;
        serialise();
        if (slot->filled)
            check(player, slot, code);
        if (action < 8 && slot->filled)
            fork_and_patch(player, slot, code);
        else if (action < 64 || !slot->filled || !patch(&slot->formula, code, &player->random))
            fill(player, slot, code);
        check(player, slot, code);
        give(slot);
    }
}
