// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "block/aligned_memory.hpp"
#include "block/all_or_nothing.hpp"
#include "block/clustered/clustered_node.hpp"

namespace doppel::block {

namespace {
constexpr std::uint64_t kZeroBytes = 1u << 20; // written at once where no table can say "zero"
}

Task<void> ClusteredNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                       Durability durability) {
    DOPPEL_AWAIT_VOID(before_writing());
    for (std::uint64_t done = 0; done < length;) {
        DOPPEL_AWAIT(part, zero_some(offset + done, length - done, unmap));
        done += part;
    }
    if (durability == Durability::Durable)
        DOPPEL_AWAIT_VOID(flush());
    co_return {};
}

Task<std::uint64_t> ClusteredNode::zero_some(std::uint64_t offset, std::uint64_t length,
                                             Unmap unmap) {
    {
        auto wait =
            guests_.lock(align_down(offset), align_up(offset + length), RangeLock::Mode::Exclusive);
        auto guard = co_await wait;
        DOPPEL_CO_TRY_VOID(require_whole());
        DOPPEL_AWAIT(run, find_run(offset, length));
        if (shows_zeroes(run, offset))
            co_return run.length;
        if (run.clusters.kind == ClusterKind::Data) {
            DOPPEL_AWAIT_VOID(file_->write_zeroes(run.clusters.host + within(offset), run.length,
                                                  unmap, Durability::Cached));
            co_return run.length;
        }
        if (run.clusters.kind == ClusterKind::Absent && has_zero_state()) {
            DOPPEL_AWAIT(zeroed, zero_absent(offset, run.length));
            if (zeroed > 0)
                co_return zeroed;
        }
    }
    const auto to_end = align_down(offset) + cluster_bytes_ - offset;
    AlignedMemory zeroes{std::min({length, to_end, kZeroBytes})};
    DOPPEL_AWAIT(written, write_some(offset, IoBuffer{zeroes.span()}));
    co_return written;
}

/// Enters whole clusters as Zero; yields how much of the range that were, from its beginning.
Task<std::uint64_t> ClusteredNode::zero_absent(std::uint64_t offset, std::uint64_t length) {
    const auto end = offset + length;
    const auto last = end == size_bytes_ ? align_up(end) : align_down(end);
    if (within(offset) != 0 || last <= offset)
        co_return 0;
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(
        link(offset / cluster_bytes_, {ClusterKind::Zero, 0, (last - offset) / cluster_bytes_}));
    co_return std::min(last, end) - offset;
}

Task<void> ClusteredNode::hide_parent(std::uint64_t new_size) {
    if (!backing_ || backing_->size() <= size_bytes_)
        co_return {};
    const auto old_size = std::exchange(size_bytes_, new_size);
    auto zeroing = write_zeroes(old_size, new_size - old_size, Unmap::Allow, Durability::Durable);
    auto zeroed = co_await zeroing;
    size_bytes_ = old_size;
    co_return zeroed;
}

/// What has a place keeps it; its bytes go back to the host's file system.
Task<void> ClusteredNode::discard(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT_VOID(before_writing());
    auto wait =
        guests_.lock(align_down(offset), align_up(offset + length), RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    for (auto at = offset; at < offset + length;) {
        DOPPEL_AWAIT(run, find_run(at, offset + length - at));
        if (run.clusters.kind == ClusterKind::Data)
            DOPPEL_AWAIT_VOID(file_->discard(run.clusters.host + within(at), run.length));
        at += run.length;
    }
    co_return {};
}

Task<void> ClusteredNode::make_empty() {
    DOPPEL_AWAIT_VOID(before_writing());
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    AllOrNothing operation{broken_};
    for (std::uint64_t index = 0; index < clusters();) {
        DOPPEL_AWAIT(run, find(index, clusters() - index));
        if (run.kind != ClusterKind::Absent)
            DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Absent, 0, run.count}));
        index += run.count;
    }
    DOPPEL_AWAIT_VOID(commit());
    DOPPEL_AWAIT_VOID(release_all());
    DOPPEL_AWAIT_VOID(commit());
    operation.done();
    co_return {};
}

} // namespace doppel::block
