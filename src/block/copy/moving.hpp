// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Data from one file to another without looking at it: by sharing extents, else moved inside the
/// kernel, else through memory. Any thread; blocks.
#include <cstdint>
#include <span>

#include "base/result.hpp"

namespace doppel::block {

/// In the order in which they are tried; what a pair of files cannot do it never can.
enum class Moving : std::uint8_t { Share, InKernel, Copy };

struct Move {
    int from = -1; // descriptors
    int to = -1;
    std::uint64_t from_offset = 0;
    std::uint64_t to_offset = 0;
    std::uint64_t length = 0;
};

/// `how` falls to what the files can do. Past the end of `from` lie zeroes. Errors: the host's,
/// when reading or writing through memory fails.
base::Result<void> move_data(const Move& move, Moving& how);

/// Fills `into`; past the end of the file lie zeroes.
base::Result<void> read_all(int fd, std::span<std::byte> into, std::uint64_t offset);
base::Result<void> write_all(int fd, std::span<const std::byte> from, std::uint64_t offset);

} // namespace doppel::block
