// SPDX-License-Identifier: Apache-2.0
/// From guest offsets to entries and runs.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

bool Qcow2Node::has_host(const Entry& entry) const {
    // In an external data file offset 0 is a place like any other; the copied bit tells.
    return !entry.compressed() && (entry.host() != 0 || (data_file_ && entry.copied()));
}

Kind Qcow2Node::kind_of(const Entry& entry, unsigned subcluster) const {
    if (entry.compressed())
        return Kind::Compressed;
    if (geometry_.extended) {
        if ((entry.bits >> subcluster & 1) != 0)
            return Kind::Data;
        return (entry.bits >> (kSubclusters + subcluster) & 1) != 0 ? Kind::Zero
                                                                    : Kind::Unallocated;
    }
    if ((entry.word & kZeroFlag) != 0 && header_.version >= 3)
        return Kind::Zero;
    return has_host(entry) ? Kind::Data : Kind::Unallocated;
}

/// An entry that contradicts the specification marks the image corrupt.
Task<void> Qcow2Node::check_entry(Entry entry, std::uint64_t offset) {
    const auto alloc = entry.bits & 0xffffffff;
    const bool unaligned = !entry.compressed() && geometry_.within(entry.host()) != 0;
    const bool contradictory =
        geometry_.extended && !entry.compressed() &&
        ((alloc & entry.bits >> kSubclusters) != 0 || (alloc != 0 && !has_host(entry)));
    if (!unaligned && !contradictory)
        co_return {};
    DOPPEL_AWAIT_VOID(mark_corrupt());
    co_return base::fail(Errc::Corrupt,
                         fmt::format("'{}': the L2 entry {:#018x} at guest offset {:#x} is invalid",
                                     name(), entry.word, offset),
                         "Look at the image with check.");
}

Result<std::uint64_t> Qcow2Node::l2_table(std::uint64_t offset) const {
    const auto index = offset / geometry_.l2_span();
    const auto table = index < l1_.size() ? l1_[index] & kOffsetMask : 0;
    if (geometry_.within(table) != 0)
        return base::fail(Errc::Corrupt,
                          fmt::format("'{}': L1 entry {} points to {:#x}, not to a cluster", name(),
                                      index, table),
                          "Look at the image with check.");
    return table;
}

std::uint64_t Qcow2Node::l2_slice(std::uint64_t table, std::uint64_t offset) const {
    const auto index = offset % geometry_.l2_span() >> geometry_.cluster_bits;
    return table + base::align_down(index * geometry_.entry_bytes(), l2_.slice_bytes());
}

Entry Qcow2Node::entry_in(const std::byte* slice, std::uint64_t offset) const {
    const auto index = offset % geometry_.l2_span() >> geometry_.cluster_bits;
    const auto* at = slice + (index * geometry_.entry_bytes() & (l2_.slice_bytes() - 1));
    return {base::load_be<std::uint64_t>(at),
            geometry_.extended ? base::load_be<std::uint64_t>(at + 8) : 0};
}

void Qcow2Node::store_entry(std::byte* slice, std::uint64_t offset, const Entry& entry) const {
    const auto index = offset % geometry_.l2_span() >> geometry_.cluster_bits;
    auto* at = slice + (index * geometry_.entry_bytes() & (l2_.slice_bytes() - 1));
    base::store_be(at, entry.word);
    if (geometry_.extended)
        base::store_be(at + 8, entry.bits);
}

Task<Entry> Qcow2Node::entry_at(std::uint64_t offset) {
    DOPPEL_CO_TRY(table, l2_table(offset));
    if (table == 0)
        co_return Entry{};
    DOPPEL_AWAIT(slice, l2_.load(l2_slice(table, offset)));
    const auto entry = entry_in(slice, offset);
    DOPPEL_AWAIT_VOID(check_entry(entry, offset));
    co_return entry;
}

/// As far as one slice reaches.
Qcow2Node::Run Qcow2Node::run_in_slice(const std::byte* slice, std::uint64_t offset,
                                       std::uint64_t length) const {
    const auto unit = geometry_.unit();
    const auto slice_span = (l2_.slice_bytes() / geometry_.entry_bytes()) << geometry_.cluster_bits;
    const auto end = std::min(offset + length, base::align_down(offset, slice_span) + slice_span);
    Run run;
    run.entry = entry_in(slice, offset);
    for (auto at = offset; at < end;) {
        const auto entry = entry_in(slice, at);
        const auto within = geometry_.within(at);
        const auto kind = kind_of(entry, static_cast<unsigned>(within / unit));
        const auto host = entry.host() + within;
        if (at == offset) {
            run.kind = kind;
            run.host = host;
            run.writable = kind == Kind::Data && entry.copied();
        } else if (kind != run.kind || geometry_.within(entry.host()) != 0 ||
                   (kind == Kind::Data &&
                    (host != run.host + (at - offset) || entry.copied() != run.writable))) {
            break;
        }
        const auto step =
            kind == Kind::Compressed ? geometry_.cluster() - within : unit - (at & (unit - 1));
        run.length = std::min(at + step, end) - offset;
        if (kind == Kind::Compressed)
            break;
        at += step;
    }
    return run;
}

Task<Qcow2Node::Run> Qcow2Node::find_run(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_CO_TRY(table, l2_table(offset));
    if (table == 0) {
        Run run;
        auto end = offset;
        while (end < offset + length) {
            DOPPEL_CO_TRY(next, l2_table(end));
            if (next != 0)
                break;
            end = base::align_down(end, geometry_.l2_span()) + geometry_.l2_span();
        }
        run.length = std::min(end - offset, length);
        co_return run;
    }
    DOPPEL_AWAIT(slice, l2_.load(l2_slice(table, offset)));
    const auto run = run_in_slice(slice, offset, length);
    DOPPEL_AWAIT_VOID(check_entry(run.entry, offset));
    co_return run;
}

Task<Extent> Qcow2Node::status(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(run, find_run(offset, length));
    Extent extent;
    extent.length = run.length;
    switch (run.kind) {
    case Kind::Data:
        if (!luks_) // else nobody can use what lies there
            extent.host = run.host;
        extent.place = data_;
        break;
    case Kind::Compressed: extent.content = Content::Compressed; break;
    case Kind::Zero:
        extent.content = Content::Zero;
        if (has_host(run.entry))
            extent.host = run.entry.host() + geometry_.within(offset);
        break;
    case Kind::Unallocated:
        extent.allocated = extent.present = false;
        extent.content = Content::Zero;
        if (!backing_ || offset >= backing_->size())
            break;
        DOPPEL_AWAIT(behind,
                     backing_->status(offset, std::min(run.length, backing_->size() - offset)));
        extent = behind;
        extent.allocated = false;
        ++extent.depth;
        break;
    }
    co_return extent;
}

} // namespace doppel::block::qcow2
