// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Who uses how much of the file: reference counts of host clusters, and the allocator on top.
/// Changes are in memory until the transaction (Qcow2Node::commit) writes them. The caller holds
/// the node's metadata lock over every call. Owner thread only.
#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "block/qcow2/layout.hpp"
#include "block/table_cache.hpp"

namespace doppel::block::qcow2 {

/// Error: nobody opens an image with such a refcount table.
Result<void> require_table_bytes(std::uint64_t bytes);

class Refcounts {
public:
    Refcounts(Node& file, const Header& header, std::vector<std::uint64_t> table);

    /// Of host cluster number `cluster`.
    Task<std::uint64_t> get(std::uint64_t cluster);
    /// Those of `first` and the next, at least one of `count` (> 0) and as many as one look yields.
    Task<void> get_some(std::uint64_t first, std::uint64_t count,
                        std::vector<std::uint64_t>& values);
    /// Adds `delta` (+1, -1) to `count` clusters. Errors: more than the width holds; below zero,
    /// which only a corrupt image brings about.
    Task<void> add(std::uint64_t first, std::uint64_t count, int delta);
    /// `count` neighbouring clusters, now with a refcount of 1; their number.
    Task<std::uint64_t> allocate(std::uint64_t count);
    /// As many as are free from the first free one on, up to `count`.
    struct Run {
        std::uint64_t first = 0;
        std::uint64_t count = 0;
    };
    Task<Run> allocate_some(std::uint64_t count);

    /// Sets what a check has counted. Error: no block counts the cluster.
    Task<void> set(std::uint64_t cluster, std::uint64_t value);
    /// From here on everything changes in copies of the table and its blocks: nothing of it counts
    /// until the header names the new table. What nobody uses any more is kept until then.
    Task<void> detach();
    /// Writes the copies. They must be durable before the header names the table.
    Task<void> write_detached();
    /// The header names the new table; the old one and what was kept are given back.
    Task<void> attach();
    /// After somebody else has written a new table.
    void replace(const Geometry& geometry, std::vector<std::uint64_t> table, std::uint64_t offset,
                 std::uint64_t clusters);

    TableCache& blocks() noexcept { return blocks_; }
    const std::vector<std::uint64_t>& table() const noexcept { return table_; }
    std::uint64_t table_offset() const noexcept { return table_offset_; }
    std::uint64_t table_clusters() const noexcept { return table_clusters_; }
    bool table_dirty() const noexcept { return !dirty_entries_.empty(); }
    /// Writes what changed in the table; the blocks it names must be durable.
    Task<void> write_table();
    /// Whether a range holds the table or one of the blocks in the cache.
    bool overlaps(std::uint64_t offset, std::uint64_t bytes) const;
    /// One past the last cluster that any block could count without growing the table.
    std::uint64_t covered() const { return table_.size() * geometry_.refblock_entries(); }

private:
    struct Place {           // of one refcount
        std::uint64_t slice; // file offset
        std::uint64_t index; // in the slice
        std::uint64_t left;  // refcounts from here to the end of the slice
    };
    Result<Place> place_of(std::uint64_t cluster) const;
    Task<std::byte*> block_slice(std::uint64_t cluster);
    Task<void> ensure_block(std::uint64_t cluster);
    Task<void> grow_table(std::uint64_t block_index, std::uint64_t least_entries);
    Task<std::uint64_t> allocate_many(std::uint64_t count);
    Task<void> write_grown(std::uint64_t start, const std::vector<std::vector<std::byte>>& blocks,
                           const std::vector<std::uint64_t>& table, std::uint64_t clusters);
    void place_grown(std::uint64_t start, const std::vector<std::vector<std::byte>>& blocks);
    Task<Run> find_free(std::uint64_t from, std::uint64_t count);
    Task<std::vector<std::uint64_t>> places_for_copies(Run& table);
    Task<void> move_block(std::size_t index, std::uint64_t to);
    void keep(std::uint64_t first, std::uint64_t count);

    Node& file_;
    Geometry geometry_;
    TableCache blocks_;
    std::vector<std::uint64_t> table_; // as in the file, unused entries zero
    std::uint64_t table_offset_;
    std::uint64_t table_clusters_;
    std::set<std::uint64_t> dirty_entries_;
    std::uint64_t next_free_ = 1;
    bool detached_ = false;
    std::vector<Run> kept_; // count one less once the header names the new table
};

} // namespace doppel::block::qcow2
