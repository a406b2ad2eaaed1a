// SPDX-License-Identifier: Apache-2.0
/// Writing zeroes and discarding: mostly a matter of the tables.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {
constexpr std::uint64_t kStep = std::uint64_t{1} << 30; // guest bytes under one lock
}

/// What becomes of a cluster's entry; nothing: it stays.
std::optional<Entry> Qcow2Node::emptied(const Entry& entry, Emptying how) const {
    const Entry unallocated{};
    const Entry zero =
        geometry_.extended ? Entry{0, ~std::uint64_t{0} << kSubclusters} : Entry{kZeroFlag, 0};
    const bool vacant = entry.word == 0 && entry.bits == 0;
    if (how == Emptying::Unallocate || header_.version < 3 || (vacant && !backing_))
        return vacant ? std::nullopt : std::optional{unallocated};
    if (how == Emptying::ZeroKeep && has_host(entry) && entry.copied())
        return geometry_.extended ? Entry{entry.word, zero.bits} : Entry{entry.word | kZeroFlag, 0};
    if (how == Emptying::Discard && !backing_)
        return unallocated;
    if (how == Emptying::Discard && vacant)
        return std::nullopt; // a hint is no reason to hide the backing file
    return entry == zero ? std::nullopt : std::optional{zero};
}

/// Whole clusters; the range and the metadata are locked.
Task<void> Qcow2Node::empty_range(std::uint64_t begin, std::uint64_t end, Emptying how) {
    for (auto at = begin; at < end; at += geometry_.cluster()) {
        DOPPEL_CO_TRY(table, l2_table(at));
        if (table == 0 && !emptied({}, how)) { // nothing here: on to the next table
            at = base::align_down(at, geometry_.l2_span()) + geometry_.l2_span() -
                 geometry_.cluster();
            continue;
        }
        DOPPEL_AWAIT(entry, entry_at(at));
        const auto changed = emptied(entry, how);
        if (!changed)
            continue;
        DOPPEL_AWAIT_VOID(set_entry(at, *changed));
        if (changed->host() == 0)
            free_entry(entry, how != Emptying::ZeroKeep);
    }
    co_return {};
}

Task<void> Qcow2Node::empty_clusters(std::uint64_t begin, std::uint64_t end, Emptying how) {
    for (auto at = begin; at < end; at += kStep) {
        const auto stop = std::min(end, at + kStep);
        auto wait = guests_.lock(at, stop, RangeLock::Mode::Exclusive);
        auto guard = co_await wait;
        auto metadata_wait = metadata_.lock();
        auto metadata_guard = co_await metadata_wait;
        DOPPEL_AWAIT_VOID(empty_range(at, stop, how));
        DOPPEL_AWAIT_VOID(commit_if_pressed());
    }
    co_return {};
}

/// Subclusters of one cluster, by their bits.
Task<void> Qcow2Node::zero_subclusters(std::uint64_t offset, std::uint64_t length) {
    const auto cluster = base::align_down(offset, geometry_.cluster());
    auto wait = guests_.lock(cluster, cluster + geometry_.cluster(), RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    auto metadata_wait = metadata_.lock();
    auto metadata_guard = co_await metadata_wait;
    DOPPEL_AWAIT(entry, entry_at(cluster));
    const auto first = geometry_.within(offset) / geometry_.unit();
    const auto last = first + length / geometry_.unit();
    const auto mask = ((std::uint64_t{1} << last) - 1) & ~((std::uint64_t{1} << first) - 1);
    entry.bits = (entry.bits & ~mask) | mask << kSubclusters;
    DOPPEL_AWAIT_VOID(set_entry(cluster, entry));
    co_return {};
}

/// Less than a cluster: by subclusters, or as bytes unless it reads as zeroes anyway.
Task<void> Qcow2Node::zero_part(std::uint64_t offset, std::uint64_t length) {
    if (geometry_.extended && ((offset | length) & (geometry_.unit() - 1)) == 0) {
        DOPPEL_AWAIT(entry, entry_at(offset));
        if (!entry.compressed()) {
            DOPPEL_AWAIT_VOID(zero_subclusters(offset, length));
            co_return {};
        }
    }
    DOPPEL_AWAIT(extent, status(offset, length));
    if (extent.content == Content::Zero && extent.length == length)
        co_return {};
    const std::vector<std::byte> zeroes(length);
    for (std::uint64_t done = 0; done < length;) {
        const auto from = IoBuffer::of(std::span{zeroes}.subspan(done));
        DOPPEL_AWAIT(part, write_some(offset + done, from));
        done += part;
    }
    co_return {};
}

/// The data file has no tables of its own: zeroes are written there.
Task<void> Qcow2Node::zero_external(std::uint64_t offset, std::uint64_t length) {
    const auto begin = base::align_down(offset, geometry_.cluster());
    const auto end = base::align_up(offset + length, geometry_.cluster());
    auto wait = guests_.lock(begin, end, RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    for (auto at = offset; at < offset + length;) {
        DOPPEL_AWAIT(run, find_run(at, offset + length - at));
        if (run.kind == Kind::Data)
            DOPPEL_AWAIT_VOID(
                data_->write_zeroes(run.host, run.length, Unmap::Keep, Durability::Cached));
        at += run.length;
    }
    if (!backing_)
        co_return {};
    const auto inner_begin = base::align_up(offset, geometry_.cluster());
    const auto inner_end = base::align_down(offset + length, geometry_.cluster());
    auto metadata_wait = metadata_.lock();
    auto metadata_guard = co_await metadata_wait;
    if (inner_begin < inner_end)
        DOPPEL_AWAIT_VOID(empty_range(inner_begin, inner_end, Emptying::ZeroKeep));
    co_return {};
}

Task<void> Qcow2Node::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                   Durability durability) {
    DOPPEL_CO_TRY_VOID(require_writable());
    bitmaps_.mark(offset, length);
    const auto end = offset + length;
    const auto first = std::min(base::align_up(offset, geometry_.cluster()), end);
    // A cluster that the disk's end cuts is whole to us.
    const auto last = end == size() ? std::max(first, end)
                                    : std::max(first, base::align_down(end, geometry_.cluster()));
    if (data_file_)
        DOPPEL_AWAIT_VOID(zero_external(first, last - first));
    const bool tables = !data_file_ && (header_.version >= 3 || !backing_);
    if (tables && first < last)
        DOPPEL_AWAIT_VOID(
            empty_clusters(first, base::align_up(last, geometry_.cluster()),
                           unmap == Unmap::Allow ? Emptying::ZeroUnmap : Emptying::ZeroKeep));
    for (auto at = first; !tables && !data_file_ && at < last; at += geometry_.cluster())
        DOPPEL_AWAIT_VOID(zero_part(at, std::min(geometry_.cluster(), last - at)));
    if (offset < first)
        DOPPEL_AWAIT_VOID(zero_part(offset, first - offset));
    if (last < end)
        DOPPEL_AWAIT_VOID(zero_part(last, end - last));
    if (durability == Durability::Durable)
        DOPPEL_AWAIT_VOID(flush());
    co_return {};
}

Task<void> Qcow2Node::discard(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_CO_TRY_VOID(require_writable());
    const auto end = offset + length;
    const auto first = base::align_up(offset, geometry_.cluster());
    const auto last = end == size() ? base::align_up(end, geometry_.cluster())
                                    : base::align_down(end, geometry_.cluster());
    // Version 2 cannot say "zero" over a backing file; external data stays where it is.
    if (first >= last || data_file_ || (header_.version < 3 && backing_))
        co_return {};
    bitmaps_.mark(offset, length);
    DOPPEL_AWAIT_VOID(empty_clusters(first, last, Emptying::Discard));
    co_return {};
}

Task<void> Qcow2Node::make_empty() {
    bitmaps_.mark(0, size());
    DOPPEL_AWAIT_VOID(
        empty_clusters(0, base::align_up(size(), geometry_.cluster()), Emptying::Unallocate));
    co_return {};
}

} // namespace doppel::block::qcow2
