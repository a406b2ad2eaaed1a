// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The checksum of IP, TCP and UDP (RFC 1071).
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bytes.hpp"

namespace doppel::net {

/// The ones' complement sum of the bytes as 16-bit words in network order, folded.
inline std::uint16_t internet_sum(std::span<const std::byte> bytes) {
    std::uint64_t sum = 0; // of words in our own order: the sum is the same, with bytes swapped
    while (bytes.size() >= 4) {
        sum += base::load_le<std::uint32_t>(bytes.data());
        bytes = bytes.subspan(4);
    }
    for (std::size_t i = 0; i < bytes.size(); ++i)
        sum += std::to_integer<std::uint64_t>(bytes[i]) << i % 2 * 8;
    while (sum >> 16 != 0)
        sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<std::uint16_t>(sum << 8 | sum >> 8);
}

/// The sum, inverted: what stands in a header.
inline std::uint16_t internet_checksum(std::span<const std::byte> bytes) {
    return static_cast<std::uint16_t>(~internet_sum(bytes));
}

} // namespace doppel::net
