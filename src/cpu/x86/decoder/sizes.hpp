// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Sizes as tables: effective operand size, sizes of operands and immediates.

#include <array>
#include <cstdint>

#include "cpu/x86/decoder/table.hpp"

namespace doppel::cpu::x86::decoder {

/// Logarithm of the effective operand size in bytes; SDM Vol. 1 table 3-4 and Vol. 2 §2.2.1.2.
constexpr std::uint8_t operand_size_log2(SizeRule rule, CodeSize mode, bool w, bool prefix) {
    const bool long_mode = mode == CodeSize::Bits64;
    switch (rule) {
    case SizeRule::Byte: return 0;
    case SizeRule::Natural: return long_mode ? 3 : 2;
    case SizeRule::Force64:
        if (long_mode)
            return 3;
        break;
    case SizeRule::Stack64:
        if (long_mode)
            return prefix && !w ? 1 : 3;
        break;
    case SizeRule::NoPrefix: return w ? 3 : 2;
    case SizeRule::NoW:
        if (w)
            return 2;
        break;
    default: break;
    }
    if (w)
        return 3;
    return (mode == CodeSize::Bits16) != prefix ? 1 : 2;
}

constexpr std::size_t operand_size_index(SizeRule rule, CodeSize mode, unsigned w,
                                         unsigned prefix) {
    return unsigned(rule) * 12u + unsigned(mode) * 4u + w * 2u + prefix;
}

inline constexpr auto kOperandSizeLog2 = [] {
    std::array<std::uint8_t, std::size_t(SizeRule::Count) * 12> table{};
    for (unsigned rule = 0; rule < unsigned(SizeRule::Count); ++rule)
        for (unsigned mode = 0; mode < 3; ++mode)
            for (unsigned bits = 0; bits < 4; ++bits)
                table[operand_size_index(SizeRule(rule), CodeSize(mode), bits >> 1, bits & 1)] =
                    operand_size_log2(SizeRule(rule), CodeSize(mode), bits >> 1, bits & 1);
    return table;
}();

constexpr std::uint16_t size_of(SizeCode code, unsigned operand, unsigned vector) {
    constexpr std::uint16_t kFixed[] = {0, 1, 2, 4, 8, 16, 32};
    switch (code) {
    case SizeCode::X: return std::uint16_t(vector);
    case SizeCode::H: return std::uint16_t(vector / 2);
    case SizeCode::F: return std::uint16_t(vector / 4);
    case SizeCode::E: return std::uint16_t(vector / 8);
    case SizeCode::V: return std::uint16_t(operand);
    case SizeCode::Y: return operand == 8 ? 8 : 4;
    case SizeCode::Z: return std::uint16_t(operand < 4 ? operand : 4);
    case SizeCode::P: return std::uint16_t(operand + 2);
    case SizeCode::A: return std::uint16_t(operand * 2);
    case SizeCode::S: return operand == 8 ? 10 : 6;
    case SizeCode::T: return 10;
    case SizeCode::Env: return operand == 2 ? 14 : 28;
    case SizeCode::Fsave: return operand == 2 ? 94 : 108;
    case SizeCode::Fx: return 512;
    case SizeCode::Var: return kVariableSize;
    default: return kFixed[unsigned(code)];
    }
}

using SizeColumn = std::array<std::uint16_t, std::size_t(SizeCode::Count)>;

/// By 2 * log2(operand size) + VEX.L, then SizeCode.
inline constexpr auto kSizes = [] {
    std::array<SizeColumn, 8> table{};
    for (unsigned column = 0; column < 8; ++column)
        for (unsigned code = 0; code < unsigned(SizeCode::Count); ++code)
            table[column][code] =
                size_of(SizeCode(code), 1u << (column >> 1), (column & 1) != 0 ? 32 : 16);
    return table;
}();

/// Bytes of a simple immediate by code and log2(operand size); 0 for those of a shape of their own.
inline constexpr std::array<std::array<std::uint8_t, 4>, std::size_t(ImmediateCode::Count)>
    kImmediateSizes{{
        {0, 0, 0, 0}, // None
        {1, 1, 1, 1}, // Unsigned8
        {1, 1, 1, 1}, // Signed8
        {2, 2, 2, 2}, // Unsigned16
        {1, 2, 4, 4}, // SignedZ
        {1, 2, 4, 8}, // V
        {1, 1, 1, 1}, // Is4
    }};

/// Bit n: ImmediateCode n is sign-extended.
inline constexpr unsigned kImmediateSigned =
    1u << unsigned(ImmediateCode::Signed8) | 1u << unsigned(ImmediateCode::SignedZ);

} // namespace doppel::cpu::x86::decoder
