// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A program that writes code and runs it on other CPUs, and knows what each call must return.
///
///   jit SECONDS [broken]
///
/// Threads, one per CPU, play one game after the other (games[]). In most games a writer and
/// runners meet at a `window`: the writer announces version n (started), makes the code return n,
/// and says so (published). A runner whose last serialising instruction came after it had read
/// `published` = a must see at least version a, and whatever `started` says afterwards is the
/// newest that it may have seen (Intel SDM Vol. 3A, Sept. 2023, §9.1.3 "Handling Self- and
/// Cross-Modifying Code").
///
/// Output: `jit wrong GAME: …`; at the end `jit game NAME N calls, N writes, N wrong` of each and
/// `jit N wrong`. `broken` leaves out one write in 4: then every game must find wrong results, or
/// it is worth nothing.
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { kMaxThreads = 16, kPage = 4096, kLine = 64 };

struct team {
    unsigned threads;
    uint64_t round; // of the game: decides who writes
    atomic_bool over;
};

/// What a thread of a game knows of itself.
struct player {
    struct team* team;
    unsigned index;
    uint64_t random;
    uint64_t calls;  // of code that was written here
    uint64_t writes; // of code, as the game counts
};

struct game {
    const char* name;
    void (*prepare)(struct team* team); // one thread, before the others start; may be NULL
    void (*play)(struct player* player);
};
extern const struct game games[]; // ends with a game without a name

uint64_t next_random(uint64_t* state); // xorshift64
/// Reports a wrong result of this game; the first ones are printed.
void wrong(uint64_t got, uint64_t low, uint64_t high);
/// Ends the program: for what never fails on a sound machine.
void die(const char* what);
/// A write of code that may be left out now, because the program was told to be broken.
bool write_is_lost(struct player* player);
/// CPUID: serialises.
void serialise(void);
/// Waits for another thread a little.
void relax(void);

/// Memory for code, seen twice: `run` may be executed and written, `alias` is for writing only.
struct arena {
    uint8_t* run;
    uint8_t* alias;
    size_t bytes;
};
struct arena make_arena(size_t bytes);

/// A function of random instructions, and the same as a list that C++ can follow.
enum { kMaxSteps = 24, kMaxCode = 512 };
struct formula {
    unsigned count;
    struct {
        uint8_t kind;
        uint32_t value;
    } steps[kMaxSteps];
};
struct formula make_formula(uint64_t* random);
/// At most kMaxCode bytes that compute it: rax from rdi, System V ABI. Returns their number.
size_t assemble(const struct formula* formula, uint8_t* code, uint64_t* random);
uint64_t evaluate(const struct formula* formula, uint64_t x);
/// Another value in one step, written into code that assemble() made; false: not possible.
bool patch(struct formula* formula, uint8_t* code, uint64_t* random);

// The games, by file.
void prepare_handshake(struct team* team);
void play_handshake(struct player* player);
void prepare_window(struct team* team);
void play_aligned(struct player* player);
void play_jump(struct player* player);
void play_breakpoint(struct player* player);
void prepare_self(struct team* team);
void play_self(struct player* player);
void prepare_pool(struct team* team);
void play_pool(struct player* player);
