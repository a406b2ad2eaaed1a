// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Data from one file to another without looking at it: by sharing extents, else by huge or fresh
/// pages of a file in memory, else moved inside the kernel, else through memory of ours. Any
/// thread; blocks.
#include <span>

#include "base/result.hpp"
#include "block/copy/move.hpp"

namespace doppel::block {

/// What a pair of files has not refused so far; what it cannot do it never can. Huge pages are also
/// given up when they cost more than they save: a virtual machine that has lent its free memory to
/// the host pays dearly for each that it gets back.
struct Ways {
    bool share = true;
    bool huge_pages = true;
    bool fresh_pages = true;
    bool in_kernel = true;
    double plain_cost = 0; // seconds of CPU time per byte without huge pages; 0: not yet known

    bool unseen() const { return share || in_memory() || in_kernel; }
    /// By which the threads do not take turns.
    bool in_memory() const { return huge_pages || fresh_pages; }
};

/// `ways` loses what does not work. The moves are of one pair of files, ascending in the target.
/// Past the end of the source lie zeroes. Errors: the host's, when all that is left is reading or
/// writing through memory, and that fails.
base::Result<void> move_data(std::span<const Move> moves, Ways& ways);

/// Fills `into`; past the end of the file lie zeroes.
base::Result<void> read_all(int fd, std::span<std::byte> into, std::uint64_t offset);
base::Result<void> write_all(int fd, std::span<const std::byte> from, std::uint64_t offset);

} // namespace doppel::block
