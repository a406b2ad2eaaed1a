// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One instruction test: a user-mode state with memory, a few bytes of code, and what came of it.
/// The host CPU and the engine under test run it at the same linear addresses; the code is followed
/// by INT3s, so every run ends in an exception.
#include <array>
#include <cstddef>
#include <cstdint>

namespace doppel::oracle {

/// Linear addresses, all below 4 GiB so that 32-bit code reaches them. What is not named here is
/// not mapped.
namespace area {
inline constexpr std::uint64_t kPage = 4096;
inline constexpr std::uint64_t kCode = 0x1000'0000; // 2 pages, read and execute, INT3s
inline constexpr std::uint64_t kCodePages = 2;
inline constexpr std::uint64_t kData = 0x1001'0000;     // 2 pages, read and write
inline constexpr std::uint64_t kReadOnly = 0x1001'4000; // 1 page
inline constexpr std::uint64_t kStack = 0x1001'8000;    // 1 page, read and write
/// Data, read-only page, stack: the order in a MemoryImage.
inline constexpr std::size_t kImagePages = 4;
inline constexpr std::size_t kImageBytes = kImagePages * kPage;
inline constexpr std::uint64_t kFsBase = kData + 0x400, kGsBase = kData + 0xc00;
inline constexpr std::uint64_t kGsBytes = kPage; // its limit in 32-bit code, where FS has none
} // namespace area

/// Place of a linear address of one of these pages in a MemoryImage.
constexpr std::size_t image_offset(std::uint64_t linear) {
    if (linear >= area::kStack)
        return linear - area::kStack + 3 * area::kPage;
    return linear >= area::kReadOnly ? linear - area::kReadOnly + 2 * area::kPage
                                     : linear - area::kData;
}

using MemoryImage = std::array<std::uint8_t, area::kImageBytes>;

/// x87 and vectors, independent of any save format.
struct VectorState {
    std::array<std::array<std::uint8_t, 32>, 16> ymm{};
    std::array<std::array<std::uint8_t, 10>, 8> st{}; // by stack position: ST(0) first
    std::uint32_t mxcsr = 0x1f80;
    std::uint16_t fcw = 0x37f, fsw = 0;
    std::uint8_t ftw = 0; // abridged: bit n = physical register n holds something
    bool operator==(const VectorState&) const = default;
};

/// Bits16: segments of the LDT: CS is the code pages, DS and ES the two data pages, SS the stack
/// page (a 16-bit stack), FS and GS null; all offsets count from their bases.
/// Bits32: flat segments, but FS and GS of the LDT, with bases, one of 4 GiB and one limited.
enum class Mode : std::uint8_t { Bits64, Bits32, Bits16 };

namespace ldt {
inline constexpr std::uint16_t kCode = 0x07, kData = 0x0f, kStack = 0x17; // selectors
inline constexpr std::uint16_t kFs = 0x1f, kGs = 0x27;
} // namespace ldt

struct Case {
    Mode mode = Mode::Bits64;
    std::uint8_t code_length = 0;
    std::uint16_t code_offset = 0x800; // from area::kCode
    std::uint32_t memory = 0;          // number of the initial MemoryImage
    std::array<std::uint8_t, 32> code{};
    std::array<std::uint64_t, 16> gpr{}; // encoding order
    std::uint64_t rflags = 0x202;
    VectorState vectors{};
    /// Changes to the initial memory: 8 bytes at these linear addresses (0 = none).
    std::array<std::uint64_t, 2> poke_at{}, poke{};
};

struct Outcome {
    std::uint8_t vector = 0xff; // 3 = ran to an INT3
    std::uint32_t error_code = 0;
    std::uint64_t cr2 = 0; // page faults
    std::uint64_t rip = 0;
    std::uint64_t rflags = 0;
    std::array<std::uint64_t, 16> gpr{};
    VectorState vectors{};
};
constexpr std::uint64_t initial_rip(const Case& test) {
    return test.mode == Mode::Bits16 ? test.code_offset : area::kCode + test.code_offset;
}
/// What of the code lies in the code pages: it may be placed across their end.
constexpr std::size_t code_bytes(const Case& test) {
    const std::size_t room = area::kCodePages * area::kPage - test.code_offset;
    return test.code_length < room ? test.code_length : room;
}
inline constexpr std::uint8_t kHung = 0xfe; // did not end, or killed its process

/// Bits of RFLAGS that are compared: arithmetic, DF, AC, IF. (Linux restores neither NT nor ID from
/// a signal frame.)
inline constexpr std::uint64_t kComparedFlags = 0x40ed5;

} // namespace doppel::oracle
