// SPDX-License-Identifier: Apache-2.0
/// Internal snapshots. Between the change of the refcounts and that of the copied flags the image
/// contradicts itself; the dirty bit stands for that time, and whoever opens it next repairs it.
#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {

/// An operation that ends half-way leaves memory and file apart: nothing is written any more, and
/// the dirty bit on disk makes the next opener repair.
class AllOrNothing {
public:
    explicit AllOrNothing(bool& broken) : broken_{broken} {}
    AllOrNothing(const AllOrNothing&) = delete;
    AllOrNothing& operator=(const AllOrNothing&) = delete;
    ~AllOrNothing() { broken_ = broken_ || !done_; }
    void done() { done_ = true; }

private:
    bool& broken_;
    bool done_ = false;
};

} // namespace

Task<std::vector<SnapshotInfo>> Qcow2Node::list_snapshots() {
    std::vector<SnapshotInfo> list;
    for (const auto& snapshot : snapshots_)
        list.push_back({snapshot.id, snapshot.name, snapshot.vm_state_bytes,
                        std::int64_t{snapshot.seconds} * 1'000'000'000 + snapshot.nanoseconds,
                        snapshot.vm_clock_ns, snapshot.disk_bytes});
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

Task<void> Qcow2Node::guard_begin() {
    DOPPEL_AWAIT_VOID(commit_all());
    if (header_.version >= 3 && !header_.has(incompatible::kDirty))
        DOPPEL_AWAIT_VOID(set_incompatible(header_.incompatible | incompatible::kDirty));
    co_return {};
}

Task<void> Qcow2Node::guard_end() {
    DOPPEL_AWAIT_VOID(commit_all());
    if (!dirty_marked_ && header_.has(incompatible::kDirty))
        DOPPEL_AWAIT_VOID(set_incompatible(header_.incompatible & ~incompatible::kDirty));
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

/// The flags lie in a table that a snapshot may share: it is changed in place, not copied.
Task<void> Qcow2Node::refresh_table(std::uint64_t l1_index) {
    const auto begin = l1_index * geometry_.l2_span();
    const auto table = l1_[l1_index] & kOffsetMask;
    for (auto at = begin; at < begin + geometry_.l2_span(); at += geometry_.cluster()) {
        const auto slice = l2_slice(table, at);
        DOPPEL_AWAIT(bytes, l2_.load(slice));
        auto entry = entry_in(bytes, at);
        DOPPEL_AWAIT(changed, refreshed_entry(entry));
        if (!changed)
            continue;
        DOPPEL_AWAIT(again, l2_.load(slice));
        store_entry(again, at, entry);
        l2_.mark_dirty(slice);
    }
    DOPPEL_AWAIT(references, refcounts_.get(table >> geometry_.cluster_bits));
    const auto word = references == 1 ? table | kCopied : table;
    if (word != l1_[l1_index])
        dirty_l1_.insert(l1_index);
    l1_[l1_index] = word;
    co_return {};
}

Task<void> Qcow2Node::refresh_copied() {
    barrier_ = true;
    for (std::uint64_t i = 0; i < l1_.size(); ++i) {
        if ((l1_[i] & kOffsetMask) == 0)
            continue;
        DOPPEL_AWAIT_VOID(refresh_table(i));
        DOPPEL_AWAIT_VOID(commit_if_pressed());
    }
    co_return {};
}

/// A new table takes effect by one write of the header's two fields, which lie in one sector.
Task<void> Qcow2Node::write_snapshot_table(std::vector<Snapshot> table) {
    const auto bytes = serialize_snapshots(table);
    if (bytes.size() > kMaxSnapshotTableBytes || table.size() > 65536)
        co_return base::fail(Errc::OutOfRange, fmt::format("'{}' holds no more snapshots", name()));
    std::uint64_t offset = 0;
    if (!table.empty()) {
        DOPPEL_AWAIT(place, allocate_metadata(bytes.size()));
        offset = place;
        const auto from = IoBuffer::of(bytes);
        DOPPEL_AWAIT_VOID(file_->write(offset, from, Durability::Cached));
    }
    DOPPEL_AWAIT_VOID(commit()); // flushes the table too
    std::array<std::byte, 12> fields{};
    base::store_be(fields.data(), static_cast<std::uint32_t>(table.size()));
    base::store_be(fields.data() + 4, offset);
    const auto from = IoBuffer::of(fields);
    DOPPEL_AWAIT_VOID(file_->write(kOffsetOfSnapshots, from, Durability::Durable));
    if (header_.snapshot_count > 0)
        free_later(header_.snapshots_offset >> geometry_.cluster_bits,
                   geometry_.clusters_for(serialize_snapshots(snapshots_).size()), false);
    header_.snapshot_count = static_cast<std::uint32_t>(table.size());
    header_.snapshots_offset = offset;
    snapshots_ = std::move(table);
    co_return {};
}

Task<void> Qcow2Node::create_snapshot(std::string wanted, std::int64_t time_ns) {
    if (data_file_)
        co_return base::fail(Errc::Unsupported,
                             "an image with an external data file has no internal snapshots");
    if (wanted.size() > 0xffff)
        co_return base::fail(Errc::InvalidArgument, "the snapshot's name is too long");
    auto wait = guests_.lock(0, ~std::uint64_t{0}, RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    auto metadata_wait = metadata_.lock();
    auto metadata_guard = co_await metadata_wait;
    DOPPEL_AWAIT_VOID(guard_begin());
    AllOrNothing operation{corrupt_};
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
    std::vector<std::byte> bytes(std::max<std::uint64_t>(l1_.size() * 8, 1));
    DOPPEL_AWAIT(offset, allocate_metadata(bytes.size()));
    snapshot.l1_offset = offset;
    DOPPEL_AWAIT_VOID(add_references(l1_, +1));
    DOPPEL_AWAIT_VOID(refresh_copied());
    for (std::size_t i = 0; i < l1_.size(); ++i)
        base::store_be(bytes.data() + i * 8, l1_[i]);
    const auto from = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(file_->write(offset, from, Durability::Cached));
    auto table = snapshots_;
    table.push_back(std::move(snapshot));
    DOPPEL_AWAIT_VOID(write_snapshot_table(std::move(table)));
    DOPPEL_AWAIT_VOID(guard_end());
    operation.done();
    co_return {};
}

Task<void> Qcow2Node::apply_snapshot(std::string wanted) {
    auto wait = guests_.lock(0, ~std::uint64_t{0}, RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    auto metadata_wait = metadata_.lock();
    auto metadata_guard = co_await metadata_wait;
    DOPPEL_CO_TRY(index, find_snapshot(wanted));
    const auto snapshot = snapshots_[index];
    if (header_.version < 3 && snapshot.disk_bytes != size())
        co_return base::fail(Errc::Unsupported,
                             fmt::format("snapshot '{}' has another size, which version 2 images "
                                         "cannot return to",
                                         wanted));
    DOPPEL_AWAIT_VOID(guard_begin());
    AllOrNothing operation{corrupt_};
    DOPPEL_AWAIT(l1, read_l1(snapshot.l1_offset, snapshot.l1_entries));
    for (auto& entry : l1)
        entry &= kOffsetMask;
    l1.resize(std::max<std::size_t>(l1.size(), geometry_.l1_entries_for(snapshot.disk_bytes)));
    DOPPEL_AWAIT_VOID(add_references(l1, +1));
    const auto old = l1_;
    header_.size_bytes = snapshot.disk_bytes;
    DOPPEL_AWAIT_VOID(replace_l1(std::move(l1)));
    DOPPEL_AWAIT_VOID(add_references(old, -1));
    l2_.clear();
    unpacked_.word = 0;
    DOPPEL_AWAIT_VOID(refresh_copied());
    bitmaps_.resized(header_.size_bytes);
    bitmaps_.mark(0, header_.size_bytes);
    DOPPEL_AWAIT_VOID(guard_end());
    operation.done();
    co_return {};
}

Task<void> Qcow2Node::delete_snapshot(std::string wanted) {
    auto wait = guests_.lock(0, ~std::uint64_t{0}, RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    auto metadata_wait = metadata_.lock();
    auto metadata_guard = co_await metadata_wait;
    DOPPEL_CO_TRY(index, find_snapshot(wanted));
    DOPPEL_AWAIT_VOID(guard_begin());
    AllOrNothing operation{corrupt_};
    auto table = snapshots_;
    const auto snapshot = table[index];
    table.erase(table.begin() + static_cast<std::ptrdiff_t>(index));
    DOPPEL_AWAIT(l1, read_l1(snapshot.l1_offset, snapshot.l1_entries));
    DOPPEL_AWAIT_VOID(write_snapshot_table(std::move(table)));
    DOPPEL_AWAIT_VOID(add_references(l1, -1));
    DOPPEL_AWAIT_VOID(refcounts_.add(
        snapshot.l1_offset >> geometry_.cluster_bits,
        geometry_.clusters_for(std::max<std::uint64_t>(snapshot.l1_entries * 8ull, 1)), -1));
    l2_.clear(); // tables of the snapshot may be data tomorrow
    unpacked_.word = 0;
    DOPPEL_AWAIT_VOID(refresh_copied());
    DOPPEL_AWAIT_VOID(guard_end());
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
