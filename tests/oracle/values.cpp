// SPDX-License-Identifier: Apache-2.0
#include "tests/oracle/values.hpp"

#include <cstring>

namespace doppel::oracle {
namespace {

constexpr std::uint64_t kIntegers[] = {
    0,
    1,
    2,
    3,
    7,
    8,
    0xf,
    0x10,
    0x1f,
    0x20,
    0x3f,
    0x40,
    0x7f,
    0x80,
    0x81,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0x8001,
    0xffff,
    0x10000,
    0x7fff'ffff,
    0x8000'0000,
    0x8000'0001,
    0xffff'fffe,
    0xffff'ffff,
    0x1'0000'0000,
    0x7fff'ffff'ffff'ffff,
    0x8000'0000'0000'0000,
    0x8000'0000'0000'0001,
    0xffff'ffff'ffff'fffe,
    0xffff'ffff'ffff'ffff,
    0x5555'5555'5555'5555,
    0xaaaa'aaaa'aaaa'aaaa,
    0x0101'0101'0101'0101,
    0x8080'8080'8080'8080,
};
constexpr std::uint32_t kSingles[] = {
    0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
    0xffc00000, 0x00000001, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x4b000000,
    0x4f000000, 0xcf000000, 0x5f000000, 0x3fc00000, 0x40490fdb, 0x33800000, 0x3effffff, 0x34000000,
};
constexpr std::uint64_t kDoubles[] = {
    0,
    0x8000000000000000,
    0x3ff0000000000000,
    0xbff0000000000000,
    0x7ff0000000000000,
    0xfff0000000000000,
    0x7ff8000000000000,
    0x7ff0000000000001,
    0x0000000000000001,
    0x000fffffffffffff,
    0x0010000000000000,
    0x7fefffffffffffff,
    0x41dfffffffc00000,
    0x41e0000000000000,
    0xc1e0000000000000,
    0x43e0000000000000,
    0x400921fb54442d18,
    0x3fefffffffffffff,
    0x47efffffe0000000,
    0x36a0000000000000,
};

void fill(Random& random, std::uint8_t* to, std::size_t bytes) {
    for (std::size_t at = 0; at + 8 <= bytes; at += 8) {
        std::uint64_t value = random.next();
        switch (random.below(5)) {
        case 0: value = interesting_integer(random); break;
        case 1:
            value = kSingles[random.below(std::size(kSingles))] |
                    std::uint64_t{kSingles[random.below(std::size(kSingles))]} << 32;
            break;
        case 2: value = kDoubles[random.below(std::size(kDoubles))]; break;
        default: break;
        }
        std::memcpy(to + at, &value, 8);
    }
}

/// Sign and exponent, then the significand.
void fill_extended(Random& random, std::array<std::uint8_t, 10>& to) {
    constexpr std::uint16_t kExponents[] = {0, 1, 0x3fff, 0x4000, 0x403e, 0x401e, 0x7ffe, 0x7fff};
    constexpr std::uint64_t kSignificands[] = {
        0,
        1,
        0x8000000000000000,
        0xc000000000000000,
        0xffffffffffffffff,
        0x8000000000000001,
        0x4000000000000000,
    };
    std::uint64_t significand = random.next() | 1ull << 63;
    std::uint64_t exponent = 0x3fff - 40 + random.below(80);
    if (random.one_in(3))
        significand = kSignificands[random.below(std::size(kSignificands))];
    if (random.one_in(3))
        exponent = kExponents[random.below(std::size(kExponents))];
    exponent |= random.below(2) << 15;
    std::memcpy(to.data(), &significand, 8);
    std::memcpy(to.data() + 8, &exponent, 2);
}

} // namespace

std::uint64_t interesting_integer(Random& random) {
    const std::uint64_t value = kIntegers[random.below(std::size(kIntegers))];
    switch (random.below(4)) {
    case 0: return random.next();
    case 1: return value + random.below(5) - 2;
    default: return value;
    }
}

VectorState interesting_vectors(Random& random) {
    VectorState vectors;
    for (auto& ymm : vectors.ymm)
        fill(random, ymm.data(), ymm.size());
    for (auto& st : vectors.st)
        fill_extended(random, st);
    constexpr std::uint32_t kAllMasked = 0x1f80;
    vectors.mxcsr = kAllMasked | static_cast<std::uint32_t>(random.below(4)) << 13;
    if (random.one_in(8))
        vectors.mxcsr |= static_cast<std::uint32_t>(random.below(64)); // flags
    if (random.one_in(8))
        vectors.mxcsr |= random.one_in(2) ? 0x8000 : 0x40; // flush to zero, denormals are zero
    if (random.one_in(16))
        vectors.mxcsr &= ~(static_cast<std::uint32_t>(random.below(64)) << 7); // unmasked
    vectors.fcw = 0x37f;
    if (random.one_in(4))
        vectors.fcw = static_cast<std::uint16_t>(0x7f | random.below(16) << 8);
    if (random.one_in(16))
        vectors.fcw = static_cast<std::uint16_t>(vectors.fcw & ~random.below(64));
    vectors.fsw = static_cast<std::uint16_t>(random.below(8) << 11 | (random.next() & 0x4700));
    if (random.one_in(8))
        vectors.fsw = static_cast<std::uint16_t>(vectors.fsw | random.below(128));
    if ((vectors.fsw & ~vectors.fcw & 0x3f) != 0)
        vectors.fsw |= 0x8080; // error summary and busy
    vectors.ftw = random.one_in(2) ? 0xff : random.byte();
    return vectors;
}

std::vector<MemoryImage> initial_memories() {
    std::vector<MemoryImage> images(32);
    Random random{0x6d656d6f7279};
    for (auto& image : images)
        fill(random, image.data(), image.size());
    return images;
}

} // namespace doppel::oracle
