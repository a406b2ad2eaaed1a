// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <utility>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/all_or_nothing.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

/// A new L1 table takes effect by one write within one sector of the header, together with the
/// disk's size. The old one is freed afterwards.
Task<void> Qcow2Node::replace_l1(std::vector<std::uint64_t> table) {
    const auto bytes_needed = std::max<std::uint64_t>(table.size() * 8, 1);
    if (bytes_needed > kMaxL1Bytes)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the L1 table would have {} bytes, allowed are {}",
                                         bytes_needed, kMaxL1Bytes),
                             "Use larger clusters.");
    DOPPEL_AWAIT(offset, allocate_metadata(bytes_needed));
    DOPPEL_AWAIT_VOID(commit()); // what the table names is durable
    std::vector<std::byte> bytes(geometry_.clusters_for(bytes_needed) << geometry_.cluster_bits);
    for (std::size_t i = 0; i < table.size(); ++i)
        base::store_be(bytes.data() + i * 8, table[i]);
    const auto from = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(file_->write(offset, from, Durability::Durable));
    std::array<std::byte, 24> fields{}; // size, crypt method, L1 entries, L1 offset
    base::store_be(fields.data(), header_.size_bytes);
    base::store_be(fields.data() + 8, header_.crypt_method);
    base::store_be(fields.data() + 12, static_cast<std::uint32_t>(table.size()));
    base::store_be(fields.data() + 16, offset);
    const auto header = IoBuffer::of(fields);
    AllOrNothing operation{broken_};
    DOPPEL_AWAIT_VOID(file_->write(kOffsetOfSize, header, Durability::Durable));
    free_later(header_.l1_offset >> geometry_.cluster_bits,
               geometry_.clusters_for(std::uint64_t{header_.l1_entries} * 8), false);
    header_.l1_offset = offset;
    header_.l1_entries = static_cast<std::uint32_t>(table.size());
    l1_ = std::move(table);
    dirty_l1_.clear();
    operation.done();
    co_return {};
}

Task<void> Qcow2Node::grow_l1(std::uint64_t entries) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    auto table = l1_;
    table.resize(entries);
    DOPPEL_AWAIT_VOID(replace_l1(std::move(table)));
    co_return {};
}

/// The tables for a larger disk. A longer backing file must not show through where the disk is new,
/// at no time: the zeroes are there before the header has the size.
Task<void> Qcow2Node::grow(std::uint64_t size_bytes) {
    const auto entries = geometry_.l1_entries_for(size_bytes);
    if (entries > l1_.size())
        DOPPEL_AWAIT_VOID(grow_l1(entries));
    if (!backing_ || backing_->size() <= size())
        co_return {};
    const auto old_size = std::exchange(header_.size_bytes, size_bytes);
    auto zeroing = write_zeroes(old_size, size_bytes - old_size, Unmap::Allow, Durability::Durable);
    auto zeroed = co_await zeroing;
    header_.size_bytes = old_size;
    co_return zeroed;
}

/// Frees what lies past the new end. The size in the header is already smaller.
Task<void> Qcow2Node::shrink(std::uint64_t size_bytes) {
    const auto first_table = geometry_.l1_entries_for(size_bytes);
    const auto begin = base::align_up(size_bytes, geometry_.cluster());
    const auto end = std::min(first_table * geometry_.l2_span(), l1_.size() * geometry_.l2_span());
    for (auto at = begin; at < end; at += geometry_.cluster()) {
        DOPPEL_AWAIT(entry, entry_at(at));
        if (entry == Entry{})
            continue;
        DOPPEL_AWAIT_VOID(set_entry(at, {}));
        free_entry(entry, true);
    }
    for (auto i = first_table; i < l1_.size(); ++i) {
        DOPPEL_CO_TRY(table, l2_table(i * geometry_.l2_span()));
        if (table == 0)
            continue;
        for (std::uint64_t j = 0; j < geometry_.l2_entries(); ++j) {
            DOPPEL_AWAIT(entry, entry_at(i * geometry_.l2_span() + (j << geometry_.cluster_bits)));
            free_entry(entry, true);
        }
        free_later(table >> geometry_.cluster_bits, 1, true);
        l1_[i] = 0;
        dirty_l1_.insert(i);
    }
    co_return {};
}

Task<void> Qcow2Node::resize(std::uint64_t size_bytes) {
    const auto old_size = size();
    if (size_bytes % 512 != 0)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the size {} is not a multiple of 512 bytes", size_bytes));
    if (geometry_.l1_entries_for(size_bytes) * 8 > kMaxL1Bytes)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("{} bytes are too many for clusters of {} bytes",
                                         size_bytes, geometry_.cluster()));
    if (size_bytes < old_size && !data_file_) {
        // The rest of the last cluster must read as zeroes should the disk grow again.
        const auto cut = std::min(base::align_up(size_bytes, geometry_.cluster()), old_size);
        if (cut > size_bytes)
            DOPPEL_AWAIT_VOID(zero_part(size_bytes, cut - size_bytes));
    }
    if (size_bytes > old_size)
        DOPPEL_AWAIT_VOID(grow(size_bytes));
    {
        DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
        header_.size_bytes = size_bytes;
        DOPPEL_AWAIT_VOID(write_header());
        if (size_bytes < old_size)
            DOPPEL_AWAIT_VOID(shrink(size_bytes));
        bitmaps_.resized(size_bytes);
        DOPPEL_AWAIT_VOID(commit());
    }
    if (data_file_)
        DOPPEL_AWAIT_VOID(data_file_->resize(size_bytes));
    co_return {};
}

} // namespace doppel::block::qcow2
