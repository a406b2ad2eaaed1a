// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"
#include "block/all_or_nothing.hpp"
#include "block/vhdx/vhdx_node.hpp"

namespace doppel::block::vhdx {

/// A block allocation table of so many entries. One that does not fit gets a new region; the two
/// copies of the region table name it one after the other, and both regions say the same.
Task<void> VhdxNode::make_room(std::uint64_t entries) {
    auto regions = heads_.regions;
    const auto needed = base::align_up(entries * 8, kMib);
    if (needed <= regions.table.bytes)
        co_return {};
    if (needed >> 32 != 0)
        co_return base::fail(Errc::InvalidArgument, "the block allocation table would pass 4 GiB");
    AllOrNothing operation{broken_};
    bool fresh = true;
    regions.table = {take_units(needed / kMib, fresh), needed};
    const auto old = heads_.regions.table;
    AlignedMemory bytes{kMib};
    for (std::uint64_t at = 0; at < needed; at += kMib) {
        std::ranges::fill(bytes.span(), std::byte{0});
        if (at < old.bytes)
            DOPPEL_AWAIT_VOID(file_->read(old.offset + at, IoBuffer{bytes.span()}));
        DOPPEL_AWAIT_VOID(
            file_->write(regions.table.offset + at, IoBuffer{bytes.span()}, Durability::Cached));
    }
    DOPPEL_AWAIT_VOID(file_->flush());
    const auto table = serialize_regions(regions);
    for (const auto offset : kRegionOffset)
        DOPPEL_AWAIT_VOID(file_->write(offset, IoBuffer::of(table), Durability::Durable));
    heads_.regions = regions;
    table_.forget(old.offset, old.bytes);
    space_.release(old.offset / kMib, old.bytes / kMib);
    if (fresh_from_ != ~std::uint64_t{0})
        fresh_from_ = std::max(fresh_from_, regions.table.offset / kMib + needed / kMib);
    operation.done();
    co_return {};
}

/// The parent must not show through where the blocks were, before the size is smaller or once it is
/// larger again.
Task<void> VhdxNode::shrink(std::uint64_t blocks) {
    const auto last = clusters();
    const auto gone = items_.has_parent ? entry_of(State::Zero, 0) : 0;
    for (auto index = blocks; index < last; ++index)
        DOPPEL_AWAIT_VOID(set_entry(geometry_.entry(index), gone));
    for (auto number = geometry_.bitmap_entry(blocks); number < geometry_.entries(size_bytes_);
         number += geometry_.ratio + 1)
        if (blocks % geometry_.ratio == 0 || number > geometry_.bitmap_entry(blocks))
            DOPPEL_AWAIT_VOID(set_entry(number, 0));
    co_return {};
}

/// What the last block holds behind the disk's end must read as zeroes once it belongs to it.
Task<void> VhdxNode::zero_tail(std::uint64_t begin, std::uint64_t end) {
    if (begin >= end)
        co_return {};
    const auto index = begin / geometry_.block_bytes;
    DOPPEL_AWAIT(run, find(index, 1));
    if (run.kind == ClusterKind::Data || run.kind == ClusterKind::Partial)
        DOPPEL_AWAIT_VOID(file_->write_zeroes(run.host + within(begin), end - begin, Unmap::Keep,
                                              Durability::Cached));
    if (run.kind == ClusterKind::Partial)
        DOPPEL_AWAIT_VOID(mark_sectors(index, run.host, within(begin) / sector_bytes_,
                                       (end - begin) / sector_bytes_));
    co_return {};
}

/// Room in the table. A longer parent must not show through where the disk is new, at no time: the
/// zeroes are there before the size is.
Task<void> VhdxNode::grow(std::uint64_t size_bytes) {
    {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(zero_tail(size_bytes_, align_up(size_bytes_)));
        DOPPEL_AWAIT_VOID(commit());
        DOPPEL_AWAIT_VOID(make_room(geometry_.entries(size_bytes)));
    }
    DOPPEL_AWAIT_VOID(hide_parent(size_bytes));
    co_return {};
}

/// Changes by way of the log, as all metadata. The metadata lock is held.
Task<void> VhdxNode::set_size(std::uint64_t size_bytes) {
    const auto at = heads_.regions.metadata.offset + items_.size_at;
    const auto page = base::align_down(at, kLogPage);
    DOPPEL_AWAIT(bytes, table_.load(page));
    base::store_le(bytes + (at - page), size_bytes);
    table_.mark_dirty(page);
    items_.size_bytes = size_bytes_ = size_bytes;
    DOPPEL_AWAIT_VOID(commit());
    co_return {};
}

Task<void> VhdxNode::resize(std::uint64_t size_bytes) {
    const auto old_size = size();
    if (size_bytes % sector_bytes_ != 0 || size_bytes > kMaxDiskBytes)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the size {} is not a multiple of {} bytes up to 64 TiB",
                                         size_bytes, sector_bytes_));
    DOPPEL_AWAIT_VOID(before_writing());
    if (size_bytes > old_size)
        DOPPEL_AWAIT_VOID(grow(size_bytes));
    {
        DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
        if (size_bytes < old_size)
            DOPPEL_AWAIT_VOID(zero_tail(size_bytes, align_up(size_bytes)));
        AllOrNothing operation{broken_};
        if (size_bytes < old_size) {
            DOPPEL_AWAIT_VOID(shrink(geometry_.blocks(size_bytes)));
            DOPPEL_AWAIT_VOID(commit());
        }
        DOPPEL_AWAIT_VOID(set_size(size_bytes));
        if (size_bytes < old_size)
            DOPPEL_AWAIT_VOID(release_all());
        operation.done();
    }
    if (size_bytes > old_size && items_.leave_allocated) {
        DOPPEL_AWAIT(places, place(old_size, size_bytes - old_size));
        DOPPEL_AWAIT_VOID(flush());
    }
    co_return {};
}

} // namespace doppel::block::vhdx
