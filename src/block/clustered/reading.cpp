// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "block/clustered/clustered_node.hpp"

namespace doppel::block {

Task<ClusteredNode::Run> ClusteredNode::find_run(std::uint64_t offset, std::uint64_t length) {
    const auto first = offset / cluster_bytes_;
    const auto most = align_up(offset + length) / cluster_bytes_ - first;
    DOPPEL_AWAIT(clusters, find(first, most));
    const auto whole = clusters.count * cluster_bytes_ - within(offset);
    co_return Run{clusters, std::min(length, whole)};
}

Task<ClusteredNode::Piece> ClusteredNode::find_piece(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(run, find_run(offset, length));
    const auto& clusters = run.clusters;
    Piece piece{clusters.kind, run.length, clusters.host};
    if (clusters.kind == ClusterKind::Data || clusters.kind == ClusterKind::Partial)
        piece.host += within(offset);
    if (clusters.kind != ClusterKind::Partial)
        co_return piece;
    const auto first = within(offset) / sector_bytes_;
    const auto last = (within(offset) + run.length + sector_bytes_ - 1) / sector_bytes_;
    DOPPEL_AWAIT(sectors,
                 find_sectors(offset / cluster_bytes_, clusters.host, first, last - first));
    piece.kind = sectors.present ? ClusterKind::Data : ClusterKind::Absent;
    piece.length = std::min(run.length, (first + sectors.count) * sector_bytes_ - within(offset));
    co_return piece;
}

Task<void> ClusteredNode::read(std::uint64_t offset, IoBuffer into) {
    auto wait =
        guests_.lock(align_down(offset), align_up(offset + into.size()), RangeLock::Mode::Shared);
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(read_mapped(offset, into));
    co_return {};
}

/// The caller holds the range.
Task<void> ClusteredNode::read_mapped(std::uint64_t offset, IoBuffer into) {
    for (std::size_t done = 0; done < into.size();) {
        const auto at = offset + done;
        DOPPEL_AWAIT(piece, find_piece(at, into.size() - done));
        const auto part = into.slice(done, piece.length);
        switch (piece.kind) {
        case ClusterKind::Partial: // resolved
        case ClusterKind::Data: DOPPEL_AWAIT_VOID(file_->read(piece.host, part)); break;
        case ClusterKind::Zero: part.fill(std::byte{0}); break;
        case ClusterKind::Absent: DOPPEL_AWAIT_VOID(read_behind(at, part)); break;
        case ClusterKind::Compressed:
            DOPPEL_AWAIT_VOID(read_compressed(piece.host, at, part));
            break;
        }
        done += piece.length;
    }
    co_return {};
}

Task<void> ClusteredNode::read_behind(std::uint64_t offset, IoBuffer into) {
    const auto known = backing_ && offset < backing_->size()
                           ? std::min<std::uint64_t>(into.size(), backing_->size() - offset)
                           : 0;
    into.slice(known, into.size() - known).fill(std::byte{0});
    if (known > 0)
        DOPPEL_AWAIT_VOID(backing_->read(offset, into.slice(0, known)));
    co_return {};
}

Task<void> ClusteredNode::read_compressed(std::uint64_t host, std::uint64_t offset, IoBuffer into) {
    if (unpacked_.host != host) {
        std::vector<std::byte> bytes(cluster_bytes_);
        DOPPEL_AWAIT_VOID(unpack(offset / cluster_bytes_, host, bytes));
        unpacked_ = {host, std::move(bytes)};
    }
    into.copy_from(std::span{unpacked_.bytes}.subspan(within(offset), into.size()));
    co_return {};
}

Task<Extent> ClusteredNode::status(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(piece, find_piece(offset, length));
    Extent extent;
    extent.length = piece.length;
    switch (piece.kind) {
    case ClusterKind::Partial:
    case ClusterKind::Data:
        extent.host = piece.host;
        extent.place = file_.get();
        if (holes_count()) {
            DOPPEL_AWAIT(below, file_->status(piece.host, piece.length));
            extent.length = below.length;
            extent.content = below.content;
        }
        break;
    case ClusterKind::Compressed: extent.content = Content::Compressed; break;
    case ClusterKind::Zero: extent.content = Content::Zero; break;
    case ClusterKind::Absent:
        extent.allocated = extent.present = false;
        extent.content = Content::Zero;
        if (!backing_ || offset >= backing_->size())
            break;
        DOPPEL_AWAIT(behind,
                     backing_->status(offset, std::min(piece.length, backing_->size() - offset)));
        extent = behind;
        extent.allocated = false;
        ++extent.depth;
        break;
    }
    co_return extent;
}

} // namespace doppel::block
