// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Prefixes, ModRM and SIB as tables: what decoder.cpp would otherwise have to branch on.

#include <array>
#include <cstdint>

#include "cpu/x86/decoder/table.hpp"

namespace doppel::cpu::x86::decoder {

enum class PrefixByte : std::uint8_t { None, Segment, Size, Address, Lock, Repne, Rep, Rex };

consteval std::array<PrefixByte, 256> prefix_bytes(bool long_mode) {
    std::array<PrefixByte, 256> table{};
    for (const unsigned byte : {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65})
        table[byte] = PrefixByte::Segment;
    for (unsigned byte = 0x40; byte < 0x50 && long_mode; ++byte)
        table[byte] = PrefixByte::Rex;
    table[0x66] = PrefixByte::Size;
    table[0x67] = PrefixByte::Address;
    table[0xf0] = PrefixByte::Lock;
    table[0xf2] = PrefixByte::Repne;
    table[0xf3] = PrefixByte::Rep;
    return table;
}

/// By "64-bit code", then byte.
inline constexpr std::array<std::array<PrefixByte, 256>, 2> kPrefixBytes{prefix_bytes(false),
                                                                         prefix_bytes(true)};

/// Neither a prefix nor a byte that is, or may be, the beginning of VEX or EVEX.
consteval std::array<bool, 256> begins_plainly(bool long_mode) {
    std::array<bool, 256> table{};
    for (unsigned byte = 0; byte < 256; ++byte)
        table[byte] = kPrefixBytes[long_mode][byte] == PrefixByte::None && byte != 0x62 &&
                      byte != 0xc4 && byte != 0xc5;
    return table;
}
/// By "64-bit code", then byte.
inline constexpr std::array<std::array<bool, 256>, 2> kBeginsPlainly{begins_plainly(false),
                                                                     begins_plainly(true)};

/// Choice::Prefix by the low bits of Instruction::prefixes: F2, then F3, then 66.
inline constexpr std::uint8_t kPrefixChoices[16] = {0, 1, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};

/// The bytes of Instruction from memory_size to modrm, as one word.
constexpr std::uint64_t address_word(unsigned segment, unsigned base, unsigned index,
                                     unsigned scale) {
    return std::uint64_t(segment) << 24 | std::uint64_t(base) << 32 | std::uint64_t(index) << 40 |
           std::uint64_t(scale) << 48;
}
inline constexpr std::uint64_t kAddressMask = address_word(0xff, 0xff, 0xff, 0xff);
inline constexpr std::uint64_t kNoAddress = address_word(3, kNoRegister, kNoRegister, 1);

/// The segment that belongs to a base register: ss for rsp and rbp.
constexpr unsigned segment_of(unsigned base) { return (base & ~1u) == 4 ? 2 : 3; }

/// What ModRM alone says with 32- and 64-bit addresses (SDM Vol. 2 table 2-2): an address_word();
/// above it, the bytes of displacement, and in bit 63 whether a SIB follows.
inline constexpr std::uint64_t kHasSib = 1ull << 63;
constexpr std::uint64_t address_of(unsigned modrm, bool long_mode, unsigned extension) {
    const unsigned mod = modrm >> 6;
    const unsigned rm = modrm & 7;
    if (mod == 3)
        return kNoAddress;
    if (rm == 5 && mod == 0)
        return address_word(3, long_mode ? kRip : kNoRegister, kNoRegister, 1) | 4ull << 56;
    const unsigned size = mod == 2 ? 4 : mod;
    const unsigned base = rm + extension;
    return address_word(segment_of(base), base, kNoRegister, 1) | std::uint64_t(size) << 56 |
           (rm == 4 ? kHasSib : 0);
}

/// By ModRM; first 32-bit code, then 64-bit code without and with REX.B.
inline constexpr auto kAddresses = [] {
    std::array<std::array<std::uint64_t, 256>, 3> table{};
    for (unsigned modrm = 0; modrm < 256; ++modrm) {
        table[0][modrm] = address_of(modrm, false, 0);
        table[1][modrm] = address_of(modrm, true, 0);
        table[2][modrm] = address_of(modrm, true, 8);
    }
    return table;
}();

/// Register numbers by ModRM, in the order of Lane. 16 in place of a memory operand: it falls out
/// of the sets of general registers.
inline constexpr auto kModrmLanes = [] {
    std::array<std::uint64_t, 256> table{};
    for (std::uint64_t modrm = 0; modrm < 256; ++modrm) {
        const std::uint64_t reg = modrm >> 3 & 7;
        const std::uint64_t rm = modrm & 7;
        table[modrm] = reg | rm << 8 | reg << 40 | rm << 48;
    }
    return table;
}();

inline constexpr std::uint8_t kBases16[8] = {3, 3, 5, 5, 6, 7, 5, 3};
inline constexpr std::uint8_t kIndexes16[8] = {6,           7,           6,           7,
                                               kNoRegister, kNoRegister, kNoRegister, kNoRegister};

} // namespace doppel::cpu::x86::decoder
