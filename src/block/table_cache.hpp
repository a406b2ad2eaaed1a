// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A write-back cache of table slices (L2 tables, refcount blocks), least recently used out first.
/// Dirty slices stay until write_dirty(): the transaction decides when. Owner thread only.
///
/// A pointer to a slice is good until the next wait of the coroutine that asked for it.
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "block/aligned_memory.hpp"
#include "block/node.hpp"

namespace doppel::block {

class TableCache {
public:
    TableCache(Node& file, std::uint64_t cluster_bytes, std::size_t budget_bytes);

    std::uint64_t slice_bytes() const noexcept { return slice_bytes_; }
    /// The slice that begins at `offset` of the file, if it is here.
    std::byte* find(std::uint64_t offset);
    /// The same, read from the file if need be.
    Task<std::byte*> load(std::uint64_t offset);
    /// Puts zeroed, dirty slices for a new table of `bytes` at `offset`.
    void create(std::uint64_t offset, std::uint64_t bytes);
    void mark_dirty(std::uint64_t offset);
    /// Forgets a table that is one no longer.
    void forget(std::uint64_t offset, std::uint64_t bytes);
    /// Whether any slice of the range is here: it must not be written as data.
    bool overlaps(std::uint64_t offset, std::uint64_t bytes) const;

    bool dirty() const noexcept { return dirty_count_ > 0; }
    /// More is dirty than the cache should hold: time for a transaction.
    bool pressed() const noexcept { return dirty_count_ * slice_bytes_ > budget_bytes_ / 2; }
    /// Writes all dirty slices, neighbours together. On an error those not written stay dirty.
    Task<void> write_dirty() { return write(dirty_offsets()); }
    /// Where the dirty slices lie, in order.
    std::vector<std::uint64_t> dirty_offsets() const;
    /// Writes these dirty slices.
    Task<void> write(std::vector<std::uint64_t> offsets);
    void clear();

private:
    struct Slice {
        std::uint64_t offset;
        AlignedMemory bytes;
        bool dirty = false;
    };
    using Position = std::list<Slice>::iterator;

    std::byte* insert(std::uint64_t offset, AlignedMemory bytes);
    void shrink();

    Node& file_;
    std::uint64_t slice_bytes_;
    std::size_t budget_bytes_;
    std::list<Slice> slices_; // the most recently used first
    std::unordered_map<std::uint64_t, Position> by_offset_;
    std::size_t dirty_count_ = 0;
    std::uint64_t writes_ = 0; // how often slices went to the file
};

} // namespace doppel::block
