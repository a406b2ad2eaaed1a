// SPDX-License-Identifier: Apache-2.0
// Memory: dependent loads, streams, copies, atomic operations.
#include "cpu.h"

#include <string.h>

struct node {
    struct node* next;
    uint64_t number;
    uint64_t padding[6]; // one cache line
};

static struct node* nodes;
enum { kMostNodes = (128 << 20) / sizeof(struct node) };

/// One random cycle through all nodes (Sattolo's shuffle, done on the `number`s).
static const char* prepare_chase(size_t bytes) {
    size_t count = bytes / sizeof(struct node);
    uint64_t random = 12345;
    if (!nodes)
        nodes = pages(kMostNodes * sizeof *nodes);
    for (size_t i = 0; i < count; ++i)
        nodes[i].number = i;
    for (size_t i = count - 1; i > 0; --i) {
        size_t other = (next_random(&random) >> 11) % i;
        uint64_t number = nodes[i].number;
        nodes[i].number = nodes[other].number;
        nodes[other].number = number;
    }
    for (size_t i = 0; i < count; ++i)
        nodes[i].next = &nodes[nodes[i].number];
    return NULL;
}

const char* prepare_chase_16k(void) { return prepare_chase(16 << 10); }
const char* prepare_chase_512k(void) { return prepare_chase(512 << 10); }
const char* prepare_chase_8m(void) { return prepare_chase(8 << 20); }
const char* prepare_chase_128m(void) { return prepare_chase(128 << 20); }

uint64_t chase(uint64_t iterations) {
    const struct node* at = nodes;
    for (uint64_t i = 0; i < iterations * 125; ++i)
        at = at->next->next->next->next->next->next->next->next;
    return at->number;
}

static uint64_t* stream;

const char* prepare_stream(void) {
    uint64_t random = 5;
    stream = stream ? stream : pages(kStreamBytes);
    for (size_t i = 0; i < kStreamBytes / 8; ++i)
        stream[i] = next_random(&random);
    return NULL;
}

/// One element after the other, as plain loops are without vector instructions.
#define SCALAR __attribute__((optimize("no-tree-vectorize,no-tree-loop-distribute-patterns")))

SCALAR uint64_t stream_sum(uint64_t iterations) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < iterations; ++i) {
        for (size_t at = 0; at < kStreamBytes / 8; ++at)
            sum += stream[at];
        __asm__ volatile("" ::: "memory");
    }
    return sum;
}

SCALAR uint64_t stream_store(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i) {
        for (size_t at = 0; at < kStreamBytes / 8; ++at)
            stream[at] = i + at;
        __asm__ volatile("" ::: "memory");
        digest = mix(digest, stream[i * 77 % (kStreamBytes / 8)]);
    }
    return digest;
}

enum { kCopyBytes = 16 << 20 };
static uint8_t *copy_from, *copy_to;

const char* prepare_copy(void) {
    uint64_t random = 6;
    if (copy_from)
        return NULL;
    copy_from = pages(kCopyBytes);
    // Buffers a power of two apart would meet in the same entries of a software TLB. New mappings
    // come to stand just below the last, so this one is 16 MiB and 37 pages away.
    copy_to = pages(kCopyBytes + (37 << 12));
    for (size_t at = 0; at < kCopyBytes; at += 8) {
        uint64_t value = next_random(&random);
        memcpy(copy_from + at, &value, 8);
    }
    return NULL;
}

uint64_t copy_16m(uint64_t iterations) {
    uint64_t digest = 0, word;
    for (uint64_t i = 0; i < iterations; ++i) {
        memcpy(copy_to, copy_from, kCopyBytes);
        __asm__ volatile("" ::: "memory");
        memcpy(&word, copy_to + (i * 4099 % kCopyBytes & ~7ull), 8);
        digest = mix(digest, word);
    }
    return digest;
}

uint64_t rep_movsb_4k(uint64_t iterations) {
    uint64_t digest = 0, word;
    for (uint64_t i = 0; i < iterations; ++i) {
        const uint8_t* from = copy_from + (i & 15) * 256;
        uint8_t* to = copy_to;
        size_t count = 4096;
        __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
        memcpy(&word, copy_to + (i & 511) * 8, 8);
        digest = mix(digest, word);
    }
    return digest;
}

uint64_t lock_xadd(uint64_t iterations) {
    static uint64_t counter;
    uint64_t digest = 0;
    counter = 0;
    for (uint64_t i = 0; i < iterations * 1000; ++i)
        digest += __atomic_fetch_add(&counter, 3, __ATOMIC_SEQ_CST);
    return mix(digest, 2 * counter);
}

uint64_t lock_cmpxchg(uint64_t iterations) {
    static uint64_t counter;
    uint64_t digest = 0;
    counter = 0;
    for (uint64_t i = 0; i < iterations * 1000; ++i) {
        uint64_t expected = i;
        digest += __atomic_compare_exchange_n(&counter, &expected, i + 1, false, __ATOMIC_SEQ_CST,
                                              __ATOMIC_SEQ_CST);
    }
    return mix(digest, 2 * counter);
}
