// SPDX-License-Identifier: Apache-2.0
#include "block/vhdx/vhdx_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::vhdx {

namespace {
constexpr std::uint64_t kPageEntries = kLogPage / 8;
constexpr std::uint64_t kPageBits = kLogPage * 8;
} // namespace

Task<std::uint64_t> VhdxNode::entry(std::uint64_t number) {
    const auto page = heads_.regions.table.offset + number / kPageEntries * kLogPage;
    DOPPEL_AWAIT(bytes, table_.load(page));
    co_return base::load_le<std::uint64_t>(bytes + number % kPageEntries * 8);
}

Task<void> VhdxNode::set_entry(std::uint64_t number, std::uint64_t value) {
    const auto page = heads_.regions.table.offset + number / kPageEntries * kLogPage;
    DOPPEL_AWAIT(bytes, table_.load(page));
    base::store_le(bytes + number % kPageEntries * 8, value);
    table_.mark_dirty(page);
    co_return {};
}

Result<ClusterKind> VhdxNode::kind_of(std::uint64_t value, std::uint64_t index) const {
    const auto offset = value & kOffsetMask;
    const auto end = std::max(base::align_up(file_->size(), kMib), file_end_);
    const bool inside = offset >= kMib && offset < end && geometry_.block_bytes <= end - offset;
    switch (state_of(value)) {
    case State::NotPresent: return ClusterKind::Absent;
    case State::Undefined:
    case State::Zero:
    case State::Unmapped: return ClusterKind::Zero;
    case State::Full:
    case State::Partial:
        if (!inside)
            return corrupt(fmt::format("block {} ({:#x}) does not lie in the file", index, value));
        if (state_of(value) == State::Full)
            return ClusterKind::Data;
        if (items_.has_parent)
            return ClusterKind::Partial;
        [[fallthrough]];
    default:
        return corrupt(
            fmt::format("block {} has the state {}, which there is not", index, value & 7));
    }
}

/// Up to the end of a page of the table.
Task<ClusterRun> VhdxNode::find(std::uint64_t index, std::uint64_t most) {
    const auto first = geometry_.entry(index) % kPageEntries;
    const auto page = heads_.regions.table.offset + (geometry_.entry(index) - first) * 8;
    DOPPEL_AWAIT(bytes, table_.load(page));
    const auto at = [&](std::uint64_t i) {
        const auto place = first + geometry_.entry(index + i) - geometry_.entry(index);
        return place < kPageEntries ? base::load_le<std::uint64_t>(bytes + place * 8)
                                    : ~std::uint64_t{0};
    };
    const auto value = at(0);
    DOPPEL_CO_TRY(kind, kind_of(value, index));
    ClusterRun run{kind, value & kOffsetMask, 1};
    if (kind == ClusterKind::Partial)
        co_return run;
    while (run.count < most) {
        const auto next = at(run.count);
        const auto next_kind = next == ~std::uint64_t{0} ? Result<ClusterKind>{ClusterKind::Partial}
                                                         : kind_of(next, index + run.count);
        if (!next_kind || *next_kind != kind ||
            (kind == ClusterKind::Data &&
             (next & kOffsetMask) != run.host + run.count * geometry_.block_bytes))
            break;
        ++run.count;
    }
    co_return run;
}

/// Where the sector bitmap of a block's chunk lies; 0: there is none.
Task<std::uint64_t> VhdxNode::bitmap_of(std::uint64_t index) {
    DOPPEL_AWAIT(value, entry(geometry_.bitmap_entry(index)));
    if (state_of(value) != State::Full)
        co_return std::uint64_t{0};
    const auto offset = value & kOffsetMask;
    if (offset < kMib || offset >= std::max(base::align_up(file_->size(), kMib), file_end_))
        co_return corrupt(
            fmt::format("the sector bitmap of block {} does not lie in the file", index));
    co_return offset;
}

/// Number of a sector's bit in the bitmap of its chunk.
std::uint64_t VhdxNode::bit_of(std::uint64_t index, std::uint64_t sector) const {
    return index % geometry_.ratio * (geometry_.block_bytes / sector_bytes_) + sector;
}

/// Bit 0 of a byte is the first sector.
Task<ClusteredNode::SectorRun> VhdxNode::find_sectors(std::uint64_t index, std::uint64_t,
                                                      std::uint64_t first, std::uint64_t most) {
    DOPPEL_AWAIT(bitmap, bitmap_of(index));
    if (bitmap == 0)
        co_return SectorRun{false, most};
    const auto bit = bit_of(index, first);
    DOPPEL_AWAIT(bytes, table_.load(bitmap + bit / kPageBits * kLogPage));
    const auto get = [&](std::uint64_t i) {
        return (static_cast<unsigned>(bytes[i / 8]) >> i % 8 & 1) != 0;
    };
    const auto begin = bit % kPageBits;
    most = std::min(most, kPageBits - begin);
    SectorRun run{get(begin), 1};
    while (run.count < most && get(begin + run.count) == run.present)
        ++run.count;
    co_return run;
}

ImageInfo VhdxNode::info() const {
    ImageInfo info;
    info.backing_file = parent_;
    info.backing_format = parent_.empty() ? "" : "vhdx";
    info.cluster_bytes = geometry_.block_bytes;
    info.dirty = heads_.header.log != Uuid{} && read_only();
    info.facts.emplace_back("image-type", std::string{items_.has_parent        ? "differencing"
                                                      : items_.leave_allocated ? "fixed"
                                                                               : "dynamic"});
    info.facts.emplace_back("logical-sector-size", std::uint64_t{items_.sector_bytes});
    info.facts.emplace_back("log-size", std::uint64_t{heads_.header.log_bytes});
    info.facts.emplace_back("uuid", guid_text(items_.disk_id));
    return info;
}

} // namespace doppel::block::vhdx
