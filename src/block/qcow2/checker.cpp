// SPDX-License-Identifier: Apache-2.0
#include "block/qcow2/checker.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::qcow2 {

void ReferenceCounts::add(std::uint64_t cluster, std::uint64_t times) {
    auto& page = pages_[cluster / kPage];
    if (!page)
        page = std::make_unique<Page>();
    auto& value = (*page)[cluster % kPage];
    value = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(value + times, std::numeric_limits<std::uint32_t>::max()));
    end_ = std::max(end_, cluster + 1);
}

std::uint64_t ReferenceCounts::get(std::uint64_t cluster) const {
    if (cluster >= clusters() || !pages_[cluster / kPage])
        return 0;
    return (*pages_[cluster / kPage])[cluster % kPage];
}

Checker::Checker(Qcow2Node& node)
    : node_{node}, references_{node.geometry_.clusters_for(node.file_->size())} {}

void Checker::find(bool corruption, const std::string& text) {
    ++(corruption ? result_.corruptions : result_.leaks);
    if (result_.findings.size() < CheckResult::kMaxFindings)
        result_.findings.push_back((corruption ? "ERROR " : "Leaked ") + text);
}

/// Counts the clusters of a range. False, and a finding, when it cannot lie there.
bool Checker::count(const char* what, std::uint64_t offset, std::uint64_t bytes,
                    std::uint64_t times) {
    if (bytes == 0)
        return true;
    const auto limit = node_.geometry_.clusters_for(node_.file_->size()) + 1;
    const auto first = offset >> node_.geometry_.cluster_bits;
    if (offset >= kMaxHostOffset || bytes >= kMaxHostOffset || first >= limit ||
        (offset + bytes - 1) >> node_.geometry_.cluster_bits >= limit) {
        find(true,
             fmt::format("{} ({} bytes at {:#x}) passes the end of the file", what, bytes, offset));
        return false;
    }
    const auto last = (offset + bytes - 1) >> node_.geometry_.cluster_bits;
    for (auto cluster = first; cluster <= last; ++cluster)
        if (cluster < references_.clusters())
            references_.add(cluster, times);
    return true;
}

Task<void> Checker::count_active() {
    count("the header", 0, node_.geometry_.cluster());
    count("the LUKS header", node_.header_.crypto.offset, node_.header_.crypto.bytes);
    count("the L1 table", node_.header_.l1_offset, node_.l1_.size() * 8);
    for (std::size_t i = 0; i < node_.l1_.size(); ++i) {
        const auto table = node_.l1_[i] & kOffsetMask;
        if (table == 0)
            continue;
        const bool valid = node_.geometry_.within(table) == 0 && table < node_.file_->size();
        if (valid && ++tables_[table] == 1) {
            active_.push_back(table);
            continue;
        }
        find(true, valid ? fmt::format("L2 table {:#x} is used twice", table)
                         : fmt::format("L1 entry {} points to {:#x}", i, table));
        if (!valid && repair_ == Repair::All) {
            node_.l1_[i] = 0;
            node_.dirty_l1_.insert(i);
            ++result_.corruptions_fixed;
        }
    }
    std::ranges::sort(active_);
    co_return {};
}

Task<void> Checker::count_snapshots() {
    const auto table = serialize_snapshots(node_.snapshots_);
    if (!node_.snapshots_.empty())
        count("the snapshot table", node_.header_.snapshots_offset, table.size());
    std::uint64_t total = 0;
    for (const auto& snapshot : node_.snapshots_) {
        const auto bytes = std::uint64_t{snapshot.l1_entries} * 8;
        total += bytes;
        const bool valid = node_.geometry_.within(snapshot.l1_offset) == 0 &&
                           total <= node_.file_->size() + node_.geometry_.cluster() &&
                           count("the L1 table of a snapshot", snapshot.l1_offset,
                                 std::max<std::uint64_t>(bytes, 1));
        if (!valid) {
            find(true, fmt::format("the L1 table of snapshot '{}' lies at {:#x}", snapshot.name,
                                   snapshot.l1_offset));
            continue;
        }
        DOPPEL_AWAIT(l1, node_.read_l1(snapshot.l1_offset, snapshot.l1_entries));
        for (const auto entry : l1) {
            const auto offset = entry & kOffsetMask;
            if (offset == 0)
                continue;
            if (node_.geometry_.within(offset) != 0 || offset >= node_.file_->size())
                find(true, fmt::format("snapshot '{}': an L1 entry points to {:#x}", snapshot.name,
                                       offset));
            else
                ++tables_[offset];
        }
    }
    co_return {};
}

Task<void> Checker::count_tables() {
    for (const auto& [offset, times] : tables_) {
        count("an L2 table", offset, node_.geometry_.cluster(), times);
        DOPPEL_AWAIT_VOID(count_table(offset, times, std::ranges::binary_search(active_, offset)));
    }
    co_return {};
}

Task<void> Checker::count_table(std::uint64_t offset, std::uint64_t times, bool active) {
    std::vector<std::byte> bytes(node_.geometry_.cluster());
    DOPPEL_AWAIT_VOID(node_.file_->read(offset, IoBuffer{bytes}));
    const bool extended = node_.geometry_.extended;
    for (std::uint64_t at = 0; at < bytes.size(); at += node_.geometry_.entry_bytes()) {
        const Entry entry{base::load_be<std::uint64_t>(bytes.data() + at),
                          extended ? base::load_be<std::uint64_t>(bytes.data() + at + 8) : 0};
        if (entry.word == 0)
            continue;
        if (count_entry(offset, at, entry, times, active) || repair_ != Repair::All)
            continue;
        DOPPEL_AWAIT_VOID(patch(offset + at, 0));
        if (extended)
            DOPPEL_AWAIT_VOID(patch(offset + at + 8, 0));
        ++result_.corruptions_fixed;
    }
    co_return {};
}

/// False: the entry is nonsense (a finding).
bool Checker::count_entry(std::uint64_t table, std::uint64_t at, Entry entry, std::uint64_t times,
                          bool active) {
    if (entry.compressed()) {
        const auto range = compressed_range(entry.word, node_.geometry_.cluster_bits);
        result_.compressed_clusters += active;
        result_.allocated_clusters += active;
        result_.fragmented_clusters += active; // as qemu-img counts them
        // Its last sector may pass the end of the file.
        return count("a compressed cluster", range.offset,
                     std::min(range.bytes,
                              node_.file_->size() - std::min(node_.file_->size(), range.offset)) +
                         (range.offset >= node_.file_->size()),
                     times);
    }
    const auto host = entry.host();
    const auto alloc = entry.bits & 0xffffffff;
    if ((alloc & entry.bits >> kSubclusters) != 0) {
        find(true, fmt::format("L2 table {:#x}, entry at {:#x}: a subcluster is both data and zero",
                               table, at));
        return false;
    }
    if (node_.data_file_) {
        if (node_.has_host(entry))
            count_data(host, active);
        return true;
    }
    if (host == 0)
        return true;
    if (node_.geometry_.within(host) != 0) {
        find(true, fmt::format("L2 table {:#x}, entry at {:#x}: data at {:#x}, not on a cluster "
                               "boundary",
                               table, at, host));
        return false;
    }
    count_data(host, active);
    return count("a data cluster", host, node_.geometry_.cluster(), times);
}

void Checker::count_data(std::uint64_t host, bool active) {
    if (!active)
        return;
    ++result_.allocated_clusters;
    if (last_data_ != 0 && host != last_data_ + node_.geometry_.cluster())
        ++result_.fragmented_clusters;
    last_data_ = host;
}

/// Those that the image names, whatever has become of them in memory.
void Checker::count_bitmaps() {
    for (const auto& range : node_.bitmaps_.stored())
        count("a part of a bitmap", range.offset, range.bytes);
}

void Checker::count_refcount_structure() {
    auto& refcounts = node_.refcounts_;
    if (count("the refcount table", refcounts.table_offset(),
              refcounts.table_clusters() << node_.geometry_.cluster_bits))
        for (std::uint64_t i = 0; i < refcounts.table_clusters(); ++i)
            ++structure_[(refcounts.table_offset() >> node_.geometry_.cluster_bits) + i];
    for (std::size_t i = 0; i < refcounts.table().size(); ++i) {
        const auto block = refcounts.table()[i];
        if (block == 0)
            continue;
        const bool valid = node_.geometry_.within(block) == 0 && block < node_.file_->size();
        if (valid && count("a refcount block", block, node_.geometry_.cluster())) {
            const auto cluster = block >> node_.geometry_.cluster_bits;
            ++structure_[cluster];
            if (references_.get(cluster) == 1)
                continue;
            find(true, fmt::format("refcount block {} at {:#x} is used for something else too", i,
                                   block));
        } else {
            find(true, fmt::format("refcount block {} lies at {:#x}", i, block));
        }
        structure_broken_ = true;
    }
}

Task<void> Checker::compare_one(std::uint64_t cluster) {
    DOPPEL_AWAIT(stored, node_.refcounts_.get(cluster));
    const auto counted = references_.get(cluster);
    if (stored == counted)
        co_return {};
    const bool corruption = stored < counted;
    find(corruption, fmt::format("cluster {} refcount={} reference={}", cluster, stored, counted));
    if (repair_ == Repair::None || (corruption && repair_ != Repair::All) || structure_broken_)
        co_return {};
    auto task = node_.refcounts_.set(cluster, counted);
    if (const auto set = co_await task; !set) {
        structure_broken_ = true; // no block for it
        co_return {};
    }
    ++(corruption ? result_.corruptions_fixed : result_.leaks_fixed);
    co_return {};
}

Task<void> Checker::compare() {
    // A cluster past the file's end that no block should count is a leak all the same.
    const auto end = std::max(references_.end(), node_.geometry_.clusters_for(node_.file_->size()));
    std::vector<std::uint64_t> stored;
    for (std::uint64_t first = 0; first < end; first += stored.size()) {
        DOPPEL_AWAIT_VOID(node_.refcounts_.get_some(first, end - first, stored));
        for (std::uint64_t i = 0; i < stored.size(); ++i)
            if (stored[i] != references_.get(first + i))
                DOPPEL_AWAIT_VOID(compare_one(first + i));
    }
    co_return {};
}

/// Writes one word of a table, in the file and in the cache.
Task<void> Checker::patch(std::uint64_t offset, std::uint64_t word) {
    const auto slice = base::align_down(offset, node_.l2_.slice_bytes());
    DOPPEL_AWAIT(bytes, node_.l2_.load(slice));
    base::store_be(bytes + (offset - slice), word);
    node_.l2_.mark_dirty(slice);
    co_return {};
}

Task<void> Checker::check_table_flags(std::uint64_t table) {
    std::vector<std::byte> bytes(node_.geometry_.cluster());
    DOPPEL_AWAIT_VOID(node_.file_->read(table, IoBuffer{bytes}));
    for (std::uint64_t at = 0; at < bytes.size(); at += node_.geometry_.entry_bytes()) {
        const Entry entry{base::load_be<std::uint64_t>(bytes.data() + at), 0};
        if (!entry.compressed() && entry.host() == 0)
            continue;
        const bool single = !entry.compressed() &&
                            count_in_the_end(entry.host() >> node_.geometry_.cluster_bits) == 1;
        if (single == entry.copied() || node_.geometry_.within(entry.host()) != 0)
            continue;
        find(true, fmt::format("OFLAG_COPIED data cluster: l2_entry={:x}", entry.word));
        if (repair_ != Repair::All)
            continue;
        DOPPEL_AWAIT_VOID(patch(table + at, single ? entry.word | kCopied : entry.word & ~kCopied));
        ++result_.corruptions_fixed;
    }
    co_return {};
}

Task<void> Checker::check_flags() {
    for (std::size_t i = 0; i < node_.l1_.size(); ++i) {
        const auto table = node_.l1_[i] & kOffsetMask;
        if (table == 0 || !std::ranges::binary_search(active_, table))
            continue;
        const bool single = count_in_the_end(table >> node_.geometry_.cluster_bits) == 1;
        if (single != ((node_.l1_[i] & kCopied) != 0)) {
            find(true, fmt::format("OFLAG_COPIED L2 cluster: l1_entry={:x}", node_.l1_[i]));
            if (repair_ == Repair::All) {
                node_.l1_[i] = single ? table | kCopied : table;
                node_.dirty_l1_.insert(i);
                ++result_.corruptions_fixed;
            }
        }
        if (!node_.data_file_)
            DOPPEL_AWAIT_VOID(check_table_flags(table));
    }
    co_return {};
}

/// How often a cluster is in use for anything else than counting.
std::uint64_t Checker::without_structure(std::uint64_t cluster) const {
    const auto counting = structure_.find(cluster);
    return references_.get(cluster) - (counting == structure_.end() ? 0 : counting->second);
}

std::uint64_t Checker::count_in_the_end(std::uint64_t cluster) const {
    return structure_broken_ && repair_ == Repair::All ? without_structure(cluster)
                                                       : references_.get(cluster);
}

/// New refcount blocks and a new table behind all that is in use; the old ones are forgotten.
Task<void> Checker::rebuild() {
    const auto& geometry = node_.geometry_;
    const auto per_block = geometry.refblock_entries();
    const auto start = std::max(references_.end(), geometry.clusters_for(node_.file_->size()));
    std::uint64_t blocks = 1;
    std::uint64_t clusters = 1;
    while (true) {
        const auto needed = (start + blocks + clusters + per_block - 1) / per_block;
        const auto table = geometry.clusters_for(needed * 8);
        if (needed <= blocks && table <= clusters)
            break;
        blocks = needed;
        clusters = table;
    }
    DOPPEL_CO_TRY_VOID(require_table_bytes(clusters << geometry.cluster_bits));
    std::vector<std::uint64_t> table((clusters << geometry.cluster_bits) / 8);
    std::vector<std::byte> block(geometry.cluster());
    for (std::uint64_t i = 0; i < blocks; ++i) {
        std::ranges::fill(block, std::byte{0});
        for (std::uint64_t j = 0; j < per_block; ++j) {
            const auto cluster = i * per_block + j;
            const bool ours = cluster >= start && cluster < start + blocks + clusters;
            const auto counted = std::min(without_structure(cluster), geometry.max_refcount());
            store_refcount(block, j, geometry.refcount_order, ours ? 1 : counted);
        }
        table[i] = (start + i) << geometry.cluster_bits;
        const auto from = IoBuffer::of(block);
        DOPPEL_AWAIT_VOID(node_.file_->write(table[i], from, Durability::Cached));
    }
    std::vector<std::byte> bytes(table.size() * 8);
    for (std::size_t i = 0; i < table.size(); ++i)
        base::store_be(bytes.data() + i * 8, table[i]);
    const auto offset = (start + blocks) << geometry.cluster_bits;
    const auto from = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(node_.file_->write(offset, from, Durability::Durable));
    node_.refcounts_.replace(geometry, std::move(table), offset, clusters);
    node_.fresh_from_ = std::max(node_.fresh_from_, offset + bytes.size());
    DOPPEL_AWAIT_VOID(node_.write_header());
    result_.corruptions_fixed = result_.corruptions;
    result_.leaks_fixed = result_.leaks;
    co_return {};
}

Task<void> Checker::count_all() {
    DOPPEL_AWAIT_VOID(count_active());
    DOPPEL_AWAIT_VOID(count_snapshots());
    DOPPEL_AWAIT_VOID(count_tables());
    count_bitmaps();
    // From here on a repair must not be undone by what is read anew.
    if (repair_ == Repair::All)
        DOPPEL_AWAIT_VOID(node_.l2_.write_dirty());
    count_refcount_structure();
    co_return {};
}

Result<void> Checker::require_fit(std::uint64_t most) const {
    for (std::uint64_t cluster = 0; cluster < references_.end(); ++cluster)
        if (const auto count = without_structure(cluster); count > most)
            return base::fail(
                Errc::Unsupported,
                fmt::format("cluster {} has {} references, with these refcount_bits {} would fit",
                            cluster, count, most),
                "Delete snapshots, or give more refcount_bits.");
    return {};
}

Task<void> Checker::change_width(unsigned order) {
    DOPPEL_AWAIT_VOID(count_all());
    if (result_.corruptions != 0)
        co_return base::fail(Errc::Corrupt, result_.findings.front(),
                             "Repair the image with check -r all.");
    auto wanted = node_.geometry_;
    wanted.refcount_order = order;
    DOPPEL_CO_TRY_VOID(require_fit(wanted.max_refcount()));
    const auto old = std::exchange(node_.geometry_, wanted);
    node_.header_.refcount_order = order;
    auto rebuilding = rebuild();
    auto done = co_await rebuilding;
    if (!done) {
        node_.geometry_ = old;
        node_.header_.refcount_order = old.refcount_order;
    }
    co_return done;
}

Task<CheckResult> Checker::run(Repair repair) {
    repair_ = repair;
    result_.total_clusters = node_.geometry_.clusters_for(node_.size());
    DOPPEL_AWAIT_VOID(count_all());
    result_.image_end_offset = references_.end() << node_.geometry_.cluster_bits;
    DOPPEL_AWAIT_VOID(compare());
    DOPPEL_AWAIT_VOID(check_flags());
    if (structure_broken_ && repair == Repair::All)
        DOPPEL_AWAIT_VOID(rebuild());
    if (repair == Repair::None)
        co_return std::move(result_);
    node_.barrier_ = true;
    node_.corrupt_ = false;
    DOPPEL_AWAIT_VOID(node_.commit_all());
    if (repair == Repair::All && result_.corruptions == result_.corruptions_fixed &&
        (node_.header_.incompatible & (incompatible::kDirty | incompatible::kCorrupt)) != 0)
        DOPPEL_AWAIT_VOID(node_.set_incompatible(node_.header_.incompatible &
                                                 ~(incompatible::kDirty | incompatible::kCorrupt)));
    co_return std::move(result_);
}

Task<CheckResult> Qcow2Node::check(Repair repair) {
    if (repair != Repair::None && read_only())
        co_return base::fail(Errc::PermissionDenied,
                             fmt::format("'{}' is open for reading only", name()));
    Checker checker{*this};
    DOPPEL_AWAIT(result, checker.run(repair));
    co_return std::move(result);
}

} // namespace doppel::block::qcow2
