// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

namespace doppel::block {

/// Bytes of one file that are to be those of another.
struct Move {
    int from = -1; // descriptors
    int to = -1;
    std::uint64_t from_offset = 0;
    std::uint64_t to_offset = 0;
    std::uint64_t length = 0;

    std::uint64_t to_end() const { return to_offset + length; }
    /// What of it falls into a range of the target.
    Move within(std::uint64_t begin, std::uint64_t end) const {
        const auto first = std::clamp(begin, to_offset, to_end());
        const auto last = std::clamp(end, first, to_end());
        return {from, to, from_offset + (first - to_offset), first, last - first};
    }
};

} // namespace doppel::block
