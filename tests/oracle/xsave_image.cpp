// SPDX-License-Identifier: Apache-2.0
#include "tests/oracle/xsave_image.hpp"

#include <cstring>

namespace doppel::oracle {
namespace {

constexpr std::size_t kMxcsr = 24, kSt = 32, kXmm = 160, kXstateBv = 512, kYmmHigh = 576;
constexpr std::uint64_t kX87 = 1, kSse = 2, kAvx = 4;

template <typename T> void put(std::byte* xsave, std::size_t offset, T value) {
    std::memcpy(xsave + offset, &value, sizeof value);
}
template <typename T> T get(const std::byte* xsave, std::size_t offset) {
    T value;
    std::memcpy(&value, xsave + offset, sizeof value);
    return value;
}

} // namespace

void put_vectors(std::byte* xsave, const VectorState& vectors) {
    std::memset(xsave, 0, kMxcsr);
    put(xsave, 0, vectors.fcw);
    put(xsave, 2, vectors.fsw);
    put(xsave, 4, vectors.ftw);
    put(xsave, kMxcsr, vectors.mxcsr);
    for (std::size_t i = 0; i < 8; ++i) {
        std::memset(xsave + kSt + 16 * i, 0, 16);
        std::memcpy(xsave + kSt + 16 * i, vectors.st[i].data(), 10);
    }
    for (std::size_t i = 0; i < 16; ++i) {
        std::memcpy(xsave + kXmm + 16 * i, vectors.ymm[i].data(), 16);
        std::memcpy(xsave + kYmmHigh + 16 * i, vectors.ymm[i].data() + 16, 16);
    }
    put(xsave, kXstateBv, kX87 | kSse | kAvx);
    put(xsave, kXstateBv + 8, std::uint64_t{0});
}

VectorState get_vectors(const std::byte* xsave) {
    VectorState vectors;
    const auto valid = get<std::uint64_t>(xsave, kXstateBv);
    vectors.mxcsr = get<std::uint32_t>(xsave, kMxcsr);
    if ((valid & kX87) != 0) {
        vectors.fcw = get<std::uint16_t>(xsave, 0);
        vectors.fsw = get<std::uint16_t>(xsave, 2);
        vectors.ftw = get<std::uint8_t>(xsave, 4);
        for (std::size_t i = 0; i < 8; ++i)
            std::memcpy(vectors.st[i].data(), xsave + kSt + 16 * i, 10);
    }
    for (std::size_t i = 0; i < 16; ++i) {
        if ((valid & kSse) != 0)
            std::memcpy(vectors.ymm[i].data(), xsave + kXmm + 16 * i, 16);
        if ((valid & kAvx) != 0)
            std::memcpy(vectors.ymm[i].data() + 16, xsave + kYmmHigh + 16 * i, 16);
    }
    return vectors;
}

} // namespace doppel::oracle
