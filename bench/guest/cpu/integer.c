// SPDX-License-Identifier: Apache-2.0
// Integer work: registers only, a hash, divisions, a sort with a callback.
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

/// Eight register operations per round, in assembly so that every compiler gives the same.
uint64_t int_alu(uint64_t iterations) {
    uint64_t a = 1, b = 2, c = 3, rounds = iterations * 1000;
    __asm__("1:\n\t"
            "add %1, %0\n\t"
            "rol $7, %1\n\t"
            "xor %0, %2\n\t"
            "lea 1(%1, %2), %1\n\t"
            "sub %2, %0\n\t"
            "shr $1, %2\n\t"
            "or $0x11, %2\n\t"
            "imul $5, %0, %0\n\t"
            "dec %3\n\t"
            "jnz 1b"
            : "+r"(a), "+r"(b), "+r"(c), "+r"(rounds)
            :
            : "cc");
    return mix(mix(a, b), c);
}

uint64_t divide(uint64_t iterations) {
    uint64_t value = 0x123456789abcdef1u, digest = 0;
    for (uint64_t i = 0; i < iterations * 1000; ++i) {
        uint64_t divisor = (value & 0xffff) | 1, low = value, high = 0; // as compilers do
        __asm__("divq %2" : "+a"(low), "+d"(high) : "r"(divisor) : "cc");
        digest += low ^ high;
        value = low * 0x9e3779b97f4a7c15u + high;
    }
    return digest;
}

static uint32_t rotate(uint32_t value, int count) { return value >> count | value << (32 - count); }

/// The compression function of SHA-256 (FIPS 180-4 §6.2.2).
static void sha256_block(uint32_t state[8], const uint8_t* block) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
        uint32_t word;
        memcpy(&word, block + 4 * i, 4);
        w[i] = __builtin_bswap32(word);
    }
    for (int i = 16; i < 64; ++i) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; ++i) {
        uint32_t t1 =
            h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
        uint32_t t2 =
            (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1;
        d = c, c = b, b = a, a = t1 + t2;
    }
    const uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i)
        state[i] += sums[i];
}

uint64_t sha256(uint64_t iterations) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (uint64_t i = 0; i < iterations; ++i) {
        const uint8_t* part = text + (i << 14) % kTextBytes;
        for (size_t at = 0; at < 1 << 14; at += 64)
            sha256_block(state, part + at);
    }
    return (uint64_t)state[0] << 32 | state[7];
}

static uint32_t *unsorted, *sorted;

const char* prepare_sort(void) {
    uint64_t random = 42;
    unsorted = pages(kSortElements * sizeof *unsorted);
    sorted = pages(kSortElements * sizeof *sorted);
    for (size_t i = 0; i < kSortElements; ++i)
        unsorted[i] = (uint32_t)next_random(&random);
    return NULL;
}

static int compare(const void* left, const void* right) {
    uint32_t a = *(const uint32_t*)left, b = *(const uint32_t*)right;
    return (a > b) - (a < b);
}

uint64_t quick_sort(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i) {
        memcpy(sorted, unsorted, kSortElements * sizeof *sorted);
        qsort(sorted, kSortElements, sizeof *sorted, compare);
        for (size_t at = 1; at < kSortElements; ++at)
            digest += sorted[at - 1] > sorted[at];
        digest = mix(digest, sorted[i % kSortElements]);
    }
    return digest;
}
