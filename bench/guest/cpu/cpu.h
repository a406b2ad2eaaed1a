// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bench.h"

uint64_t int_alu(uint64_t iterations);
uint64_t sha256(uint64_t iterations);
uint64_t divide(uint64_t iterations);
uint64_t quick_sort(uint64_t iterations);
const char* prepare_sort(void);

uint64_t fib_calls(uint64_t iterations);
uint64_t call_same(uint64_t iterations);
uint64_t call_cycle(uint64_t iterations);
uint64_t call_random(uint64_t iterations);
const char* prepare_calls(void);
uint64_t interpreter(uint64_t iterations);

enum { kTextBytes = 8 << 20, kChunkBytes = 256 << 10, kChunks = kTextBytes / kChunkBytes };
extern uint8_t* text; // kTextBytes of something like prose, after prepare_text()
const char* prepare_text(void);
uint64_t lz4_compress(uint64_t iterations);
uint64_t lz4_decompress(uint64_t iterations);
uint64_t zstd_compress(uint64_t iterations);
uint64_t zstd_decompress(uint64_t iterations);
const char* prepare_lz4(void);
const char* prepare_zstd(void);

uint64_t chase(uint64_t iterations);
const char* prepare_chase_16k(void);
const char* prepare_chase_512k(void);
const char* prepare_chase_8m(void);
const char* prepare_chase_128m(void);
uint64_t stream_sum(uint64_t iterations);
uint64_t stream_store(uint64_t iterations);
const char* prepare_stream(void);
uint64_t copy_16m(uint64_t iterations);
uint64_t rep_movsb_4k(uint64_t iterations);
const char* prepare_copy(void);
uint64_t lock_xadd(uint64_t iterations);
uint64_t lock_cmpxchg(uint64_t iterations);

enum { kFibCalls = 35421 }; // 2 fib(22) - 1
enum { kBodySteps = 1000, kMatrix = 64, kStreamBytes = 256 << 10, kSortElements = 1 << 14 };
uint64_t n_body(uint64_t iterations);
uint64_t x87_chain(uint64_t iterations);
const char* prepare_matrix(void);
const char* prepare_matrix_avx2(void);
uint64_t matmul_scalar(uint64_t iterations);
uint64_t matmul_sse(uint64_t iterations);
uint64_t matmul_avx2(uint64_t iterations);
