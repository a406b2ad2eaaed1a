// SPDX-License-Identifier: Apache-2.0
/// Metadata on their way to the file: into the log, then in place. The metadata lock is held.
#include <algorithm>
#include <cstring>
#include <map>

#include <fmt/core.h>

#include "block/all_or_nothing.hpp"
#include "block/clustered/parent.hpp"
#include "block/vhdx/vhdx_node.hpp"

namespace doppel::block::vhdx {

/// So much of the file is durable when the tables are written. What guests append meanwhile may be
/// lost: a log that counts on it could not be replayed.
Task<void> VhdxNode::write_ahead() {
    durable_bytes_ = file_->size();
    co_return {};
}

/// A quarter of the log at most in an entry: then it never overwrites the one before, and the
/// newest whole entry is the last one that may be in place.
Task<void> VhdxNode::write_tables() {
    std::uint64_t most = 1;
    while (log_entry_bytes(most + 1) <= heads_.header.log_bytes / 4)
        ++most;
    const auto offsets = table_.dirty_offsets();
    for (std::size_t first = 0; first < offsets.size(); first += most)
        DOPPEL_AWAIT_VOID(
            log_pages(std::span{offsets}.subspan(first, std::min(most, offsets.size() - first))));
    co_return {};
}

Task<void> VhdxNode::log_pages(std::span<const std::uint64_t> offsets) {
    std::map<std::uint64_t, const std::byte*> pages;
    for (const auto offset : offsets)
        pages[offset] = table_.find(offset);
    auto at = log_at_;
    if (at + log_entry_bytes(pages.size()) > heads_.header.log_bytes)
        at = 0;
    const auto entry = log_entry(log_id_, log_sequence_ + 1, at, durable_bytes_, pages);
    DOPPEL_AWAIT_VOID(
        file_->write(heads_.header.log_offset + at, IoBuffer::of(entry), Durability::Durable));
    ++log_sequence_;
    log_at_ = at + entry.size();
    if (heads_.header.log != log_id_) {
        heads_.header.log = log_id_;
        DOPPEL_AWAIT_VOID(write_header(*file_, heads_));
    }
    DOPPEL_AWAIT_VOID(table_.write({offsets.begin(), offsets.end()}));
    DOPPEL_AWAIT_VOID(file_->flush());
    co_return {};
}

/// Everything is in place: readers need no log. What comes later is another log, to which QEMU does
/// not add these entries.
Task<void> VhdxNode::end_writing() {
    if (heads_.header.log == Uuid{})
        co_return {};
    heads_.header.log = {};
    DOPPEL_AWAIT_VOID(write_header(*file_, heads_));
    log_id_ = random_uuid();
    log_at_ = 0;
    co_return {};
}

/// Rewrites the metadata region; all of it takes effect at once.
Task<void> VhdxNode::store_metadata(Metadata metadata) {
    if (items_.foreign_items != 0)
        co_return base::fail(
            Errc::Unsupported,
            fmt::format("'{}' has metadata that are unknown and would be lost", name()));
    DOPPEL_CO_TRY(region, serialize_metadata(metadata));
    DOPPEL_CO_TRY(parsed, parse_metadata(region));
    AllOrNothing operation{broken_};
    for (std::uint64_t at = 0; at < region.size(); at += kLogPage) {
        const auto page = heads_.regions.metadata.offset + at;
        DOPPEL_AWAIT(bytes, table_.load(page));
        if (std::memcmp(bytes, region.data() + at, kLogPage) == 0)
            continue;
        std::memcpy(bytes, region.data() + at, kLogPage);
        table_.mark_dirty(page);
    }
    items_ = std::move(parsed);
    geometry_ = Geometry{items_};
    DOPPEL_AWAIT_VOID(commit());
    operation.done();
    co_return {};
}

/// Without a parent no block may be there in part: what is absent becomes zero.
Task<void> VhdxNode::fill_partial() {
    for (std::uint64_t index = 0; index < clusters(); ++index) {
        DOPPEL_AWAIT(run, find(index, 1));
        if (run.kind != ClusterKind::Partial)
            continue;
        const auto sectors = geometry_.block_bytes / sector_bytes_;
        for (std::uint64_t sector = 0; sector < sectors;) {
            DOPPEL_AWAIT(part, find_sectors(index, run.host, sector, sectors - sector));
            if (!part.present)
                DOPPEL_AWAIT_VOID(file_->write_zeroes(run.host + sector * sector_bytes_,
                                                      part.count * sector_bytes_, Unmap::Keep,
                                                      Durability::Cached));
            sector += part.count;
        }
        DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Data, run.host, 1}));
    }
    co_return {};
}

Task<void> VhdxNode::change_backing(std::string file, std::string format) {
    if (!file.empty() && format != "vhdx")
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the parent of a VHDX image is a VHDX image, not {}",
                                         format.empty() ? "of unknown format" : format));
    DOPPEL_AWAIT_VOID(before_writing());
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    auto changed = items_;
    changed.has_parent = !file.empty();
    changed.parent = {};
    if (!file.empty()) {
        DOPPEL_AWAIT(parent, locate_parent(context_, name(), file));
        changed.parent = std::move(parent);
    } else {
        DOPPEL_AWAIT_VOID(fill_partial());
    }
    DOPPEL_AWAIT_VOID(commit()); // what the new chain would show otherwise is here now
    DOPPEL_AWAIT_VOID(store_metadata(std::move(changed)));
    parent_ = std::move(file);
    co_return {};
}

} // namespace doppel::block::vhdx
