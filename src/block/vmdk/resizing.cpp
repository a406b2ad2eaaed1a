// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
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

/// Entries of grains that the disk has no more, and then their places.
Task<void> SparseExtent::shrink(std::uint64_t grains) {
    for (auto index = grains; index < header_.grains();) {
        DOPPEL_AWAIT(run, find(index, header_.grains() - index));
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
Task<void> SparseExtent::grow(Header& header) {
    for (auto index = header_.grains();
         index < std::min(header.grains(), header_.tables() * header_.entries); ++index)
        DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Absent, 0, 1}));
    DOPPEL_AWAIT_VOID(commit());
    if (header.tables() > header_.tables()) {
        const auto tables = (header.tables() - header_.tables()) * header.table_bytes();
        auto at = base::align_up(end_, kSector);
        const auto copies = header_.redundant() ? 2u : 1u;
        const auto end = at + copies * (header.directory_bytes() + tables);
        if (end / kSector > kMaxSectorNumber)
            co_return base::fail(Errc::NoSpace, "a sparse extent cannot be larger than 2 TiB");
        if (file_->size() < end)
            DOPPEL_AWAIT_VOID(file_->resize(end));
        for (unsigned copy = copies; copy-- > 0;) {
            auto& place = copy == 1 ? header.redundant_at : header.directory_at;
            const auto tables_at = at + header.directory_bytes();
            DOPPEL_AWAIT_VOID(write_directory(place, at, tables_at, header));
            DOPPEL_AWAIT_VOID(
                file_->write_zeroes(tables_at, tables, Unmap::Allow, Durability::Cached));
            place = at;
            at = tables_at + tables;
        }
        end_ = end;
        tables_.clear();
    }
    DOPPEL_AWAIT_VOID(file_->flush());
    co_return {};
}

Task<void> SparseExtent::resize(std::uint64_t size_bytes) {
    const auto old_size = size();
    auto header = header_;
    header.size_bytes = size_bytes;
    if (size_bytes % kSector != 0 || size_bytes / kSector > kMaxSectorNumber ||
        header.tables() > kMaxTables)
        co_return base::fail(
            Errc::InvalidArgument,
            fmt::format("the size {} is not a multiple of 512 bytes up to 2 TiB", size_bytes));
    if (header_.compressed())
        co_return base::fail(Errc::Unsupported,
                             fmt::format("'{}' is stream-optimized: its size stays", name()),
                             "Convert it to monolithicSparse.");
    DOPPEL_AWAIT_VOID(before_writing());
    auto guests_wait = guests_.lock(0, ~std::uint64_t{0}, RangeLock::Mode::Exclusive);
    auto guests_guard = co_await guests_wait;
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(commit()); // from here on the tables on disk are those in memory
    const auto kept = std::min(size_bytes, old_size);
    DOPPEL_AWAIT_VOID(zero_tail(kept, align_up(kept)));
    if (size_bytes > old_size)
        DOPPEL_AWAIT_VOID(grow(header));
    else
        DOPPEL_AWAIT_VOID(shrink(header.grains()));
    header.unclean = header_.unclean;
    header_ = header;
    header_dirty_ = true;
    DOPPEL_AWAIT_VOID(commit());
    size_bytes_ = size_bytes;
    if (size_bytes < old_size)
        DOPPEL_AWAIT_VOID(compact());
    CheckResult result;
    DOPPEL_AWAIT(found, survey(result));
    use(found); // after growing, where the old directories were
    co_return {};
}

} // namespace doppel::block::vmdk
