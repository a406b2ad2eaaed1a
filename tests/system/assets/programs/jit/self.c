// SPDX-License-Identifier: Apache-2.0
/// Code that changes the instructions right behind it, in pages that other threads change and run
/// at the same time.
#include "jit.h"

#include <string.h>

enum { kSlot = 128, kBytes = 2 * kPage };

static struct arena g_arena;

void prepare_self(struct team* team) {
    (void)team;
    if (g_arena.run == NULL)
        g_arena = make_arena(kBytes);
}

struct way {
    const char* code; // edi is the value that `mov eax, 0` shall load
    size_t bytes;     // up to that instruction's operand
};

// clang-format off
#define WAY(text) {text, sizeof(text) - 1}
static const struct way kWays[] = {
    WAY("\x89\x3d\x01\x00\x00\x00\xb8"),         // mov [rip+1], edi; mov eax,
    WAY("\x87\x3d\x01\x00\x00\x00\xb8"),         // xchg [rip+1], edi
    WAY("\xf0\x0f\xc1\x3d\x01\x00\x00\x00\xb8"), // lock xadd [rip+1], edi
    WAY("\x89\x3d\x03\x00\x00\x00\xeb\x00\xb8"), // mov [rip+3], edi; jmp to the next
    WAY("\x66\x0f\x6e\xc7\x66\x0f\xd6\x05\x02\x00\x00\x00\x48\xb8"), // movq [rip+2]; mov rax,
    WAY("\x57\x48\x8d\x3d\x0a\x00\x00\x00\x48\x89\xe6\xa5\x5f\x90\x90\x90\x90\xb8"), // movsd
    WAY("\x40\x88\x3d\x17\x00\x00\x00\xc1\xcf\x08\x40\x88\x3d\x0e\x00\x00\x00\xc1\xcf\x08\x66\x89"
        "\x3d\x05\x00\x00\x00\x66\x90\xb8"), // by two bytes and a word
};
#undef WAY
// clang-format on

static uint32_t run(uint8_t* to, const struct way* way, uint32_t value, bool lost) {
    // Behind an operand of 4 bytes `ret`, behind one of 8, whose upper half is written too, as
    // well.
    static const uint8_t kRest[] = {0, 0, 0, 0, 0xc3, 0x90, 0x90, 0x90, 0xc3};
    memcpy(to, way->code, way->bytes);
    memcpy(to + way->bytes, kRest, sizeof kRest);
    if (lost)
        value ^= 1;
    return ((uint32_t (*)(uint32_t))(void*)to)(value);
}

/// A loop that counts down an operand of its own body: the sum over all its values.
static uint32_t run_loop(uint8_t* to, uint32_t count, bool lost) {
    static const uint8_t kLoop[] = {0x31, 0xc0,                         // xor eax, eax
                                    0x05, 0x00, 0x00, 0x00, 0x00,       // 1: add eax, 0
                                    0x89, 0x3d, 0xf6, 0xff, 0xff, 0xff, // mov [1b + 1], edi
                                    0x83, 0xef, 0x01,                   // sub edi, 1
                                    0x73, 0xf0,                         // jae 1b
                                    0xc3};
    memcpy(to, kLoop, sizeof kLoop);
    return ((uint32_t (*)(uint32_t))(void*)to)(count + lost);
}

void play_self(struct player* player) {
    while (!player->team->over) {
        const uint64_t number = next_random(&player->random);
        const size_t row = number % (kBytes / kSlot / player->team->threads);
        uint8_t* const to = g_arena.run + (row * player->team->threads + player->index) * kSlot +
                            (number >> 16) % (kSlot - 80);
        const uint32_t value = (uint32_t)(number >> 32);
        const bool lost = write_is_lost(player);
        const unsigned way = (unsigned)(number >> 8) % (sizeof kWays / sizeof *kWays + 1);
        const bool loop = way == sizeof kWays / sizeof *kWays;
        const uint32_t count = value % 50;
        const uint32_t expected = loop ? count * (count + 1) / 2 : value;
        const uint32_t got = loop ? run_loop(to, count, lost) : run(to, &kWays[way], value, lost);
        ++player->calls, ++player->writes;
        if (got != expected)
            wrong(got, expected, expected);
    }
}
