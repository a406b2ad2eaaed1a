// SPDX-License-Identifier: Apache-2.0
// The CPU kernels. Class `dram` misses the last-level cache: such rows are shown, not judged.
#include "cpu.h"

#define KIB(n) ((uint64_t)(n) << 10)
#define FLOPS (2ull * kMatrix * kMatrix * kMatrix)
#define WORDS (kStreamBytes / 8)

const char* const own_mode = NULL;
int run_own_mode(void) { return 0; }

const struct test tests[] = {
    // name, class, unit, units per iteration, iterations of the check, run, prepare
    {"int-alu", "int", "iter", 1000, 1000, int_alu, NULL},
    {"div", "int", "op", 1000, 200, divide, NULL},
    {"sha256", "int", "byte", KIB(16), 20, sha256, prepare_text},
    {"qsort", "int", "elem", kSortElements, 1, quick_sort, prepare_sort},
    {"lz4-compress", "compress", "byte", kChunkBytes, 2, lz4_compress, prepare_lz4},
    {"lz4-decompress", "compress", "byte", kChunkBytes, 8, lz4_decompress, prepare_lz4},
    {"zstd-compress", "compress", "byte", kChunkBytes, 2, zstd_compress, prepare_zstd},
    {"zstd-decompress", "compress", "byte", kChunkBytes, 4, zstd_decompress, prepare_zstd},
    {"fib", "branch", "call", kFibCalls, 20, fib_calls, NULL},
    {"call-same", "branch", "call", 4096, 100, call_same, prepare_calls},
    {"call-cycle", "branch", "call", 4096, 100, call_cycle, prepare_calls},
    {"call-random", "branch", "call", 4096, 32, call_random, prepare_calls},
    {"interpreter", "branch", "op", 6002, 100, interpreter, NULL},
    {"chase-16K", "memory", "load", 1000, 500, chase, prepare_chase_16k},
    {"chase-512K", "memory", "load", 1000, 200, chase, prepare_chase_512k},
    {"chase-8M", "dram", "load", 1000, 50, chase, prepare_chase_8m},
    {"chase-128M", "dram", "load", 1000, 20, chase, prepare_chase_128m},
    {"stream-sum", "memory", "8B", WORDS, 50, stream_sum, prepare_stream},
    {"stream-store", "memory", "8B", WORDS, 50, stream_store, prepare_stream},
    {"memcpy-16M", "dram", "byte", KIB(16 << 10), 1, copy_16m, prepare_copy},
    {"rep-movsb-4K", "memory", "byte", KIB(4), 2000, rep_movsb_4k, prepare_copy},
    {"n-body", "float", "step", kBodySteps, 5, n_body, NULL},
    {"matmul-scalar", "float", "flop", FLOPS, 4, matmul_scalar, prepare_matrix},
    {"matmul-sse", "float", "flop", FLOPS, 20, matmul_sse, prepare_matrix},
    {"matmul-avx2", "float", "flop", FLOPS, 20, matmul_avx2, prepare_matrix_avx2},
    {"x87", "float", "iter", 1000, 200, x87_chain, NULL},
    {"lock-xadd", "atomic", "op", 1000, 200, lock_xadd, NULL},
    {"lock-cmpxchg", "atomic", "op", 1000, 200, lock_cmpxchg, NULL},
    {NULL, NULL, NULL, 0, 0, NULL, NULL},
};
