// SPDX-License-Identifier: Apache-2.0
/// Internal snapshots. They change the refcounts and copied flags of the whole disk; an image in
/// which some have changed and others have not contradicts itself. So all of it changes in copies
/// (of the refcount table and its blocks, and of the L2 tables that change), and one write of the
/// header's first sector makes them count, with the L1 table, the snapshot table and the size.
#include <algorithm>
#include <charconv>
#include <utility>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/all_or_nothing.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

Task<std::vector<SnapshotInfo>> Qcow2Node::list_snapshots() {
    std::vector<SnapshotInfo> list;
    for (const auto& snapshot : snapshots_)
        list.push_back({snapshot.id, snapshot.name, snapshot.vm_state_bytes,
                        std::int64_t{snapshot.seconds} * 1'000'000'000 + snapshot.nanoseconds,
                        snapshot.vm_clock_ns, snapshot.disk_bytes, snapshot.icount});
    return ready<std::vector<SnapshotInfo>>(std::move(list));
}

/// By name first, then by ID, as QEMU looks.
Result<std::size_t> Qcow2Node::find_snapshot(const std::string& wanted) const {
    for (const auto field : {&Snapshot::name, &Snapshot::id}) {
        const auto found = std::ranges::find(snapshots_, wanted, field);
        if (found != snapshots_.end())
            return static_cast<std::size_t>(found - snapshots_.begin());
    }
    return base::fail(Errc::NotFound, fmt::format("'{}' has no snapshot '{}'", name(), wanted));
}

Task<void> Qcow2Node::detach_tables() {
    DOPPEL_AWAIT_VOID(refcounts_.detach());
    detached_.clear();
    co_return {};
}

Task<std::vector<std::uint64_t>> Qcow2Node::read_l1(std::uint64_t offset, std::uint64_t entries) {
    if (geometry_.within(offset) != 0 || offset >= file_->size())
        co_return base::fail(
            Errc::Corrupt,
            fmt::format("'{}': the L1 table of a snapshot lies at {:#x}", name(), offset));
    std::vector<std::uint64_t> table(entries);
    const std::span<std::uint64_t> words{table};
    DOPPEL_AWAIT_VOID(file_->read(offset, IoBuffer{std::as_writable_bytes(words)}));
    for (auto& word : table)
        word = base::load_be<std::uint64_t>(&word);
    co_return table;
}

/// Everything that the table names counts one more, or one less.
Task<void> Qcow2Node::add_table_references(std::uint64_t table, int delta) {
    std::vector<std::byte> bytes(geometry_.cluster());
    DOPPEL_AWAIT_VOID(file_->read(table, IoBuffer{bytes}));
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    for (std::uint64_t at = 0; at < bytes.size(); at += geometry_.entry_bytes()) {
        const Entry entry{base::load_be<std::uint64_t>(bytes.data() + at), 0};
        auto begin = entry.host() >> geometry_.cluster_bits;
        std::uint64_t length = begin != 0 ? 1 : 0;
        if (entry.compressed()) {
            const auto range = compressed_range(entry.word, geometry_.cluster_bits);
            begin = range.offset >> geometry_.cluster_bits;
            length = ((range.offset + range.bytes - 1) >> geometry_.cluster_bits) - begin + 1;
        }
        if (length > 0 && begin == first + count) {
            count += length;
            continue;
        }
        if (length == 0)
            continue;
        DOPPEL_AWAIT_VOID(refcounts_.add(first, count, delta));
        first = begin;
        count = length;
    }
    DOPPEL_AWAIT_VOID(refcounts_.add(first, count, delta));
    DOPPEL_AWAIT_VOID(refcounts_.add(table >> geometry_.cluster_bits, 1, delta));
    co_return {};
}

Task<void> Qcow2Node::add_references(const std::vector<std::uint64_t>& l1, int delta) {
    for (const auto entry : l1) {
        const auto table = entry & kOffsetMask;
        if (table == 0)
            continue;
        if (geometry_.within(table) != 0 || table >= file_->size())
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("'{}': an L1 entry points to {:#x}", name(), table));
        DOPPEL_AWAIT_VOID(add_table_references(table, delta));
    }
    co_return {};
}

/// Corrects the copied flag; whether that changed the entry.
Task<bool> Qcow2Node::refreshed_entry(Entry& entry) {
    if (entry.compressed() || entry.host() == 0)
        co_return false;
    DOPPEL_AWAIT(references, refcounts_.get(entry.host() >> geometry_.cluster_bits));
    const auto word = references == 1 ? entry.word | kCopied : entry.word & ~kCopied;
    const bool changed = word != entry.word;
    entry.word = word;
    co_return changed;
}

/// The active L1 table gets a copy of the table, which may change before it counts.
Task<void> Qcow2Node::detach_table(std::uint64_t l1_index) {
    DOPPEL_AWAIT_VOID(new_l2_table(l1_index));
    detached_.insert(l1_[l1_index] & kOffsetMask);
    if (l2_.pressed())
        DOPPEL_AWAIT_VOID(l2_.write_dirty());
    co_return {};
}

Task<void> Qcow2Node::refresh_table(std::uint64_t l1_index) {
    const auto begin = l1_index * geometry_.l2_span();
    for (auto at = begin; at < begin + geometry_.l2_span(); at += geometry_.cluster()) {
        DOPPEL_AWAIT(bytes, l2_.load(l2_slice(l1_[l1_index] & kOffsetMask, at)));
        auto entry = entry_in(bytes, at);
        DOPPEL_AWAIT(changed, refreshed_entry(entry));
        if (!changed)
            continue;
        if (!detached_.contains(l1_[l1_index] & kOffsetMask))
            DOPPEL_AWAIT_VOID(detach_table(l1_index));
        const auto slice = l2_slice(l1_[l1_index] & kOffsetMask, at);
        DOPPEL_AWAIT(again, l2_.load(slice));
        store_entry(again, at, entry);
        l2_.mark_dirty(slice);
    }
    const auto table = l1_[l1_index] & kOffsetMask;
    DOPPEL_AWAIT(references, refcounts_.get(table >> geometry_.cluster_bits));
    l1_[l1_index] = references == 1 ? table | kCopied : table;
    co_return {};
}

/// Makes all copied flags agree with the refcounts.
Task<void> Qcow2Node::refresh_copied() {
    for (std::uint64_t i = 0; i < l1_.size(); ++i) {
        if ((l1_[i] & kOffsetMask) == 0)
            continue;
        DOPPEL_AWAIT_VOID(refresh_table(i));
        if (l2_.pressed())
            DOPPEL_AWAIT_VOID(l2_.write_dirty());
    }
    co_return {};
}

/// Zero for nothing.
Task<std::uint64_t> Qcow2Node::write_to_new_place(std::vector<std::byte> bytes) {
    if (bytes.empty())
        co_return std::uint64_t{0};
    DOPPEL_AWAIT(offset, allocate_metadata(bytes.size()));
    const auto from = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(file_->write(offset, from, Durability::Cached));
    co_return offset;
}

std::vector<std::byte> Qcow2Node::l1_bytes() const {
    std::vector<std::byte> bytes(l1_.size() * 8);
    for (std::size_t i = 0; i < l1_.size(); ++i)
        base::store_be(bytes.data() + i * 8, l1_[i]);
    return bytes;
}

/// The copies count from now on.
Task<void> Qcow2Node::attach_tables(std::vector<Snapshot> snapshots) {
    const auto bytes = serialize_snapshots(snapshots);
    if (bytes.size() > kMaxSnapshotTableBytes || snapshots.size() > 65536)
        co_return base::fail(Errc::OutOfRange, fmt::format("'{}' holds no more snapshots", name()));
    DOPPEL_AWAIT(table_offset, write_to_new_place(bytes));
    DOPPEL_AWAIT(l1_offset, write_to_new_place(l1_bytes()));
    DOPPEL_AWAIT_VOID(l2_.write_dirty());
    DOPPEL_AWAIT_VOID(refcounts_.write_detached());
    DOPPEL_AWAIT_VOID(file_->flush());
    const auto old = header_;
    header_.snapshot_count = static_cast<std::uint32_t>(snapshots.size());
    header_.snapshots_offset = table_offset;
    header_.l1_entries = static_cast<std::uint32_t>(l1_.size());
    header_.l1_offset = l1_offset;
    DOPPEL_AWAIT_VOID(write_header());
    free_later(old.l1_offset >> geometry_.cluster_bits,
               geometry_.clusters_for(std::uint64_t{old.l1_entries} * 8), false);
    if (old.snapshot_count > 0)
        free_later(old.snapshots_offset >> geometry_.cluster_bits,
                   geometry_.clusters_for(serialize_snapshots(snapshots_).size()), false);
    snapshots_ = std::move(snapshots);
    dirty_l1_.clear();
    DOPPEL_AWAIT_VOID(refcounts_.attach());
    DOPPEL_AWAIT_VOID(commit_all());
    co_return {};
}

Task<void> Qcow2Node::create_snapshot(std::string wanted, std::int64_t time_ns) {
    if (data_file_)
        co_return base::fail(Errc::Unsupported,
                             "an image with an external data file has no internal snapshots");
    const auto most = ~std::uint64_t{0} >> (64 - (1u << header_.refcount_order));
    if (snapshots_.size() + 2 > most)
        co_return base::fail(
            Errc::Unsupported,
            fmt::format("'{}' has refcounts of {} bits, which suffice for {} snapshots", name(),
                        1u << header_.refcount_order, most - 1),
            "Convert it with -o refcount_bits=16.");
    if (wanted.size() > 0xffff)
        co_return base::fail(Errc::InvalidArgument, "the snapshot's name is too long");
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    DOPPEL_AWAIT_VOID(commit_all());
    AllOrNothing operation{broken_};
    DOPPEL_AWAIT_VOID(detach_tables());
    std::uint64_t id = 0;
    for (const auto& other : snapshots_) {
        std::uint64_t number = 0;
        std::from_chars(other.id.data(), other.id.data() + other.id.size(), number);
        id = std::max(id, number);
    }
    Snapshot snapshot;
    snapshot.id = std::to_string(id + 1);
    snapshot.name = std::move(wanted);
    snapshot.seconds = static_cast<std::uint32_t>(time_ns / 1'000'000'000);
    snapshot.nanoseconds = static_cast<std::uint32_t>(time_ns % 1'000'000'000);
    snapshot.disk_bytes = size();
    snapshot.l1_entries = static_cast<std::uint32_t>(l1_.size());
    for (std::uint64_t i = 0; i < l1_.size(); ++i)
        if ((l1_[i] & kCopied) != 0) // its flags will fall: disk and snapshot share the copy
            DOPPEL_AWAIT_VOID(detach_table(i));
    DOPPEL_AWAIT_VOID(l2_.write_dirty());
    DOPPEL_AWAIT_VOID(add_references(l1_, +1));
    DOPPEL_AWAIT_VOID(refresh_copied());
    auto bytes = l1_bytes();
    bytes.resize(std::max<std::size_t>(bytes.size(), 1)); // it has a place even if it is empty
    DOPPEL_AWAIT(offset, write_to_new_place(std::move(bytes)));
    snapshot.l1_offset = offset;
    auto table = snapshots_;
    table.push_back(std::move(snapshot));
    DOPPEL_AWAIT_VOID(attach_tables(std::move(table)));
    operation.done();
    co_return {};
}

Task<void> Qcow2Node::apply_snapshot(std::string wanted) {
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    DOPPEL_CO_TRY(index, find_snapshot(wanted));
    const auto snapshot = snapshots_[index];
    if (header_.version < 3 && snapshot.disk_bytes != size())
        co_return base::fail(Errc::Unsupported,
                             fmt::format("snapshot '{}' has another size, which version 2 images "
                                         "cannot return to",
                                         wanted));
    DOPPEL_AWAIT_VOID(commit_all());
    AllOrNothing operation{broken_};
    DOPPEL_AWAIT_VOID(detach_tables());
    DOPPEL_AWAIT(l1, read_l1(snapshot.l1_offset, snapshot.l1_entries));
    for (auto& entry : l1)
        entry &= kOffsetMask;
    l1.resize(std::max<std::size_t>(l1.size(), geometry_.l1_entries_for(snapshot.disk_bytes)));
    DOPPEL_AWAIT_VOID(add_references(l1, +1));
    DOPPEL_AWAIT_VOID(add_references(l1_, -1));
    header_.size_bytes = snapshot.disk_bytes;
    l1_ = std::move(l1);
    l2_.clear();
    unpacked_.word = 0;
    DOPPEL_AWAIT_VOID(refresh_copied());
    DOPPEL_AWAIT_VOID(attach_tables(snapshots_));
    bitmaps_.resized(header_.size_bytes);
    bitmaps_.mark(0, header_.size_bytes);
    operation.done();
    co_return {};
}

Task<void> Qcow2Node::delete_snapshot(std::string wanted) {
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    DOPPEL_CO_TRY(index, find_snapshot(wanted));
    DOPPEL_AWAIT_VOID(commit_all());
    AllOrNothing operation{broken_};
    DOPPEL_AWAIT_VOID(detach_tables());
    auto table = snapshots_;
    const auto snapshot = table[index];
    table.erase(table.begin() + static_cast<std::ptrdiff_t>(index));
    DOPPEL_AWAIT(l1, read_l1(snapshot.l1_offset, snapshot.l1_entries));
    DOPPEL_AWAIT_VOID(add_references(l1, -1));
    DOPPEL_AWAIT_VOID(refcounts_.add(
        snapshot.l1_offset >> geometry_.cluster_bits,
        geometry_.clusters_for(std::max<std::uint64_t>(snapshot.l1_entries * 8ull, 1)), -1));
    l2_.clear(); // tables of the snapshot may be data tomorrow
    unpacked_.word = 0;
    DOPPEL_AWAIT_VOID(refresh_copied());
    DOPPEL_AWAIT_VOID(attach_tables(std::move(table)));
    operation.done();
    co_return {};
}

Task<void> Qcow2Node::view_snapshot(std::string wanted) {
    DOPPEL_VERIFY(read_only(), "only a read-only node shows a snapshot");
    DOPPEL_CO_TRY(index, find_snapshot(wanted));
    const auto& snapshot = snapshots_[index];
    DOPPEL_AWAIT(l1, read_l1(snapshot.l1_offset, snapshot.l1_entries));
    l1.resize(std::max<std::size_t>(l1.size(), geometry_.l1_entries_for(snapshot.disk_bytes)));
    l1_ = std::move(l1);
    header_.size_bytes = snapshot.disk_bytes;
    co_return {};
}

} // namespace doppel::block::qcow2
