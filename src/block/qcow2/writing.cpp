// SPDX-License-Identifier: Apache-2.0
/// Guest writes: in place where the cluster is ours alone, else to new clusters.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {
constexpr std::uint64_t kMaxAllocation = 8u << 20; // guest bytes that one plan covers
}

Task<void> Qcow2Node::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    DOPPEL_CO_TRY_VOID(require_writable());
    bitmaps_.mark(offset, from.size());
    for (std::size_t done = 0; done < from.size();) {
        DOPPEL_AWAIT(part, write_some(offset + done, from.slice(done, from.size() - done)));
        done += part;
    }
    if (durability == Durability::Durable)
        DOPPEL_AWAIT_VOID(flush());
    co_return {};
}

/// Writes what one run or one plan covers; yields how much that was.
Task<std::uint64_t> Qcow2Node::write_some(std::uint64_t offset, IoBuffer from) {
    DOPPEL_CO_TRY_VOID(require_unlocked());
    const auto begin = base::align_down(offset, geometry_.cluster());
    const auto end = base::align_up(offset + from.size(), geometry_.cluster());
    {
        auto wait = guests_.lock(begin, end, RangeLock::Mode::Shared);
        auto guard = co_await wait;
        DOPPEL_AWAIT(run, find_run(offset, from.size()));
        if (run.writable) {
            if (auto clear = check_overlap(run.host, run.length); !clear) {
                DOPPEL_AWAIT_VOID(mark_corrupt());
                co_return std::unexpected(std::move(clear).error());
            }
            DOPPEL_AWAIT_VOID(
                data_->write(run.host, from.slice(0, run.length), Durability::Cached));
            co_return run.length;
        }
    }
    const auto limit = std::min(end, begin + std::max(kMaxAllocation, geometry_.cluster()));
    auto wait = guests_.lock(begin, limit, RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    // Somebody may have allocated it while we waited.
    DOPPEL_AWAIT(run, find_run(offset, std::min<std::uint64_t>(from.size(), limit - offset)));
    if (run.writable) {
        DOPPEL_AWAIT_VOID(data_->write(run.host, from.slice(0, run.length), Durability::Cached));
        co_return run.length;
    }
    DOPPEL_AWAIT(written,
                 write_allocating(
                     offset, from.slice(0, std::min<std::uint64_t>(from.size(), limit - offset))));
    co_return written;
}

/// The caller holds the range exclusively.
Task<std::uint64_t> Qcow2Node::write_allocating(std::uint64_t offset, IoBuffer from) {
    DOPPEL_AWAIT(plan, plan_write(offset, from.size()));
    {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(choose_hosts(plan));
    }
    const auto end =
        std::min(offset + from.size(), plan.guest + (plan.count << geometry_.cluster_bits));
    auto written_task = write_planned(plan, offset, from.slice(0, end - offset));
    auto written = co_await written_task;
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!written) {
        auto undo_task = undo(plan);
        [[maybe_unused]] const auto undone = co_await undo_task; // else a leak
        co_return std::unexpected(std::move(written).error());
    }
    barrier_ = true;
    DOPPEL_AWAIT_VOID(link(plan, cow_begin(plan, offset), cow_end(plan, end)));
    DOPPEL_AWAIT_VOID(commit_if_pressed());
    co_return end - offset;
}

/// Which clusters one allocation replaces: one whose place can be used again, or all up to the
/// next that is ours already.
Task<Qcow2Node::Plan> Qcow2Node::plan_write(std::uint64_t offset, std::uint64_t length) {
    Plan plan;
    plan.guest = base::align_down(offset, geometry_.cluster());
    for (auto at = plan.guest; at < offset + length; at += geometry_.cluster()) {
        DOPPEL_AWAIT(entry, entry_at(at));
        const bool ours = has_host(entry) && entry.copied();
        if (ours && plan.count > 0)
            break;
        plan.old.push_back(entry);
        ++plan.count;
        if (ours) {
            plan.reused = true;
            plan.host = entry.host();
            break;
        }
    }
    co_return plan;
}

/// The metadata lock is held. May shorten the plan to what lies side by side in the file.
Task<void> Qcow2Node::choose_hosts(Plan& plan) {
    if (plan.reused)
        co_return {};
    if (data_file_) { // guest data lies where the guest sees it
        plan.host = plan.guest;
        co_return {};
    }
    DOPPEL_AWAIT_VOID(before_allocation());
    DOPPEL_AWAIT(run, refcounts_.allocate_some(plan.count));
    plan.count = run.count;
    plan.old.resize(run.count);
    plan.host = run.first << geometry_.cluster_bits;
    plan.fresh = can_be_fresh_ && plan.host >= fresh_from_;
    const auto bytes = run.count << geometry_.cluster_bits;
    fresh_from_ = std::max(fresh_from_, plan.host + bytes);
    if (auto clear = check_overlap(plan.host, bytes); !clear) {
        DOPPEL_AWAIT_VOID(mark_corrupt());
        co_return std::unexpected(std::move(clear).error());
    }
    co_return {};
}

/// Whether the cluster's content must come along in full when it gets a new place.
bool Qcow2Node::moved(const Entry& old) const {
    return !geometry_.extended || old.compressed() || (old.bits & 0xffffffff) != 0;
}

std::uint64_t Qcow2Node::cow_begin(const Plan& plan, std::uint64_t offset) const {
    if (!plan.reused && moved(plan.old.front()))
        return plan.guest;
    return base::align_down(offset, geometry_.unit());
}

std::uint64_t Qcow2Node::cow_end(const Plan& plan, std::uint64_t end) const {
    if (!plan.reused && moved(plan.old.back()))
        return plan.guest + (plan.count << geometry_.cluster_bits);
    return base::align_up(end, geometry_.unit());
}

/// The guest's bytes and what surrounds them in their clusters, in one write.
Task<void> Qcow2Node::write_planned(const Plan& plan, std::uint64_t offset, IoBuffer from) {
    const auto end = offset + from.size();
    AlignedMemory head{offset - cow_begin(plan, offset)};
    AlignedMemory tail{cow_end(plan, end) - end};
    if (head.size() > 0)
        DOPPEL_AWAIT_VOID(read_mapped(offset - head.size(), IoBuffer{head.span()}));
    if (tail.size() > 0) {
        // What lies behind the disk's end reads as zeroes and stays so.
        const auto inside = std::min<std::uint64_t>(tail.size(), size() - std::min(size(), end));
        DOPPEL_AWAIT_VOID(read_mapped(end, IoBuffer{tail.span().first(inside)}));
    }
    std::vector<iovec> pieces;
    auto start = offset;
    if (head.size() > 0 && !(plan.fresh && all_zero(head.span()))) {
        pieces.push_back({head.data(), head.size()});
        start -= head.size();
    }
    const auto middle = from.pieces();
    pieces.insert(pieces.end(), middle.begin(), middle.end());
    if (tail.size() > 0 && !(plan.fresh && all_zero(tail.span())))
        pieces.push_back({tail.data(), tail.size()});
    const IoBuffer whole{pieces};
    DOPPEL_AWAIT_VOID(data_->write(plan.host + (start - plan.guest), whole, Durability::Cached));
    co_return {};
}

/// Gives back what choose_hosts() took. The metadata lock is held.
Task<void> Qcow2Node::undo(const Plan& plan) {
    if (plan.reused || data_file_)
        co_return {};
    DOPPEL_AWAIT_VOID(refcounts_.add(plan.host >> geometry_.cluster_bits, plan.count, -1));
    co_return {};
}

Entry Qcow2Node::linked_entry(const Plan& plan, std::uint64_t index, std::uint64_t begin,
                              std::uint64_t end) const {
    const auto guest = plan.guest + (index << geometry_.cluster_bits);
    Entry entry{(plan.host + (index << geometry_.cluster_bits)) | kCopied, 0};
    if (!geometry_.extended)
        return entry;
    const auto first = (std::max(begin, guest) - guest) / geometry_.unit();
    const auto last = (std::min(end, guest + geometry_.cluster()) - guest) / geometry_.unit();
    const auto written = ((std::uint64_t{1} << last) - 1) & ~((std::uint64_t{1} << first) - 1);
    const auto& old = plan.old[index];
    const auto kept = old.compressed() ? 0 : old.bits;
    entry.bits = (kept & ~(written << kSubclusters)) | written;
    return entry;
}

/// Makes the tables say what was written. The metadata lock is held.
Task<void> Qcow2Node::link(const Plan& plan, std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t i = 0; i < plan.count; ++i) {
        const auto guest = plan.guest + (i << geometry_.cluster_bits);
        const auto entry = linked_entry(plan, i, begin, end);
        DOPPEL_AWAIT_VOID(set_entry(guest, entry));
        if (!plan.reused)
            free_entry(plan.old[i], false);
    }
    co_return {};
}

/// Refcounts lie sometimes: what is about to be overwritten must not be metadata.
Result<void> Qcow2Node::check_overlap(std::uint64_t host, std::uint64_t length) {
    if (data_file_)
        return {};
    const auto hits = [&](std::uint64_t offset, std::uint64_t bytes) {
        return bytes != 0 && host < offset + bytes && offset < host + length;
    };
    const bool hit = hits(0, geometry_.cluster()) || hits(header_.l1_offset, l1_.size() * 8) ||
                     hits(header_.snapshots_offset, std::uint64_t{header_.snapshot_count} * 40) ||
                     hits(header_.bitmaps.directory_offset, header_.bitmaps.directory_bytes) ||
                     hits(header_.crypto.offset, header_.crypto.bytes) ||
                     l2_.overlaps(host, length) || refcounts_.overlaps(host, length);
    if (!hit)
        return {};
    return base::fail(
        Errc::Corrupt,
        fmt::format("'{}': guest data would overwrite metadata at {:#x}: the image is "
                    "corrupt",
                    name(), host),
        "Repair it with check -r all.");
}

Task<std::uint64_t> Qcow2Node::allocate_metadata(std::uint64_t bytes) {
    DOPPEL_AWAIT_VOID(before_allocation());
    const auto count = geometry_.clusters_for(bytes);
    DOPPEL_AWAIT(first, refcounts_.allocate(count));
    const auto offset = first << geometry_.cluster_bits;
    const auto length = count << geometry_.cluster_bits;
    fresh_from_ = std::max(fresh_from_, offset + length);
    barrier_ = true;
    if (auto clear = check_overlap(offset, length); !clear) {
        DOPPEL_AWAIT_VOID(mark_corrupt());
        co_return std::unexpected(std::move(clear).error());
    }
    co_return offset;
}

/// A table of our own for this L1 entry: empty, or a copy of the one that a snapshot shares.
Task<void> Qcow2Node::new_l2_table(std::uint64_t l1_index) {
    const auto old = l1_[l1_index] & kOffsetMask;
    DOPPEL_AWAIT(offset, allocate_metadata(geometry_.cluster()));
    l2_.create(offset, geometry_.cluster());
    for (std::uint64_t at = 0; old != 0 && at < geometry_.cluster(); at += l2_.slice_bytes()) {
        DOPPEL_AWAIT(from, l2_.load(old + at));
        std::copy_n(from, l2_.slice_bytes(), l2_.find(offset + at));
    }
    l1_[l1_index] = offset | kCopied;
    dirty_l1_.insert(l1_index);
    if (old != 0)
        free_later(old >> geometry_.cluster_bits, 1, false);
    co_return {};
}

Task<std::byte*> Qcow2Node::writable_slice(std::uint64_t offset) {
    const auto index = offset / geometry_.l2_span();
    DOPPEL_CO_TRY(table, l2_table(offset));
    if (table == 0 || (l1_[index] & kCopied) == 0)
        DOPPEL_AWAIT_VOID(new_l2_table(index));
    DOPPEL_AWAIT(slice, l2_.load(l2_slice(l1_[index] & kOffsetMask, offset)));
    co_return slice;
}

Task<void> Qcow2Node::set_entry(std::uint64_t offset, Entry entry) {
    DOPPEL_AWAIT(slice, writable_slice(offset));
    store_entry(slice, offset, entry);
    l2_.mark_dirty(l2_slice(l1_[offset / geometry_.l2_span()] & kOffsetMask, offset));
    co_return {};
}

void Qcow2Node::free_entry(const Entry& entry, bool discard) {
    if (entry.compressed()) {
        const auto range = compressed_range(entry.word, geometry_.cluster_bits);
        const auto first = range.offset >> geometry_.cluster_bits;
        const auto last = (range.offset + range.bytes - 1) >> geometry_.cluster_bits;
        free_later(first, last - first + 1, discard);
        unpacked_.word = 0;
    } else if (has_host(entry) && !data_file_) {
        free_later(entry.host() >> geometry_.cluster_bits, 1, discard);
    }
}

void Qcow2Node::free_later(std::uint64_t first, std::uint64_t count, bool discard) {
    if (!freed_.empty() && freed_.back().first + freed_.back().count == first &&
        freed_.back().discard == discard)
        freed_.back().count += count;
    else
        freed_.push_back({first, count, discard});
}

} // namespace doppel::block::qcow2
