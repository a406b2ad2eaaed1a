// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Giving a file that lives in memory (tmpfs) pages it has not got, filled as they are made
/// (userfaultfd(2), UFFDIO_COPY). A write to the file costs more, and writers of one file take
/// turns; pages are made by as many threads as there are. Any thread; blocks.
#include <cstdint>
#include <optional>
#include <span>

#include "base/unique_fd.hpp"
#include "block/aligned_memory.hpp"
#include "block/copy/move.hpp"
#include "block/copy/window.hpp"

namespace doppel::block {

class FreshPages {
public:
    static bool worth(std::span<const Move> moves);

    /// For these moves, of one pair of files, ascending in the target. Of the target only pages
    /// before its end can be made; while this lives, no huge ones.
    explicit FreshPages(std::span<const Move> moves);

    /// Makes the first whole pages of a part of the moves, and says which. None: nothing of the
    /// part can be made. Whatever happens to the files, no signal comes.
    Move fill(const Move& part);

    /// The kernel makes no pages for us here, or the file has more than a few of them already.
    bool refused() const { return refused_; }

private:
    bool make(const Move& pages);

    std::optional<Window> target_;
    AlignedMemory bytes_; // on their way
    base::UniqueFd kernel_;
    std::size_t existing_ = 0; // pages that were there
    bool refused_ = false;
};

} // namespace doppel::block
