// SPDX-License-Identifier: Apache-2.0
// Floating point: scalar SSE2, packed SSE, AVX2 with FMA, x87.
#include "cpu.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

struct body {
    double x[3], v[3], mass;
};
enum { kBodies = 5 };

static void advance(struct body* bodies, double dt) {
    for (int i = 0; i < kBodies; ++i) {
        for (int j = i + 1; j < kBodies; ++j) {
            double d[3], square = 0.01;
            for (int axis = 0; axis < 3; ++axis) {
                d[axis] = bodies[i].x[axis] - bodies[j].x[axis];
                square += d[axis] * d[axis];
            }
            double scale = dt / (square * sqrt(square));
            for (int axis = 0; axis < 3; ++axis) {
                bodies[i].v[axis] -= d[axis] * bodies[j].mass * scale;
                bodies[j].v[axis] += d[axis] * bodies[i].mass * scale;
            }
        }
    }
    for (int i = 0; i < kBodies; ++i)
        for (int axis = 0; axis < 3; ++axis)
            bodies[i].x[axis] += dt * bodies[i].v[axis];
}

static uint64_t bits(double value) {
    uint64_t result;
    memcpy(&result, &value, sizeof result);
    return result;
}

uint64_t n_body(uint64_t iterations) {
    struct body bodies[kBodies];
    for (int i = 0; i < kBodies; ++i)
        bodies[i] =
            (struct body){{i * 1.5, 2.0 - i, 0.25 * i * i}, {0.1 * i, 0.2, -0.1 * i}, 1.0 + i};
    for (uint64_t i = 0; i < iterations * kBodySteps; ++i)
        advance(bodies, 0.001);
    return mix(bits(bodies[0].x[0]), bits(bodies[4].v[2]));
}

uint64_t x87_chain(uint64_t iterations) {
    long double value = 1.0L, factor = 0.9999L, term = 0.0001L;
    for (uint64_t i = 0; i < iterations * 1000; ++i)
        value = value * factor + term * (long double)(i & 7);
    return bits((double)value);
}

static _Alignas(64) float left[kMatrix][kMatrix], right[kMatrix][kMatrix],
    product[kMatrix][kMatrix];

const char* prepare_matrix(void) {
    for (int i = 0; i < kMatrix; ++i) {
        for (int j = 0; j < kMatrix; ++j) {
            left[i][j] = (float)((i * 7 + j * 3) % 17) * 0.125f;
            right[i][j] = (float)((i * 5 + j * 11) % 13) * 0.25f;
        }
    }
    return NULL;
}

const char* prepare_matrix_avx2(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return "no AVX2 with FMA";
    return prepare_matrix();
}

static uint64_t product_digest(uint64_t iterations) {
    uint64_t digest = iterations;
    for (int i = 0; i < kMatrix; ++i)
        digest = mix(digest, bits((double)product[i][i] + (double)product[i][kMatrix - 1 - i]));
    return digest;
}

__attribute__((optimize("no-tree-vectorize"))) static void multiply_scalar(void) {
    for (int i = 0; i < kMatrix; ++i) {
        for (int j = 0; j < kMatrix; ++j) {
            float sum = 0;
            for (int k = 0; k < kMatrix; ++k)
                sum += left[i][k] * right[k][j];
            product[i][j] = sum;
        }
    }
}

static void multiply_sse(void) {
    for (int i = 0; i < kMatrix; ++i) {
        for (int j = 0; j < kMatrix; j += 8) {
            __m128 low = _mm_setzero_ps(), high = _mm_setzero_ps();
            for (int k = 0; k < kMatrix; ++k) {
                __m128 factor = _mm_set1_ps(left[i][k]);
                low = _mm_add_ps(low, _mm_mul_ps(factor, _mm_load_ps(&right[k][j])));
                high = _mm_add_ps(high, _mm_mul_ps(factor, _mm_load_ps(&right[k][j + 4])));
            }
            _mm_store_ps(&product[i][j], low);
            _mm_store_ps(&product[i][j + 4], high);
        }
    }
}

__attribute__((target("avx2,fma"))) static void multiply_avx2(void) {
    for (int i = 0; i < kMatrix; ++i) {
        for (int j = 0; j < kMatrix; j += 16) {
            __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
            for (int k = 0; k < kMatrix; ++k) {
                __m256 factor = _mm256_broadcast_ss(&left[i][k]);
                low = _mm256_fmadd_ps(factor, _mm256_load_ps(&right[k][j]), low);
                high = _mm256_fmadd_ps(factor, _mm256_load_ps(&right[k][j + 8]), high);
            }
            _mm256_store_ps(&product[i][j], low);
            _mm256_store_ps(&product[i][j + 8], high);
        }
    }
}

static uint64_t matmul(uint64_t iterations, void (*multiply)(void)) {
    for (uint64_t i = 0; i < iterations; ++i)
        multiply();
    return product_digest(iterations);
}

uint64_t matmul_scalar(uint64_t iterations) { return matmul(iterations, multiply_scalar); }
uint64_t matmul_sse(uint64_t iterations) { return matmul(iterations, multiply_sse); }
uint64_t matmul_avx2(uint64_t iterations) { return matmul(iterations, multiply_avx2); }
