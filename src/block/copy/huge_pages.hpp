// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Writing a file that lives in memory (tmpfs) by huge pages. There the kernel's work for each page
/// of 4 KiB costs more than the bytes, and writers of one file take turns. A huge page is made in
/// one go, the source is read straight into it, and nothing of the file is locked meanwhile.
/// Any thread; blocks.
#include <span>

#include "block/copy/move.hpp"
#include "block/copy/window.hpp"

namespace doppel::block {

/// Whether it is worth a try.
bool lives_in_memory(int fd);

/// Writes [begin, end) of the target, both boundaries of huge pages, replacing whatever is there.
/// The moves cover it without a gap. False: all of it must be written in another way, as the kernel
/// has no such pages for us, the file no more room, or the source cannot be read. The memory is
/// touched by the kernel alone: whatever happens to the file, no signal comes.
bool move_by_huge_pages(std::span<const Move> moves, std::uint64_t begin, std::uint64_t end);

} // namespace doppel::block
