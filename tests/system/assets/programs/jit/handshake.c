// SPDX-License-Identifier: Apache-2.0
/// One thread writes a function; the others run it after it has said so, and answer. The page is
/// written through the address where it runs, through another one, or after mprotect().
#include "jit.h"

#include <string.h>
#include <sys/mman.h>

enum { kBytes = 4 * kPage };

static struct arena g_arena;
static struct {
    _Alignas(kLine) atomic_ulong version; // of the code
    _Alignas(kLine) atomic_ulong answers;
    struct formula formula;
    uint64_t input, expected;
    uint8_t* code;
} g_work;

void prepare_handshake(struct team* team) {
    (void)team;
    if (g_arena.run == NULL)
        g_arena = make_arena(kBytes);
    g_work.version = g_work.answers = 0;
}

static void store_code(struct player* player, const uint8_t* code, size_t bytes, size_t at) {
    switch (next_random(&player->random) % 3) {
    case 0: memcpy(g_arena.run + at, code, bytes); break;
    case 1: memcpy(g_arena.alias + at, code, bytes); break;
    default:
        if (mprotect(g_arena.run, kBytes, PROT_READ | PROT_WRITE) != 0)
            die("mprotect");
        memcpy(g_arena.run + at, code, bytes);
        if (mprotect(g_arena.run, kBytes, PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
            die("mprotect");
    }
}

static void write_functions(struct player* player) {
    size_t at = 0;
    while (!player->team->over) {
        if (next_random(&player->random) % 4 == 0) // else over what is there
            at = next_random(&player->random) % (kBytes - kMaxCode);
        g_work.formula = make_formula(&player->random);
        g_work.input = next_random(&player->random);
        g_work.expected = evaluate(&g_work.formula, g_work.input);
        uint8_t code[kMaxCode];
        const size_t bytes = assemble(&g_work.formula, code, &player->random);
        if (g_work.version == 0 || !write_is_lost(player))
            store_code(player, code, bytes, at);
        else if (g_work.code != g_arena.run + at)
            continue; // nothing is there that could be run
        g_work.code = g_arena.run + at;
        g_work.answers = 0;
        g_work.version += 1;
        ++player->writes;
        while (g_work.answers != player->team->threads - 1 && !player->team->over)
            relax();
    }
}

static void run_functions(struct player* player) {
    uint64_t seen = 0;
    while (!player->team->over) {
        const uint64_t version = g_work.version;
        if (version == seen) {
            relax();
            continue;
        }
        seen = version;
        const uint64_t expected = g_work.expected, input = g_work.input;
        uint64_t (*const call)(uint64_t) = (uint64_t (*)(uint64_t))(void*)g_work.code;
        serialise();
        const uint64_t times = 1 + next_random(&player->random) % 100;
        for (uint64_t i = 0; i < times; ++i, ++player->calls) {
            const uint64_t got = call(input);
            if (got != expected)
                wrong(got, expected, expected);
        }
        g_work.answers += 1;
    }
}

void play_handshake(struct player* player) {
    if (player->index == player->team->round % player->team->threads)
        write_functions(player);
    else
        run_functions(player);
}
