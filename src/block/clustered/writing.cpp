// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"
#include "block/clustered/clustered_node.hpp"

namespace doppel::block {

namespace {
constexpr std::uint64_t kFillBytes = 1u << 20; // of what is copied up at once
}

Task<void> ClusteredNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    DOPPEL_AWAIT_VOID(before_writing());
    for (std::size_t done = 0; done < from.size();) {
        DOPPEL_AWAIT(written, write_some(offset + done, from.slice(done, from.size() - done)));
        done += written;
    }
    if (durability == Durability::Durable)
        DOPPEL_AWAIT_VOID(flush());
    co_return {};
}

/// Writes what lies in one piece of the disk; yields its length.
Task<std::uint64_t> ClusteredNode::write_some(std::uint64_t offset, IoBuffer from) {
    auto wait =
        guests_.lock(align_down(offset), align_up(offset + from.size()), RangeLock::Mode::Shared);
    auto guard = co_await wait;
    DOPPEL_AWAIT(piece, find_piece(offset, from.size()));
    if (piece.kind == ClusterKind::Data) {
        DOPPEL_AWAIT_VOID(
            file_->write(piece.host, from.slice(0, piece.length), Durability::Cached));
        co_return piece.length;
    }
    guard.unlock();
    DOPPEL_AWAIT(written, write_exclusive(offset, from.slice(0, piece.length)));
    co_return written;
}

Task<std::uint64_t> ClusteredNode::write_exclusive(std::uint64_t offset, IoBuffer from) {
    auto wait = guests_.lock(align_down(offset), align_up(offset + from.size()),
                             RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    DOPPEL_CO_TRY_VOID(require_whole());
    DOPPEL_AWAIT(run, find_run(offset, from.size()));
    const auto part = from.slice(0, run.length);
    switch (run.clusters.kind) {
    case ClusterKind::Data: // somebody was faster
        DOPPEL_AWAIT_VOID(
            file_->write(run.clusters.host + within(offset), part, Durability::Cached));
        co_return run.length;
    case ClusterKind::Partial: {
        DOPPEL_AWAIT_VOID(write_sectors(run.clusters.host, offset, part));
        DOPPEL_AWAIT_VOID(mark_range(run.clusters.host, offset, part.size()));
        co_return run.length;
    }
    case ClusterKind::Absent:
        if (tracks_sectors() && !shows_zeroes(run, offset)) {
            const auto one = std::min(run.length, cluster_bytes_ - within(offset));
            DOPPEL_AWAIT_VOID(write_new_partial(offset, part.slice(0, one)));
            co_return one;
        }
        break;
    case ClusterKind::Zero:
    case ClusterKind::Compressed: break;
    }
    DOPPEL_AWAIT(written, write_new(run, offset, part));
    co_return written;
}

bool ClusteredNode::shows_zeroes(const Run& run, std::uint64_t offset) const {
    return run.clusters.kind == ClusterKind::Zero ||
           (run.clusters.kind == ClusterKind::Absent &&
            (!backing_ || align_down(offset) >= backing_->size()));
}

/// Clusters that get their place now.
Task<std::uint64_t> ClusteredNode::write_new(const Run& run, std::uint64_t offset, IoBuffer from) {
    const auto index = offset / cluster_bytes_;
    const auto wanted = align_up(offset + from.size()) / cluster_bytes_ - index;
    Space space;
    {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        DOPPEL_AWAIT(found, allocate(index, wanted));
        space = found;
    }
    const auto length =
        std::min<std::uint64_t>(from.size(), space.count * cluster_bytes_ - within(offset));
    auto data_task =
        file_->write(space.host + within(offset), from.slice(0, length), Durability::Cached);
    auto written = co_await data_task;
    if (written) {
        auto edges_task = fill_around(run, space, offset, length);
        written = co_await edges_task;
    }
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!written) {
        space.fresh = false;
        give_back(space);
        co_return std::unexpected(std::move(written).error());
    }
    DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Data, space.host, space.count}));
    co_return length;
}

/// The rest of new clusters of which [offset, offset + length) is written otherwise.
Task<void> ClusteredNode::fill_around(const Run& run, Space space, std::uint64_t offset,
                                      std::uint64_t length) {
    const auto begin = align_down(offset);
    const auto end = begin + space.count * cluster_bytes_;
    DOPPEL_AWAIT_VOID(fill(run, space.fresh, begin, offset, space.host));
    DOPPEL_AWAIT_VOID(
        fill(run, space.fresh, offset + length, end, space.host + (offset + length - begin)));
    co_return {};
}

/// Puts what the range shows so far into its new place.
Task<void> ClusteredNode::fill(const Run& run, bool fresh, std::uint64_t begin, std::uint64_t end,
                               std::uint64_t host) {
    const auto shown = shows_zeroes(run, begin) ? begin : std::clamp(size_bytes_, begin, end);
    AlignedMemory bytes{std::min(shown - begin, kFillBytes)};
    for (auto at = begin; at < shown;) {
        const auto part = bytes.span().first(std::min(shown - at, kFillBytes));
        DOPPEL_AWAIT_VOID(read_mapped(at, IoBuffer{part}));
        DOPPEL_AWAIT_VOID(file_->write(host + (at - begin), IoBuffer{part}, Durability::Cached));
        at += part.size();
    }
    if (shown < end && !fresh)
        DOPPEL_AWAIT_VOID(file_->write_zeroes(host + (shown - begin), end - shown, Unmap::Keep,
                                              Durability::Cached));
    co_return {};
}

/// A cluster over a backing file: only what is written lies here.
Task<void> ClusteredNode::write_new_partial(std::uint64_t offset, IoBuffer from) {
    const auto index = offset / cluster_bytes_;
    Space space;
    {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        DOPPEL_AWAIT(found, allocate(index, 1));
        space = found;
    }
    auto data_task = write_sectors(space.host, offset, from);
    auto written = co_await data_task;
    {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        if (!written) {
            space.fresh = false;
            give_back(space);
            co_return written;
        }
        DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Partial, space.host, 1}));
    }
    DOPPEL_AWAIT_VOID(mark_range(space.host, offset, from.size()));
    co_return {};
}

/// Whole sectors to a cluster at `host`: what the request leaves of the first and last one comes
/// from what they show so far.
Task<void> ClusteredNode::write_sectors(std::uint64_t host, std::uint64_t offset, IoBuffer from) {
    const auto begin = base::align_down(offset, sector_bytes_);
    const auto end = base::align_up(offset + from.size(), sector_bytes_);
    if (begin == offset && end == offset + from.size()) {
        DOPPEL_AWAIT_VOID(file_->write(host + within(offset), from, Durability::Cached));
        co_return {};
    }
    AlignedMemory bytes{end - begin};
    DOPPEL_AWAIT_VOID(read_mapped(begin, IoBuffer{bytes.data(), sector_bytes_}));
    if (end - begin > sector_bytes_)
        DOPPEL_AWAIT_VOID(
            read_mapped(end - sector_bytes_,
                        IoBuffer{bytes.data() + bytes.size() - sector_bytes_, sector_bytes_}));
    from.copy_to(bytes.span().subspan(offset - begin, from.size()));
    DOPPEL_AWAIT_VOID(
        file_->write(host + within(begin), IoBuffer{bytes.span()}, Durability::Cached));
    co_return {};
}

Task<void> ClusteredNode::mark_range(std::uint64_t host, std::uint64_t offset,
                                     std::uint64_t length) {
    const auto first = within(offset) / sector_bytes_;
    const auto last = (within(offset) + length + sector_bytes_ - 1) / sector_bytes_;
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(mark_sectors(offset / cluster_bytes_, host, first, last - first));
    co_return {};
}

/// What is not placed as a whole is filled up at once: the rest of a cluster may be placed later.
Task<Placement> ClusteredNode::place_some(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(run, find_run(offset, length));
    if (run.clusters.kind == ClusterKind::Data)
        co_return Placement{run.clusters.host + within(offset), run.length};
    if (run.clusters.kind == ClusterKind::Partial || run.clusters.kind == ClusterKind::Compressed)
        co_return cannot("bulk writing over what is there");
    const auto index = offset / cluster_bytes_;
    DOPPEL_AWAIT(space, allocate(index, align_up(offset + run.length) / cluster_bytes_ - index));
    const auto part = std::min(run.length, space.count * cluster_bytes_ - within(offset));
    DOPPEL_AWAIT_VOID(fill_around(run, space, offset, part));
    DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Data, space.host, space.count}));
    co_return Placement{space.host + within(offset), part};
}

Task<std::vector<Placement>> ClusteredNode::place(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT_VOID(before_writing());
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    std::vector<Placement> places;
    const auto end = std::min(offset + length, size_bytes_);
    for (auto at = offset; at < end;) {
        DOPPEL_AWAIT(placement, place_some(at, end - at));
        at += placement.length;
        if (!places.empty() && places.back().host + places.back().length == placement.host)
            places.back().length += placement.length;
        else
            places.push_back(placement);
    }
    co_return places;
}

} // namespace doppel::block
