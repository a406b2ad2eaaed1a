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

/// Entry::operand_sizes.
constexpr std::array<std::uint8_t, 3> operand_sizes(SizeRule rule) {
    std::array<std::uint8_t, 3> sizes{};
    for (unsigned mode = 0; mode < 3; ++mode)
        for (unsigned bits = 0; bits < 4; ++bits)
            sizes[mode] |= std::uint8_t(
                operand_size_log2(rule, CodeSize(mode), (bits & 2) != 0, (bits & 1) != 0)
                << bits * 2);
    return sizes;
}

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

/// What a SizeCode means for one operand size and vector length.
struct alignas(128) SizeColumn {
    std::array<std::uint16_t, std::size_t(SizeCode::Count)> memory;
    std::array<std::uint8_t, std::size_t(SizeCode::Count)> operand; // 0 if it does not fit
};

/// By 2 * log2(operand size) + VEX.L.
inline constexpr auto kSizes = [] {
    std::array<SizeColumn, 8> table{};
    for (unsigned column = 0; column < 8; ++column)
        for (unsigned code = 0; code < unsigned(SizeCode::Count); ++code) {
            const auto size =
                size_of(SizeCode(code), 1u << (column >> 1), (column & 1) != 0 ? 32 : 16);
            table[column].memory[code] = size;
            table[column].operand[code] = size < 256 ? std::uint8_t(size) : std::uint8_t(0);
        }
    return table;
}();

/// A value of so many bytes is ((load & mask) ^ sign) - sign.
struct alignas(32) ValueShape {
    std::uint64_t mask;
    std::uint64_t sign; // the highest bit if it is signed
    std::uint64_t size;
};

constexpr ValueShape value_shape(unsigned size, bool is_signed) {
    const std::uint64_t mask = size == 8 ? ~0ull : (1ull << size * 8) - 1;
    return {mask, is_signed && size != 0 ? mask ^ mask >> 1 : 0, size};
}

/// By ImmediateCode * 4 + log2(operand size); nothing for those of a shape of their own.
inline constexpr auto kImmediates = [] {
    constexpr std::uint8_t kSizesOf[][4] = {
        {0, 0, 0, 0}, // None
        {1, 1, 1, 1}, // Unsigned8
        {1, 1, 1, 1}, // Signed8
        {2, 2, 2, 2}, // Unsigned16
        {1, 2, 4, 4}, // SignedZ
        {1, 2, 4, 8}, // V
        {1, 1, 1, 1}, // Is4
    };
    std::array<ValueShape, std::size_t(ImmediateCode::Count) * 4> table{};
    for (unsigned code = 0; code < std::size(kSizesOf); ++code)
        for (unsigned log2 = 0; log2 < 4; ++log2)
            table[code * 4 + log2] = value_shape(kSizesOf[code][log2],
                                                 ImmediateCode(code) == ImmediateCode::Signed8 ||
                                                     ImmediateCode(code) == ImmediateCode::SignedZ);
    return table;
}();

inline constexpr std::array<ValueShape, 5> kDisplacements{
    value_shape(0, true), value_shape(1, true), value_shape(2, true), value_shape(3, true),
    value_shape(4, true)};

} // namespace doppel::cpu::x86::decoder
