// SPDX-License-Identifier: Apache-2.0
// Compression: byte-wise, branchy, misaligned code as distributions ship it (liblz4, libzstd).
#include "cpu.h"

#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

uint8_t* text;
static uint8_t *packed, *unpacked;
static size_t packed_bytes[kChunks];
static ZSTD_CCtx* compressor;
static ZSTD_DCtx* decompressor;
enum { kPackedBytes = kChunkBytes + (kChunkBytes >> 6) + 1024 };

/// Words of a made-up language, frequent ones more often, in sentences.
const char* prepare_text(void) {
    static char words[2048][12];
    uint64_t random = 99;
    size_t at = 0;
    if (text)
        return NULL;
    text = pages(kTextBytes);
    for (int i = 0; i < 2048; ++i) {
        int length = 2 + (int)(next_random(&random) % 9);
        for (int letter = 0; letter < length; ++letter)
            words[i][letter] = "etaoinshrdlucmfwypvbgkqjxz"[next_random(&random) % 26 *
                                                            (next_random(&random) % 26) / 26];
    }
    while (at < kTextBytes) {
        uint64_t pick = next_random(&random);
        const char* word = words[(pick & 2047) * (pick >> 11 & 2047) >> 11];
        while (*word && at < kTextBytes)
            text[at++] = (uint8_t)*word++;
        if (at < kTextBytes)
            text[at++] = pick >> 40 & 15 ? ' ' : '\n';
    }
    return NULL;
}

static const char* prepare_buffers(void) {
    prepare_text();
    if (!packed) {
        packed = pages((size_t)kChunks * kPackedBytes);
        unpacked = pages(kChunkBytes);
        compressor = ZSTD_createCCtx();
        decompressor = ZSTD_createDCtx();
        if (!compressor || !decompressor)
            die("zstd");
    }
    return NULL;
}

static const uint8_t* chunk_at(uint64_t i) { return text + i % kChunks * kChunkBytes; }
static uint8_t* packed_at(uint64_t i) { return packed + i % kChunks * kPackedBytes; }

static uint64_t digest_of(const uint8_t* data, size_t bytes) {
    uint64_t digest = bytes, word;
    for (size_t at = 0; at + 8 <= bytes; at += 64) {
        memcpy(&word, data + at, 8);
        digest = mix(digest, word);
    }
    return digest;
}

static size_t lz4_pack(uint64_t i, uint8_t* output) {
    int size =
        LZ4_compress_default((const char*)chunk_at(i), (char*)output, kChunkBytes, kPackedBytes);
    if (size <= 0)
        die("LZ4_compress_default");
    return (size_t)size;
}

static size_t zstd_pack(uint64_t i, uint8_t* output) {
    size_t size = ZSTD_compressCCtx(compressor, output, kPackedBytes, chunk_at(i), kChunkBytes, 1);
    if (ZSTD_isError(size))
        die("ZSTD_compressCCtx");
    return size;
}

const char* prepare_lz4(void) {
    prepare_buffers();
    for (uint64_t i = 0; i < kChunks; ++i)
        packed_bytes[i] = lz4_pack(i, packed_at(i));
    return NULL;
}

const char* prepare_zstd(void) {
    prepare_buffers();
    for (uint64_t i = 0; i < kChunks; ++i)
        packed_bytes[i] = zstd_pack(i, packed_at(i));
    return NULL;
}

static uint64_t compress_all(uint64_t iterations, size_t (*pack)(uint64_t, uint8_t*)) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i)
        digest = mix(digest, digest_of(packed_at(i), pack(i, packed_at(i))));
    return digest;
}

uint64_t lz4_compress(uint64_t iterations) { return compress_all(iterations, lz4_pack); }
uint64_t zstd_compress(uint64_t iterations) { return compress_all(iterations, zstd_pack); }

/// What came out, and whether it is what went in.
static uint64_t unpacked_digest(uint64_t i) {
    uint64_t wanted = digest_of(chunk_at(i), kChunkBytes), got = digest_of(unpacked, kChunkBytes);
    return mix(got, got == wanted);
}

uint64_t lz4_decompress(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i) {
        int size = (int)packed_bytes[i % kChunks];
        if (LZ4_decompress_safe((const char*)packed_at(i), (char*)unpacked, size, kChunkBytes) !=
            kChunkBytes)
            die("LZ4_decompress_safe");
        digest = mix(digest, unpacked_digest(i));
    }
    return digest;
}

uint64_t zstd_decompress(uint64_t iterations) {
    uint64_t digest = 0;
    for (uint64_t i = 0; i < iterations; ++i) {
        if (ZSTD_decompressDCtx(decompressor, unpacked, kChunkBytes, packed_at(i),
                                packed_bytes[i % kChunks]) != kChunkBytes)
            die("ZSTD_decompressDCtx");
        digest = mix(digest, unpacked_digest(i));
    }
    return digest;
}
