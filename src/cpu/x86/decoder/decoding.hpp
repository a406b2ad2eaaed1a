// SPDX-License-Identifier: Apache-2.0
#pragma once
/// decoder.cpp's own: a decoding in progress, and what stands before the opcode: prefixes, REX,
/// VEX, escapes. Static, what is no inline function: foundations.md, hot code must not be weak.
#include <cstddef>
#include <cstdint>

#include "cpu/x86/decoder/encoding.hpp"
#include "cpu/x86/decoder/sizes.hpp"
#include "cpu/x86/decoder/table.hpp"

#define DOPPEL_DECODER_INLINE [[gnu::always_inline]] inline

namespace doppel::cpu::x86::decoder {

constexpr unsigned kMaxLength = 15;
/// The farthest byte that is looked at, whatever the code: 14 prefixes, two escapes and the opcode,
/// ModRM, SIB, displacement, and an eight-byte load of the immediate.
constexpr std::size_t kReach = 32;

template <typename T> DOPPEL_DECODER_INLINE T load(const std::uint8_t* at) {
    T value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
}

DOPPEL_DECODER_INLINE void store(std::uint8_t* at, std::uint64_t value) {
    __builtin_memcpy(at, &value, sizeof value);
}

/// The same pointer, but the compiler no longer knows how to compute it, and so keeps it.
template <typename T> DOPPEL_DECODER_INLINE const T* keep(const T* pointer) {
    __asm__("" : "+r"(pointer));
    return pointer;
}

/// Likewise a number: what it is used for becomes arithmetic instead of a branch on where it came
/// from.
DOPPEL_DECODER_INLINE unsigned plain(unsigned value) {
    __asm__("" : "+r"(value));
    return value;
}

/// One decoding in progress. Lives in registers: what is on the usual path is inlined into
/// decode(), and it avoids branches that data would make unpredictable.
template <bool kLongMode> struct Decoding {
    const std::uint8_t* code; // kReach bytes can be read
    CodeSize mode;
    unsigned position = 0;
    unsigned prefixes = 0;
    unsigned segment = kNoRegister; // override
    unsigned rex = 0;               // as Instruction::rex
    unsigned choice = 0;            // Choice::Prefix
    unsigned size_shift = 0;        // into Entry::operand_sizes: 2 * (66) + 4 * REX.W
    unsigned vvvv = 0;              // upright: 0 if the field is all ones
    unsigned vector = 0;            // VEX.L
    unsigned map = 0;
    unsigned encoding = 0;
    std::uint8_t opcode = 0;
    std::uint8_t modrm = 0;
    bool modrm_seen = false; // it has been looked at, so it belongs to the instruction
    const Entry* entry = nullptr;

    unsigned opcode_offset = 0;
    unsigned modrm_offset = 0;
    unsigned operand_size_log2 = 0;
    unsigned address_size = 0;
    unsigned register_modrm = 0; // modrm, with mod = 3 unless it names memory
    unsigned displacement_size = 0;
    unsigned immediate_size = 0;
    unsigned address_registers = 0; // set of them
    std::uint64_t address = kNoAddress;
    std::uint64_t immediate = 0;
    const SizeColumn* sizes = nullptr;

    DOPPEL_DECODER_INLINE bool long_mode() const { return kLongMode; }
    DOPPEL_DECODER_INLINE bool vex() const { return encoding != unsigned(Encoding::Legacy); }
    DOPPEL_DECODER_INLINE bool memory() const { return register_modrm < 0xc0; }
    DOPPEL_DECODER_INLINE unsigned mod() const { return modrm >> 6; }
    DOPPEL_DECODER_INLINE unsigned reg() const { return modrm >> 3 & 7u; }
    DOPPEL_DECODER_INLINE unsigned rm() const { return modrm & 7u; }
};

/// Calls what is not inlined with a copy, so that `d` itself needs no address and stays in
/// registers.
template <bool kLongMode, typename Call>
DOPPEL_DECODER_INLINE bool aside(Decoding<kLongMode>& d, const Call& call) {
    Decoding<kLongMode> copy = d;
    const bool result = call(copy);
    d = copy;
    return result;
}

template <bool kLongMode>
DOPPEL_DECODER_INLINE void take_segment(Decoding<kLongMode>& d, std::uint8_t byte) {
    if (byte >= 0x64)
        d.segment = byte - 0x60u;
    else if (!d.long_mode()) // ignored in 64-bit code, SDM Vol. 1 §3.4.2.1
        d.segment = byte >> 3 & 3;
    d.prefixes |= prefix::kSegment;
}

/// A REX counts only if it stands directly before the opcode. False: too long.
template <bool kLongMode> static bool read_prefixes(Decoding<kLongMode>& d) {
    unsigned rex = 0;
    for (d.position = 0;; ++d.position) {
        if (d.position == kMaxLength)
            return false;
        const std::uint8_t byte = d.code[d.position];
        const PrefixByte kind = kPrefixBytes[d.long_mode()][byte];
        if (kind == PrefixByte::None)
            break;
        rex = 0;
        switch (kind) {
        case PrefixByte::Segment: take_segment(d, byte); break;
        case PrefixByte::Size: d.prefixes |= prefix::kOperandSize; break;
        case PrefixByte::Address: d.prefixes |= prefix::kAddressSize; break;
        case PrefixByte::Lock: d.prefixes |= prefix::kLock; break;
        case PrefixByte::Repne: // the last of F2 and F3 counts
            d.prefixes = (d.prefixes & ~unsigned(prefix::kRep)) | prefix::kRepne;
            break;
        case PrefixByte::Rep:
            d.prefixes = (d.prefixes & ~unsigned(prefix::kRepne)) | prefix::kRep;
            break;
        default: rex = byte; break;
        }
    }
    d.prefixes |= rex != 0 ? prefix::kRex : 0;
    d.rex = rex;
    d.choice = kPrefixChoices[d.prefixes & 0xf];
    d.size_shift = 2 * (d.prefixes & prefix::kOperandSize) + (rex >> 1 & 4u);
    return true;
}

/// The prefixes of most instructions: at most a REX. False: there are others, or it is no opcode
/// that follows, or not surely one.
template <bool kLongMode> DOPPEL_DECODER_INLINE bool read_rex(Decoding<kLongMode>& d) {
    const std::uint8_t first = d.code[0];
    const unsigned rex = plain(kPrefixBytes[kLongMode][first] == PrefixByte::Rex);
    d.position = rex;
    d.rex = first & (0u - rex);
    d.prefixes = d.rex & prefix::kRex; // the same bit
    d.size_shift = d.rex >> 1 & 4u;
    return kBeginsPlainly[kLongMode][d.code[d.position]];
}

/// VEX; SDM Vol. 2 §2.3.5. False: undefined.
template <bool kLongMode> [[gnu::noinline]] static bool read_vex(Decoding<kLongMode>& d) {
    constexpr std::uint8_t kForbidden =
        prefix::kOperandSize | prefix::kRep | prefix::kRepne | prefix::kLock | prefix::kRex;
    constexpr std::uint8_t kByPp[] = {0, prefix::kOperandSize, prefix::kRep, prefix::kRepne};
    const bool three = d.code[d.position] == 0xc4;
    const std::uint8_t first = d.code[d.position + 1];
    const std::uint8_t last = three ? d.code[d.position + 2] : first;
    const unsigned map = three ? first & 0x1fu : 1u;
    const unsigned inverted = std::uint8_t(~first);
    d.rex = three ? inverted >> 5 : inverted >> 5 & 4u;
    d.rex |= three ? last >> 4 & 8u : 0u;
    d.vvvv = std::uint8_t(~last) >> 3 & 0xfu;
    if (!d.long_mode()) // R and X are 0 there, or this were LES or LDS; B is ignored
        d.rex &= 8u;
    d.size_shift = d.long_mode() ? d.rex >> 1 & 4u : 0u;
    d.rex |= 0x40u;
    d.vector = last >> 2 & 1u;
    d.choice = last & 3u;
    d.encoding = unsigned(three ? Encoding::Vex3 : Encoding::Vex2);
    d.position += three ? 3 : 2;
    if ((d.prefixes & kForbidden) != 0 || map == 0 || map > 3)
        return false;
    d.prefixes |= kByPp[d.choice];
    d.map = map;
    return true;
}

template <bool kLongMode> DOPPEL_DECODER_INLINE void read_escapes(Decoding<kLongMode>& d) {
    d.map = plain(d.code[d.position] == 0x0f);
    d.position += d.map;
    const std::uint8_t second = d.code[d.position];
    if ((d.map & plain((second & 0xfd) == 0x38)) != 0) [[unlikely]] { // 0F 38, 0F 3A
        d.map = second == 0x38 ? 2 : 3;
        ++d.position;
    }
}

/// Escapes or VEX. False: undefined.
template <bool kLongMode> DOPPEL_DECODER_INLINE bool read_escapes_or_vex(Decoding<kLongMode>& d) {
    const std::uint8_t byte = d.code[d.position];
    if (((byte & 0xfe) == 0xc4 || byte == 0x62) && // VEX, EVEX, or LES, LDS, BOUND
        (d.long_mode() || d.code[d.position + 1] >= 0xc0)) {
        if (byte != 0x62)
            return aside(d, [](auto& copy) { return read_vex(copy); });
        d.position += 2;
        return false;
    }
    read_escapes(d);
    return true;
}

} // namespace doppel::cpu::x86::decoder
