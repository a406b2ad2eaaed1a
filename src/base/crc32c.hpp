// SPDX-License-Identifier: Apache-2.0
#pragma once
/// CRC-32C (Castagnoli), as in RFC 3720 §12.1: finds accidents, not attackers. Any thread.
#include <cstddef>
#include <cstdint>
#include <span>

namespace doppel::base {

/// Of `bytes`, or of a longer range in pieces: `so_far` is the result for the pieces before.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t so_far = 0) noexcept;

} // namespace doppel::base
