// SPDX-License-Identifier: Apache-2.0
#include "block/qcow2/refcounts.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::qcow2 {

namespace {
constexpr std::size_t kCacheBytes = 4u << 20;
constexpr std::size_t kSectorBytes = 512;
constexpr std::uint64_t kEntriesPerSector = kSectorBytes / 8;
} // namespace

Result<void> require_table_bytes(std::uint64_t bytes) {
    if (bytes <= kMaxReftableBytes)
        return {};
    return base::fail(
        Errc::NoSpace,
        fmt::format("the refcount table has reached its limit of {} bytes", kMaxReftableBytes),
        "Use larger clusters.");
}

Refcounts::Refcounts(Node& file, const Header& header, std::vector<std::uint64_t> table)
    : file_{file}, geometry_{header}, blocks_{file, geometry_.cluster(), kCacheBytes},
      table_{std::move(table)}, table_offset_{header.reftable_offset},
      table_clusters_{header.reftable_clusters} {}

Result<Refcounts::Place> Refcounts::place_of(std::uint64_t cluster) const {
    const auto per_block = geometry_.refblock_entries();
    const auto block = table_[cluster / per_block];
    if (geometry_.within(block) != 0 || block >= kMaxHostOffset)
        return base::fail(Errc::Corrupt,
                          fmt::format("refcount block {} lies at {:#x}, not on a cluster boundary",
                                      cluster / per_block, block),
                          "Repair the image with check -r all.");
    const auto per_slice = blocks_.slice_bytes() * 8 >> geometry_.refcount_order;
    const auto in_block = cluster % per_block;
    return Place{block + in_block / per_slice * blocks_.slice_bytes(), in_block % per_slice,
                 per_slice - in_block % per_slice};
}

Task<void> Refcounts::set(std::uint64_t cluster, std::uint64_t value) {
    if (cluster >= covered() || table_[cluster / geometry_.refblock_entries()] == 0)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("no refcount block counts cluster {}", cluster));
    DOPPEL_CO_TRY(place, place_of(cluster));
    DOPPEL_AWAIT(slice, blocks_.load(place.slice));
    store_refcount({slice, blocks_.slice_bytes()}, place.index, geometry_.refcount_order, value);
    blocks_.mark_dirty(place.slice);
    next_free_ = value == 0 ? std::min(next_free_, cluster) : next_free_;
    co_return {};
}

void Refcounts::replace(const Geometry& geometry, std::vector<std::uint64_t> table,
                        std::uint64_t offset, std::uint64_t clusters) {
    geometry_ = geometry;
    blocks_.clear();
    dirty_entries_.clear();
    table_ = std::move(table);
    table_offset_ = offset;
    table_clusters_ = clusters;
    next_free_ = 1;
}

/// The slice that counts `cluster`, which has a block.
Task<std::byte*> Refcounts::block_slice(std::uint64_t cluster) {
    DOPPEL_CO_TRY(place, place_of(cluster));
    DOPPEL_AWAIT(slice, blocks_.load(place.slice));
    co_return slice;
}

Task<std::uint64_t> Refcounts::get(std::uint64_t cluster) {
    if (cluster >= covered() || table_[cluster / geometry_.refblock_entries()] == 0)
        co_return std::uint64_t{0};
    DOPPEL_CO_TRY(place, place_of(cluster));
    DOPPEL_AWAIT(slice, blocks_.load(place.slice));
    co_return load_refcount({slice, blocks_.slice_bytes()}, place.index, geometry_.refcount_order);
}

Task<void> Refcounts::get_some(std::uint64_t first, std::uint64_t count,
                               std::vector<std::uint64_t>& values) {
    if (first >= covered() || table_[first / geometry_.refblock_entries()] == 0) {
        const auto left = geometry_.refblock_entries() - first % geometry_.refblock_entries();
        values.assign(std::min(count, left), 0);
        co_return {};
    }
    DOPPEL_CO_TRY(place, place_of(first));
    DOPPEL_AWAIT(slice, blocks_.load(place.slice));
    values.resize(std::min(count, place.left));
    for (std::uint64_t i = 0; i < values.size(); ++i)
        values[i] = load_refcount({slice, blocks_.slice_bytes()}, place.index + i,
                                  geometry_.refcount_order);
    co_return {};
}

Task<void> Refcounts::add(std::uint64_t first, std::uint64_t count, int delta) {
    const auto order = geometry_.refcount_order;
    for (std::uint64_t done = 0; done < count;) {
        const auto cluster = first + done;
        if (cluster >= covered() || table_[cluster / geometry_.refblock_entries()] == 0)
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("no refcount block counts cluster {}", cluster),
                                 "Repair the image with check -r all.");
        DOPPEL_CO_TRY(place, place_of(cluster));
        DOPPEL_AWAIT(slice, blocks_.load(place.slice));
        const std::span<std::byte> block{slice, blocks_.slice_bytes()};
        const auto run = std::min(place.left, count - done);
        for (std::uint64_t i = 0; i < run; ++i) {
            const auto old = load_refcount(block, place.index + i, order);
            if (delta > 0 && old == geometry_.max_refcount())
                co_return base::fail(
                    Errc::Unsupported,
                    fmt::format("cluster {} has {} references, more do not fit", cluster + i, old),
                    "Create the image with larger refcount_bits.");
            if (delta < 0 && old == 0)
                co_return base::fail(Errc::Corrupt,
                                     fmt::format("cluster {} is freed but not in use", cluster + i),
                                     "Repair the image with check -r all.");
            if (delta < 0 && old == 1 && detached_) {
                keep(cluster + i, 1);
                continue;
            }
            store_refcount(block, place.index + i, order, delta > 0 ? old + 1 : old - 1);
            if (delta < 0 && old == 1)
                next_free_ = std::min(next_free_, cluster + i);
        }
        blocks_.mark_dirty(place.slice);
        done += run;
    }
    co_return {};
}

/// The first run of free clusters at or after `from`, as far as the blocks that exist reach; empty
/// at a cluster that no block counts yet.
Task<Refcounts::Run> Refcounts::find_free(std::uint64_t from, std::uint64_t count) {
    Run run{from, 0};
    const auto order = geometry_.refcount_order;
    for (auto cluster = from; run.count < count;) {
        if (cluster >= covered() || table_[cluster / geometry_.refblock_entries()] == 0) {
            if (run.count == 0)
                run.first = cluster;
            break;
        }
        DOPPEL_CO_TRY(place, place_of(cluster));
        DOPPEL_AWAIT(slice, blocks_.load(place.slice));
        const std::span<const std::byte> block{slice, blocks_.slice_bytes()};
        for (std::uint64_t i = 0; i < place.left && run.count < count; ++i, ++cluster) {
            if (load_refcount(block, place.index + i, order) == 0) {
                run.first = run.count == 0 ? cluster : run.first;
                ++run.count;
            } else if (run.count > 0) {
                co_return run;
            }
        }
    }
    co_return run;
}

Task<Refcounts::Run> Refcounts::allocate_some(std::uint64_t count) {
    while (true) {
        DOPPEL_AWAIT(run, find_free(next_free_, count));
        if (run.count == 0) {
            DOPPEL_AWAIT_VOID(ensure_block(run.first));
            next_free_ = run.first;
            continue;
        }
        DOPPEL_AWAIT_VOID(add(run.first, run.count, +1));
        next_free_ = run.first + run.count;
        co_return run;
    }
}

/// More clusters than a block may have left to count: new blocks side by side, and behind them the
/// clusters, all behind what was counted before.
Task<std::uint64_t> Refcounts::allocate_many(std::uint64_t count) {
    const auto per_block = geometry_.refblock_entries();
    const auto blocks = (count + per_block - 2) / (per_block - 1); // each counts itself, too
    std::uint64_t index = 0;
    while (true) {
        const auto last = std::find_if(table_.rbegin(), table_.rend(),
                                       [](std::uint64_t entry) { return entry != 0; });
        index = static_cast<std::uint64_t>(table_.rend() - last);
        if (index + blocks <= table_.size())
            break;
        DOPPEL_AWAIT_VOID(grow_table(index, index + 2 * blocks));
    }
    const auto start = index * per_block;
    if ((start + blocks + count) << geometry_.cluster_bits >= kMaxHostOffset)
        co_return base::fail(Errc::NoSpace, "the image file cannot grow further");
    for (std::uint64_t i = 0; i < blocks; ++i) {
        const auto offset = (start + i) << geometry_.cluster_bits;
        blocks_.create(offset, geometry_.cluster());
        table_[index + i] = offset;
        dirty_entries_.insert(index + i);
    }
    DOPPEL_AWAIT_VOID(add(start, blocks + count, +1));
    co_return start + blocks;
}

Task<std::uint64_t> Refcounts::allocate(std::uint64_t count) {
    if (count > geometry_.refblock_entries() / 2) {
        DOPPEL_AWAIT(many, allocate_many(count));
        co_return many;
    }
    auto from = next_free_;
    while (true) {
        DOPPEL_AWAIT(run, find_free(from, count));
        if (run.count == count) {
            DOPPEL_AWAIT_VOID(add(run.first, count, +1));
            if (run.first == next_free_)
                next_free_ = run.first + count;
            co_return run.first;
        }
        const auto end = run.first + run.count;
        const bool uncovered = end >= covered() || table_[end / geometry_.refblock_entries()] == 0;
        if (uncovered) {
            DOPPEL_AWAIT_VOID(ensure_block(end)); // its first cluster may become the block
            from = run.count > 0 ? run.first : end;
        } else {
            from = end;
        }
    }
}

/// A block that does not exist yet goes to the cluster that was asked for, or the first of those
/// it counts: all of them are free. It counts itself.
Task<void> Refcounts::ensure_block(std::uint64_t cluster) {
    const auto per_block = geometry_.refblock_entries();
    const auto index = cluster / per_block;
    if (cluster << geometry_.cluster_bits >= kMaxHostOffset)
        co_return base::fail(Errc::NoSpace, "the image file cannot grow further");
    if (index >= table_.size()) {
        DOPPEL_AWAIT_VOID(grow_table(index, 0));
        co_return {};
    }
    if (table_[index] != 0)
        co_return {};
    const auto home = cluster;
    const auto offset = home << geometry_.cluster_bits;
    blocks_.create(offset, geometry_.cluster());
    table_[index] = offset;
    dirty_entries_.insert(index);
    DOPPEL_AWAIT(slice, block_slice(home));
    DOPPEL_CO_TRY(place, place_of(home));
    store_refcount({slice, blocks_.slice_bytes()}, place.index, geometry_.refcount_order, 1);
    co_return {};
}

/// A larger table behind everything, with the blocks that count it and themselves. It takes effect
/// by one write of the header; only then the old one is freed.
Task<void> Refcounts::grow_table(std::uint64_t block_index, std::uint64_t least_entries) {
    const auto per_block = geometry_.refblock_entries();
    const auto start = block_index * per_block;
    std::uint64_t new_blocks = 1;
    std::uint64_t clusters = 0;
    while (true) {
        const auto entries = std::max((block_index + new_blocks) * 3 / 2 + 1, least_entries);
        clusters = geometry_.clusters_for(entries * 8);
        const auto needed = (clusters + new_blocks + per_block - 1) / per_block;
        if (needed <= new_blocks)
            break;
        new_blocks = needed;
    }
    DOPPEL_CO_TRY_VOID(require_table_bytes(clusters << geometry_.cluster_bits));
    auto table = table_;
    table.resize((clusters << geometry_.cluster_bits) / 8);
    std::vector<std::vector<std::byte>> blocks(new_blocks,
                                               std::vector<std::byte>(geometry_.cluster()));
    for (std::uint64_t i = 0; i < new_blocks + clusters; ++i)
        store_refcount(blocks[i / per_block], i % per_block, geometry_.refcount_order, 1);
    for (std::uint64_t i = 0; i < new_blocks; ++i)
        table[block_index + i] = (start + i) << geometry_.cluster_bits;
    if (detached_)
        place_grown(start, blocks);
    else
        DOPPEL_AWAIT_VOID(write_grown(start, blocks, table, clusters));
    const auto old_first = table_offset_ >> geometry_.cluster_bits;
    const auto old_count = table_clusters_;
    table_ = std::move(table);
    table_offset_ = (start + new_blocks) << geometry_.cluster_bits;
    table_clusters_ = clusters;
    dirty_entries_.clear(); // the new table was written whole
    DOPPEL_AWAIT_VOID(add(old_first, old_count, -1));
    co_return {};
}

Task<void> Refcounts::write_grown(std::uint64_t start,
                                  const std::vector<std::vector<std::byte>>& blocks,
                                  const std::vector<std::uint64_t>& table, std::uint64_t clusters) {
    // Blocks that the old table does not name yet are named by the new one: they go first.
    DOPPEL_AWAIT_VOID(blocks_.write_dirty());
    auto offset = start << geometry_.cluster_bits;
    for (const auto& block : blocks) {
        const auto from = IoBuffer::of(block);
        DOPPEL_AWAIT_VOID(file_.write(offset, from, Durability::Cached));
        offset += geometry_.cluster();
    }
    std::vector<std::byte> bytes(table.size() * 8);
    for (std::size_t i = 0; i < table.size(); ++i)
        base::store_be(bytes.data() + i * 8, table[i]);
    const auto whole = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(file_.write(offset, whole, Durability::Cached));
    DOPPEL_AWAIT_VOID(file_.flush());
    std::array<std::byte, 12> fields{};
    base::store_be(fields.data(), offset);
    base::store_be(fields.data() + 8, static_cast<std::uint32_t>(clusters));
    const auto from = IoBuffer::of(fields);
    DOPPEL_AWAIT_VOID(file_.write(kOffsetOfReftable, from, Durability::Durable));
    co_return {};
}

/// The same for a table that the header will name later.
void Refcounts::place_grown(std::uint64_t start,
                            const std::vector<std::vector<std::byte>>& blocks) {
    auto offset = start << geometry_.cluster_bits;
    for (const auto& block : blocks) {
        blocks_.create(offset, geometry_.cluster());
        for (std::uint64_t at = 0; at < geometry_.cluster(); at += blocks_.slice_bytes())
            std::copy_n(block.data() + at, blocks_.slice_bytes(), blocks_.find(offset + at));
        offset += geometry_.cluster();
    }
}

void Refcounts::keep(std::uint64_t first, std::uint64_t count) {
    if (!kept_.empty() && kept_.back().first + kept_.back().count == first)
        kept_.back().count += count;
    else
        kept_.push_back({first, count});
}

/// A place for each block and one for the table: taking them may need more blocks.
Task<std::vector<std::uint64_t>> Refcounts::places_for_copies(Run& table) {
    std::vector<std::uint64_t> places;
    const auto blocks = [&] {
        return table_.size() -
               static_cast<std::size_t>(std::ranges::count(table_, std::uint64_t{0}));
    };
    while (places.size() < blocks() || table.count != table_clusters_) {
        if (places.size() < blocks()) {
            DOPPEL_AWAIT(place, allocate(1));
            places.push_back(place << geometry_.cluster_bits);
            continue;
        }
        if (table.count > 0)
            DOPPEL_AWAIT_VOID(add(table.first, table.count, -1)); // the table has grown
        table.count = table_clusters_;
        DOPPEL_AWAIT(first, allocate(table.count));
        table.first = first;
    }
    co_return places;
}

Task<void> Refcounts::move_block(std::size_t index, std::uint64_t to) {
    const auto from = table_[index];
    blocks_.create(to, geometry_.cluster());
    for (std::uint64_t at = 0; at < geometry_.cluster(); at += blocks_.slice_bytes()) {
        DOPPEL_AWAIT(slice, blocks_.load(from + at));
        std::copy_n(slice, blocks_.slice_bytes(), blocks_.find(to + at));
    }
    blocks_.forget(from, geometry_.cluster());
    keep(from >> geometry_.cluster_bits, 1);
    table_[index] = to;
    if (blocks_.pressed())
        DOPPEL_AWAIT_VOID(blocks_.write_dirty()); // no table on disk names them
    co_return {};
}

Task<void> Refcounts::detach() {
    Run table;
    DOPPEL_AWAIT(places, places_for_copies(table));
    detached_ = true;
    auto place = places.begin();
    for (std::size_t i = 0; i < table_.size(); ++i)
        if (table_[i] != 0)
            DOPPEL_AWAIT_VOID(move_block(i, *place++));
    keep(table_offset_ >> geometry_.cluster_bits, table_clusters_);
    table_offset_ = table.first << geometry_.cluster_bits;
    co_return {};
}

Task<void> Refcounts::write_detached() {
    DOPPEL_AWAIT_VOID(blocks_.write_dirty());
    std::vector<std::byte> bytes(table_.size() * 8);
    for (std::size_t i = 0; i < table_.size(); ++i)
        base::store_be(bytes.data() + i * 8, table_[i]);
    const auto from = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(file_.write(table_offset_, from, Durability::Cached));
    dirty_entries_.clear();
    co_return {};
}

Task<void> Refcounts::attach() {
    detached_ = false;
    for (const auto& run : std::exchange(kept_, {}))
        DOPPEL_AWAIT_VOID(add(run.first, run.count, -1));
    co_return {};
}

Task<void> Refcounts::write_table() {
    while (!dirty_entries_.empty()) {
        const auto first = *dirty_entries_.begin() / kEntriesPerSector * kEntriesPerSector;
        std::array<std::byte, kSectorBytes> sector{};
        for (std::uint64_t i = 0; i < kEntriesPerSector && first + i < table_.size(); ++i)
            base::store_be(sector.data() + i * 8, table_[first + i]);
        const auto from = IoBuffer::of(sector);
        DOPPEL_AWAIT_VOID(file_.write(table_offset_ + first * 8, from, Durability::Cached));
        dirty_entries_.erase(dirty_entries_.begin(),
                             dirty_entries_.lower_bound(first + kEntriesPerSector));
    }
    co_return {};
}

bool Refcounts::overlaps(std::uint64_t offset, std::uint64_t bytes) const {
    const auto table_end = table_offset_ + (table_clusters_ << geometry_.cluster_bits);
    return (offset < table_end && table_offset_ < offset + bytes) ||
           blocks_.overlaps(offset, bytes);
}

} // namespace doppel::block::qcow2
