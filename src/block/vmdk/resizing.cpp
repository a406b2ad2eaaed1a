// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/all_or_nothing.hpp"
#include "block/vmdk/sparse_extent.hpp"

namespace doppel::block::vmdk {

namespace {
constexpr std::uint64_t kChunkEntries = 64u << 10; // of a directory that is written anew
}

/// What the last grain holds behind the disk's end must read as zeroes once it belongs to it.
Task<void> SparseExtent::zero_tail(std::uint64_t begin, std::uint64_t end) {
    if (begin >= end)
        co_return {};
    DOPPEL_AWAIT(run, find(begin / header_.grain_bytes, 1));
    if (run.kind == ClusterKind::Data)
        DOPPEL_AWAIT_VOID(file_->write_zeroes(run.host + within(begin), end - begin, Unmap::Keep,
                                              Durability::Cached));
    co_return {};
}

/// Entries that the last table has for grains that the disk has not, any more or yet.
Task<void> SparseExtent::clear_entries(std::uint64_t first, std::uint64_t end) {
    for (auto index = first; index < end;) {
        DOPPEL_AWAIT(run, find(index, end - index));
        if (run.kind != ClusterKind::Absent)
            DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Absent, 0, run.count}));
        index += run.count;
    }
    DOPPEL_AWAIT_VOID(commit());
    co_return {};
}

/// The old entries, then those of empty tables side by side from `tables_at` on.
Task<void> SparseExtent::write_directory(std::uint64_t old_at, std::uint64_t at,
                                         std::uint64_t tables_at, const Header& header) {
    const auto kept = header_.tables();
    const auto entries = header.directory_bytes() / 4;
    for (std::uint64_t first = 0; first < entries; first += kChunkEntries) {
        const auto count = std::min(kChunkEntries, entries - first);
        std::vector<std::byte> bytes(count * 4);
        if (first < kept)
            DOPPEL_AWAIT_VOID(file_->read(
                old_at + first * 4, IoBuffer{bytes.data(), std::min(count, kept - first) * 4}));
        for (auto i = std::max(kept, first); i < std::min(first + count, header.tables()); ++i)
            base::store_le(bytes.data() + (i - first) * 4,
                           static_cast<std::uint32_t>(
                               (tables_at + (i - kept) * header.table_bytes()) / kSector));
        DOPPEL_AWAIT_VOID(file_->write(at + first * 4, IoBuffer{bytes}, Durability::Cached));
    }
    co_return {};
}

/// Larger directories and the tables they need more lie behind all else; then the header, in one
/// sector, names them.
Task<void> SparseExtent::replace_directories(Header header) {
    const auto tables = (header.tables() - header_.tables()) * header.table_bytes();
    auto at = base::align_up(end_, kSector);
    const auto copies = header_.redundant() ? 2u : 1u;
    const auto end = at + copies * (header.directory_bytes() + tables);
    if (end / kSector > kMaxSectorNumber)
        co_return base::fail(Errc::NoSpace, "a sparse extent cannot be larger than 2 TiB");
    AllOrNothing operation{broken_};
    if (file_->size() < end)
        DOPPEL_AWAIT_VOID(file_->resize(end));
    for (unsigned copy = copies; copy-- > 0;) {
        auto& place = copy == 1 ? header.redundant_at : header.directory_at;
        const auto tables_at = at + header.directory_bytes();
        DOPPEL_AWAIT_VOID(write_directory(place, at, tables_at, header));
        DOPPEL_AWAIT_VOID(file_->write_zeroes(tables_at, tables, Unmap::Allow, Durability::Cached));
        place = at;
        at = tables_at + tables;
    }
    DOPPEL_AWAIT_VOID(file_->flush());
    end_ = end;
    tables_.clear();
    header_.directory_at = header.directory_at;
    header_.redundant_at = header.redundant_at;
    header_dirty_ = true;
    DOPPEL_AWAIT_VOID(commit());
    operation.done();
    co_return {};
}

/// Room in the tables. A longer parent must not show through where the disk is new, at no time: the
/// zeroes are there before the header has the size.
Task<void> SparseExtent::grow(std::uint64_t size_bytes) {
    auto header = header_;
    header.size_bytes = size_bytes;
    {
        DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
        DOPPEL_AWAIT_VOID(commit()); // from here on the tables on disk are those in memory
        DOPPEL_AWAIT_VOID(zero_tail(size_bytes_, align_up(size_bytes_)));
        DOPPEL_AWAIT_VOID(clear_entries(
            header_.grains(), std::min(header.grains(), header_.tables() * header_.entries)));
        if (header.tables() > header_.tables())
            DOPPEL_AWAIT_VOID(replace_directories(header));
    }
    DOPPEL_AWAIT_VOID(hide_parent(size_bytes));
    co_return {};
}

/// The tables, which have the entries, are right. The metadata lock is held.
Task<void> SparseExtent::set_size(std::uint64_t size_bytes) {
    AllOrNothing operation{broken_};
    const auto old_size = size_bytes_;
    const auto old_grains = header_.grains();
    header_.size_bytes = size_bytes;
    header_dirty_ = true;
    DOPPEL_AWAIT_VOID(commit());
    size_bytes_ = size_bytes;
    if (size_bytes < old_size) {
        DOPPEL_AWAIT_VOID(clear_entries(header_.grains(),
                                        std::min(old_grains, header_.tables() * header_.entries)));
        DOPPEL_AWAIT_VOID(compact());
    }
    CheckResult result;
    DOPPEL_AWAIT(found, survey(result));
    use(found); // after growing, where the old directories were
    operation.done();
    co_return {};
}

Result<void> SparseExtent::check_new_size(std::uint64_t size_bytes) const {
    auto header = header_;
    header.size_bytes = size_bytes;
    if (size_bytes % kSector != 0 || size_bytes / kSector > kMaxSectorNumber ||
        header.tables() > kMaxTables)
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("the size {} is not a multiple of 512 bytes up to 2 TiB", size_bytes));
    if (header_.compressed())
        return base::fail(Errc::Unsupported,
                          fmt::format("'{}' is stream-optimized: its size stays", name()),
                          "Convert it to monolithicSparse.");
    return {};
}

Task<void> SparseExtent::resize(std::uint64_t size_bytes) {
    DOPPEL_CO_TRY_VOID(check_new_size(size_bytes));
    DOPPEL_AWAIT_VOID(before_writing());
    if (size_bytes > size())
        DOPPEL_AWAIT_VOID(grow(size_bytes));
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    DOPPEL_AWAIT_VOID(commit());
    if (size_bytes < size())
        DOPPEL_AWAIT_VOID(zero_tail(size_bytes, align_up(size_bytes)));
    DOPPEL_AWAIT_VOID(set_size(size_bytes));
    co_return {};
}

} // namespace doppel::block::vmdk
