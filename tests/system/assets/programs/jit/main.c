// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "jit.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const uint64_t kTurnNs = 500000000; // of one game
static struct team g_team;
static const struct game* g_game;
static bool g_broken;
static atomic_ulong g_wrong[16], g_calls[16], g_writes[16];

const struct game games[] = {{"handshake", prepare_handshake, play_handshake},
                             {"aligned", prepare_window, play_aligned},
                             {"jump", prepare_window, play_jump},
                             {"breakpoint", prepare_window, play_breakpoint},
                             {"self", prepare_self, play_self},
                             {"pool", prepare_pool, play_pool},
                             {NULL, NULL, NULL}};

uint64_t next_random(uint64_t* state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

void die(const char* what) {
    perror(what);
    exit(2);
}

void wrong(uint64_t got, uint64_t low, uint64_t high) {
    if (atomic_fetch_add(&g_wrong[g_game - games], 1) < 5)
        printf("jit wrong %s: got %lx, wanted %lx to %lx\n", g_game->name, got, low, high);
}

bool write_is_lost(struct player* player) {
    return g_broken && next_random(&player->random) % 4 == 0;
}

void serialise(void) {
    uint32_t a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}

void relax(void) {
    static _Thread_local unsigned times;
    __builtin_ia32_pause();
    if (++times % 64 == 0)
        sched_yield();
}

struct arena make_arena(size_t bytes) {
    const int file = memfd_create("code", 0);
    if (file < 0 || ftruncate(file, (off_t)bytes) != 0)
        die("memfd_create");
    struct arena arena = {.bytes = bytes};
    arena.run = mmap(NULL, bytes, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, file, 0);
    arena.alias = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (arena.run == MAP_FAILED || arena.alias == MAP_FAILED)
        die("mmap");
    close(file);
    return arena;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static pthread_barrier_t g_barrier; // begin and end of every game

static void* thread_main(void* argument) {
    struct player player = {.team = &g_team, .index = (unsigned)(uintptr_t)argument};
    player.random = 0x9e3779b97f4a7c15u * (player.index + 1);
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(player.index % (unsigned)sysconf(_SC_NPROCESSORS_ONLN), &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    for (;;) {
        pthread_barrier_wait(&g_barrier);
        if (g_game == NULL)
            return NULL;
        player.calls = player.writes = 0;
        g_game->play(&player);
        atomic_fetch_add(&g_calls[g_game - games], player.calls);
        atomic_fetch_add(&g_writes[g_game - games], player.writes);
        pthread_barrier_wait(&g_barrier);
    }
}

static void play_for(uint64_t ns) {
    const uint64_t end = now_ns() + ns;
    for (uint64_t turn = 0; now_ns() < end; ++turn) {
        g_game = &games[turn % 6];
        g_team.round = turn / 6;
        g_team.over = false;
        if (g_game->prepare != NULL)
            g_game->prepare(&g_team);
        pthread_barrier_wait(&g_barrier);
        usleep(kTurnNs / 1000);
        g_team.over = true;
        pthread_barrier_wait(&g_barrier);
    }
    g_game = NULL;
    pthread_barrier_wait(&g_barrier);
}

int main(int count, char** words) {
    const unsigned long seconds = count > 1 ? strtoul(words[1], NULL, 10) : 0;
    if (seconds == 0) {
        fprintf(stderr, "usage: jit SECONDS [broken]\n");
        return 2;
    }
    g_broken = count > 2 && strcmp(words[2], "broken") == 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    g_team.threads = cpus < 2 ? 2 : cpus > kMaxThreads ? kMaxThreads : (unsigned)cpus;
    pthread_barrier_init(&g_barrier, NULL, g_team.threads + 1);
    pthread_t threads[kMaxThreads];
    for (unsigned i = 0; i < g_team.threads; ++i)
        if (pthread_create(&threads[i], NULL, thread_main, (void*)(uintptr_t)i) != 0)
            die("pthread_create");
    play_for(seconds * 1000000000u);
    for (unsigned i = 0; i < g_team.threads; ++i)
        pthread_join(threads[i], NULL);
    unsigned long all_wrong = 0;
    for (unsigned i = 0; games[i].name != NULL; ++i) {
        printf("jit game %s %lu calls, %lu writes, %lu wrong\n", games[i].name, g_calls[i],
               g_writes[i], g_wrong[i]);
        all_wrong += g_wrong[i];
    }
    printf("jit %lu wrong\n", all_wrong);
    return all_wrong != 0;
}
