// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/all_or_nothing.hpp"
#include "block/vdi/vdi_node.hpp"

namespace doppel::block::vdi {

namespace {
constexpr std::uint64_t kChunkEntries = 256u << 10; // of a table that is written anew
}

/// What the table has behind the disk's end, and then the places of it.
Task<void> VdiNode::shrink(std::uint64_t old_blocks) {
    for (auto index = std::uint64_t{header_.blocks}; index < old_blocks; ++index)
        DOPPEL_AWAIT_VOID(set_entry(index, kFree));
    DOPPEL_AWAIT_VOID(commit());
    CheckResult result;
    DOPPEL_AWAIT(owners, find_owners(result));
    DOPPEL_AWAIT_VOID(compact(std::move(owners)));
    co_return {};
}

/// A table of `blocks` entries, those from header_.blocks on free.
Task<void> VdiNode::make_room(std::uint64_t blocks) {
    const auto room = header_.data_offset - header_.table_offset;
    const auto needed = base::align_up(blocks * 4, kHeaderBytes);
    if (needed > room) {
        DOPPEL_AWAIT_VOID(move_table((needed + header_.stride() - 1) / header_.stride(), blocks));
        co_return {};
    }
    const std::vector<std::byte> free(kChunkEntries * 4, std::byte{0xff});
    for (std::uint64_t at = header_.blocks; at < blocks; at += kChunkEntries) {
        const auto count = std::min(blocks - at, kChunkEntries);
        const auto from = IoBuffer::of(std::span{free}.first(count * 4));
        DOPPEL_AWAIT_VOID(file_->write(header_.table_offset + at * 4, from, Durability::Cached));
    }
    table_.clear();
    DOPPEL_AWAIT_VOID(file_->flush());
    co_return {};
}

/// The new table takes the place of the first `count` blocks of the file, which move to its end.
/// One write of the header then makes it the table; until then the old one is complete.
Task<void> VdiNode::move_table(std::uint64_t count, std::uint64_t blocks) {
    const auto new_data = header_.data_offset + count * header_.stride();
    if (new_data >> 32 != 0)
        co_return base::fail(Errc::InvalidArgument, "the block table would pass 4 GiB");
    CheckResult result;
    DOPPEL_AWAIT(owners, find_owners(result));
    AllOrNothing operation{broken_};
    next_ = std::max(next_, count);
    for (std::uint64_t block = 0; block < std::min<std::uint64_t>(count, owners.size()); ++block) {
        if (owners[block] == kFree)
            continue;
        DOPPEL_AWAIT_VOID(copy_block(block, next_));
        DOPPEL_AWAIT_VOID(set_entry(owners[block], static_cast<std::uint32_t>(next_)));
        ++next_;
    }
    file_end_ = std::max(file_end_, header_.data_offset + next_ * header_.stride());
    header_dirty_ = true;
    DOPPEL_AWAIT_VOID(commit());
    std::vector<std::byte> bytes(kChunkEntries * 4);
    for (std::uint64_t first = 0; first < blocks; first += kChunkEntries) {
        const auto entries = std::min(blocks - first, kChunkEntries);
        for (std::uint64_t i = 0; i < entries; ++i) {
            std::uint32_t value = kFree;
            if (first + i < header_.blocks) {
                DOPPEL_AWAIT(old, entry(first + i));
                value =
                    old == kFree || old == kZero ? old : old - static_cast<std::uint32_t>(count);
            }
            base::store_le(bytes.data() + i * 4, value);
        }
        const auto from = IoBuffer::of(std::span{bytes}.first(entries * 4));
        DOPPEL_AWAIT_VOID(file_->write(header_.data_offset + first * 4, from, Durability::Cached));
    }
    DOPPEL_AWAIT_VOID(file_->flush());
    header_.table_offset = header_.data_offset;
    header_.data_offset = new_data;
    next_ -= count;
    header_.allocated = static_cast<std::uint32_t>(next_);
    table_.clear();
    DOPPEL_AWAIT_VOID(write_header());
    DOPPEL_AWAIT_VOID(file_->flush());
    DOPPEL_AWAIT_VOID(find_free());
    operation.done();
    co_return {};
}

/// What the last block holds behind the disk's end must read as zeroes once it belongs to it.
Task<void> VdiNode::zero_tail(std::uint64_t begin, std::uint64_t end) {
    if (begin >= end)
        co_return {};
    DOPPEL_AWAIT(run, find(begin / header_.block_bytes, 1));
    if (run.kind == ClusterKind::Data)
        DOPPEL_AWAIT_VOID(file_->write_zeroes(run.host + within(begin), end - begin, Unmap::Keep,
                                              Durability::Cached));
    co_return {};
}

/// Room in the table. A longer parent must not show through where the disk is new, at no time: the
/// zeroes are there before the header has the size.
Task<void> VdiNode::grow(std::uint64_t size_bytes) {
    {
        DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
        DOPPEL_AWAIT_VOID(commit()); // from here on the table on disk is the one in memory
        DOPPEL_AWAIT_VOID(zero_tail(size_bytes_, align_up(size_bytes_)));
        DOPPEL_AWAIT_VOID(make_room(align_up(size_bytes) / header_.block_bytes));
    }
    DOPPEL_AWAIT_VOID(hide_parent(size_bytes));
    co_return {};
}

/// The table, which has the entries, is right. The metadata lock is held.
Task<void> VdiNode::set_size(std::uint64_t size_bytes) {
    AllOrNothing operation{broken_};
    const auto old_blocks = header_.blocks;
    header_.size_bytes = size_bytes;
    header_.blocks = static_cast<std::uint32_t>(align_up(size_bytes) / header_.block_bytes);
    DOPPEL_AWAIT_VOID(write_header());
    DOPPEL_AWAIT_VOID(file_->flush());
    size_bytes_ = size_bytes;
    if (header_.blocks < old_blocks)
        DOPPEL_AWAIT_VOID(shrink(old_blocks));
    operation.done();
    co_return {};
}

Task<void> VdiNode::resize(std::uint64_t size_bytes) {
    const auto old_size = size();
    if (size_bytes % 512 != 0 || size_bytes > kMaxBlocks * header_.block_bytes)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the size {} is not a multiple of 512 bytes up to {}",
                                         size_bytes, kMaxBlocks * header_.block_bytes));
    DOPPEL_AWAIT_VOID(before_writing());
    if (size_bytes > old_size)
        DOPPEL_AWAIT_VOID(grow(size_bytes));
    {
        DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
        DOPPEL_AWAIT_VOID(commit());
        if (size_bytes < old_size)
            DOPPEL_AWAIT_VOID(zero_tail(size_bytes, align_up(size_bytes)));
        DOPPEL_AWAIT_VOID(set_size(size_bytes));
    }
    if (size_bytes > old_size && header_.type == Type::Fixed) {
        DOPPEL_AWAIT(places, place(old_size, size_bytes - old_size));
        DOPPEL_AWAIT_VOID(flush());
    }
    co_return {};
}

} // namespace doppel::block::vdi
