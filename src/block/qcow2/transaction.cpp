// SPDX-License-Identifier: Apache-2.0
/// How metadata reaches the file: the order is the promise of qcow2_node.hpp. The metadata lock is
/// held in all but flush() and close().
#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/all_or_nothing.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {
constexpr std::uint64_t kEntriesPerSector = 64;
constexpr std::size_t kMaxFreed = 65536; // ranges that wait for a flush
} // namespace

bool Qcow2Node::metadata_dirty() const {
    return l2_.dirty() || !dirty_l1_.empty() || !freed_.empty() || refcounts_.table_dirty() ||
           const_cast<Refcounts&>(refcounts_).blocks().dirty();
}

Result<void> Qcow2Node::require_writable() const {
    if (corrupt_)
        return base::fail(Errc::Corrupt, fmt::format("'{}' is corrupt: not written", name()));
    return require_whole();
}

Task<void> Qcow2Node::commit() {
    DOPPEL_CO_TRY_VOID(require_writable());
    DOPPEL_AWAIT_VOID(release_packing());
    const bool tables = l2_.dirty() || !dirty_l1_.empty();
    // With lazy refcounts the dirty bit stands for them until close().
    if (!dirty_marked_ || refcounts_.blocks().pressed()) {
        DOPPEL_AWAIT_VOID(refcounts_.blocks().write_dirty());
        if (refcounts_.table_dirty()) {
            DOPPEL_AWAIT_VOID(file_->flush());
            DOPPEL_AWAIT_VOID(refcounts_.write_table());
            barrier_ = true;
        }
    }
    if (data_file_)
        DOPPEL_AWAIT_VOID(data_file_->flush());
    if (tables && barrier_)
        DOPPEL_AWAIT_VOID(file_->flush());
    barrier_ = false;
    DOPPEL_AWAIT_VOID(l2_.write_dirty());
    if (!dirty_l1_.empty()) {
        DOPPEL_AWAIT_VOID(file_->flush());
        DOPPEL_AWAIT_VOID(write_l1());
    }
    DOPPEL_AWAIT_VOID(file_->flush());
    DOPPEL_AWAIT_VOID(release_freed());
    co_return {};
}

/// Until nothing is left in memory: lazy refcounts and what was freed, too.
Task<void> Qcow2Node::commit_all() {
    while (metadata_dirty()) {
        if (dirty_marked_) {
            DOPPEL_AWAIT_VOID(refcounts_.blocks().write_dirty());
            DOPPEL_AWAIT_VOID(file_->flush());
            DOPPEL_AWAIT_VOID(refcounts_.write_table());
        }
        DOPPEL_AWAIT_VOID(commit());
    }
    co_return {};
}

Task<void> Qcow2Node::commit_if_pressed() {
    if (l2_.pressed() || refcounts_.blocks().pressed() || freed_.size() > kMaxFreed)
        DOPPEL_AWAIT_VOID(commit());
    co_return {};
}

/// Whole sectors, so that no torn write mixes two entries.
Task<void> Qcow2Node::write_l1() {
    while (!dirty_l1_.empty()) {
        const auto first = *dirty_l1_.begin() / kEntriesPerSector * kEntriesPerSector;
        std::array<std::byte, kEntriesPerSector * 8> sector{};
        std::size_t count = 0;
        for (; count < kEntriesPerSector && first + count < l1_.size(); ++count)
            base::store_be(sector.data() + count * 8, l1_[first + count]);
        const auto from = IoBuffer::of(std::span{sector}.first(count * 8));
        DOPPEL_AWAIT_VOID(file_->write(header_.l1_offset + first * 8, from, Durability::Cached));
        dirty_l1_.erase(dirty_l1_.begin(), dirty_l1_.lower_bound(first + kEntriesPerSector));
    }
    co_return {};
}

/// No durable table points to these any more: their refcounts may fall, they may be used again.
Task<void> Qcow2Node::release_freed() {
    const auto freed = std::exchange(freed_, {});
    for (const auto& range : freed) {
        const auto offset = range.first << geometry_.cluster_bits;
        const auto bytes = range.count << geometry_.cluster_bits;
        if (l2_.overlaps(offset, bytes))
            l2_.forget(offset, bytes);
        DOPPEL_AWAIT_VOID(refcounts_.add(range.first, range.count, -1));
        for (std::uint64_t i = 0; range.discard && i < range.count;) {
            std::uint64_t run = 0;
            while (i + run < range.count) {
                DOPPEL_AWAIT(references, refcounts_.get(range.first + i + run));
                if (references != 0)
                    break;
                ++run;
            }
            if (run > 0)
                DOPPEL_AWAIT_VOID(file_->discard(offset + (i << geometry_.cluster_bits),
                                                 run << geometry_.cluster_bits));
            i += run + 1;
        }
    }
    co_return {};
}

Task<void> Qcow2Node::flush() {
    if (read_only())
        co_return {};
    if (metadata_dirty()) {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(commit());
        co_return {};
    }
    if (data_file_)
        DOPPEL_AWAIT_VOID(data_file_->flush());
    DOPPEL_AWAIT_VOID(file_->flush());
    co_return {};
}

Task<void> Qcow2Node::set_incompatible(std::uint64_t bits) {
    header_.incompatible = bits;
    std::array<std::byte, 8> field{};
    base::store_be(field.data(), bits);
    const auto from = IoBuffer::of(field);
    DOPPEL_AWAIT_VOID(file_->write(kOffsetOfIncompatible, from, Durability::Durable));
    co_return {};
}

/// Lazy refcounts: they will be stale on disk, and the dirty bit says so beforehand.
Task<void> Qcow2Node::before_allocation() {
    if ((header_.compatible & compatible::kLazyRefcounts) == 0 || dirty_marked_)
        co_return {};
    DOPPEL_AWAIT_VOID(set_incompatible(header_.incompatible | incompatible::kDirty));
    dirty_marked_ = true;
    co_return {};
}

Task<void> Qcow2Node::mark_corrupt() {
    corrupt_ = true;
    if (!read_only() && header_.version >= 3)
        DOPPEL_AWAIT_VOID(set_incompatible(header_.incompatible | incompatible::kCorrupt));
    co_return {};
}

/// Cluster 0 anew. What the header names must be durable.
Task<void> Qcow2Node::write_header() {
    header_.reftable_offset = refcounts_.table_offset();
    header_.reftable_clusters = static_cast<std::uint32_t>(refcounts_.table_clusters());
    DOPPEL_CO_TRY(bytes, serialize_header(header_));
    AllOrNothing operation{broken_};
    const auto from = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(file_->write(0, from, Durability::Durable));
    operation.done();
    co_return {};
}

Task<void> Qcow2Node::close() {
    if (!read_only() && !corrupt_ && !broken_ && !options_.repair_later) {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(bitmaps_.store(*this));
        DOPPEL_AWAIT_VOID(commit_all()); // the refcounts too, before the dirty bit falls
        if (dirty_marked_ || header_.has(incompatible::kDirty))
            DOPPEL_AWAIT_VOID(set_incompatible(header_.incompatible & ~incompatible::kDirty));
        dirty_marked_ = false;
        // A compressed cluster is told of in sectors: some readers want the last one to be whole.
        const auto size = file_->size();
        if (const auto end = base::align_up(size, 512); packed_used_ != 0 && size != end)
            DOPPEL_AWAIT_VOID(
                file_->write_zeroes(size, end - size, Unmap::Keep, Durability::Cached));
    }
    if (data_file_)
        DOPPEL_AWAIT_VOID(data_file_->close());
    if (backing_)
        DOPPEL_AWAIT_VOID(backing_->close());
    DOPPEL_AWAIT_VOID(file_->close());
    co_return {};
}

} // namespace doppel::block::qcow2
