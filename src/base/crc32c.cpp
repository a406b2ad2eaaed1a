// SPDX-License-Identifier: Apache-2.0
#include "base/crc32c.hpp"

#include <array>

namespace doppel::base {

namespace {

constexpr std::uint32_t kPolynomial = 0x82f6'3b78; // 1EDC6F41h, bits reversed

constexpr std::array<std::uint32_t, 256> kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t byte = 0; byte < table.size(); ++byte) {
        auto value = byte;
        for (int bit = 0; bit < 8; ++bit)
            value = value >> 1 ^ ((value & 1) != 0 ? kPolynomial : 0);
        table[byte] = value;
    }
    return table;
}();

} // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t so_far) noexcept {
    auto crc = ~so_far;
    for (const auto byte : bytes)
        crc = crc >> 8 ^ kTable[(crc ^ static_cast<std::uint32_t>(byte)) & 0xff];
    return ~crc;
}

} // namespace doppel::base
