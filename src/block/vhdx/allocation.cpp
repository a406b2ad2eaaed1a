// SPDX-License-Identifier: Apache-2.0
/// Where blocks and sector bitmaps lie. The metadata lock is held.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/vhdx/vhdx_node.hpp"

namespace doppel::block::vhdx {

namespace {
constexpr std::uint64_t kPageBits = kLogPage * 8;
}

/// Everything that the image says has a place. Findings where two have the same.
Task<SpaceMap> VhdxNode::walk(CheckResult& result) {
    SpaceMap space;
    const auto file_end = base::align_up(file_->size(), kMib);
    const auto take = [&](std::string what, std::uint64_t offset, std::uint64_t bytes) {
        if (offset > file_end || bytes > file_end - offset)
            result.found_corruption(fmt::format("{} lies past the end of the file", what));
        else if (!space.take(offset / kMib, (bytes + kMib - 1) / kMib))
            result.found_corruption(fmt::format("{} lies where something else does", what));
    };
    take("the first MiB", 0, kMib);
    take("the log", heads_.header.log_offset, heads_.header.log_bytes);
    take("the metadata region", heads_.regions.metadata.offset, heads_.regions.metadata.bytes);
    take("the block allocation table", heads_.regions.table.offset, heads_.regions.table.bytes);
    std::uint64_t last = 0;
    const auto blocks = clusters();
    const auto entries = geometry_.entries(size_bytes_);
    result.total_clusters = blocks;
    for (std::uint64_t number = 0; number < entries; ++number) {
        DOPPEL_AWAIT(value, entry(number));
        const bool bitmap = number % (geometry_.ratio + 1) == geometry_.ratio;
        const auto index = number - number / (geometry_.ratio + 1);
        const auto offset = value & kOffsetMask;
        if (bitmap) {
            if (state_of(value) == State::Full)
                take(fmt::format("the sector bitmap {}", number), offset, kMib);
            continue;
        }
        if (index >= blocks)
            continue;
        const auto kind = kind_of(value, index);
        if (!kind)
            result.found_corruption(kind.error().text);
        else if (offset != 0) // a block that is zero may keep its place
            take(fmt::format("block {}", index), offset, geometry_.block_bytes);
        if (kind && (*kind == ClusterKind::Data || *kind == ClusterKind::Partial)) {
            ++result.allocated_clusters;
            result.fragmented_clusters += last != 0 && offset != last + geometry_.block_bytes;
            last = offset;
        }
    }
    result.image_end_offset = space.end() * kMib;
    co_return space;
}

Task<CheckResult> VhdxNode::check(Repair) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!read_only())
        DOPPEL_AWAIT_VOID(commit());
    CheckResult result;
    DOPPEL_AWAIT(space, walk(result));
    co_return result;
}

Task<void> VhdxNode::begin_writing() {
    if (heads_.header.log_bytes < kMib)
        co_return corrupt("there is no log");
    CheckResult result;
    DOPPEL_AWAIT(space, walk(result));
    if (result.corruptions != 0)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}' is corrupt and cannot be written: {}", name(),
                                         result.findings.front()),
                             "Look at it with check.");
    space_ = std::move(space);
    fresh_from_ = file_->driver() == "host_device" ? ~std::uint64_t{0}
                                                   : base::align_up(file_->size(), kMib) / kMib;
    heads_.header.file_write = random_uuid();
    heads_.header.data_write = random_uuid(); // a child sees by it that its parent has changed
    log_id_ = random_uuid();
    log_at_ = 0;
    DOPPEL_AWAIT_VOID(write_header(*file_, heads_));
    co_return {};
}

std::uint64_t VhdxNode::take_units(std::uint64_t count, bool& fresh) {
    const auto gap = space_.find(count);
    const auto first = gap ? *gap : space_.end();
    (void)space_.take(first, count);
    fresh = first >= fresh_from_;
    file_end_ = std::max(file_end_, (first + count) * kMib);
    return first * kMib;
}

Task<ClusteredNode::Space> VhdxNode::allocate(std::uint64_t index, std::uint64_t count) {
    DOPPEL_AWAIT(value, entry(geometry_.entry(index)));
    if ((value & kOffsetMask) != 0) // zero, but with a place
        co_return Space{value & kOffsetMask, 1, false};
    const auto units = geometry_.block_bytes / kMib;
    Space space{0, 1, true};
    space.host = take_units(units, space.fresh);
    // More of them side by side, when nothing but the end of the file is there.
    while (space.count < count && space.host / kMib + space.count * units == space_.end() &&
           space.fresh) {
        DOPPEL_AWAIT(next, entry(geometry_.entry(index + space.count)));
        if ((next & kOffsetMask) != 0)
            break;
        (void)space_.take(space_.end(), units);
        file_end_ = std::max(file_end_, space_.end() * kMib);
        ++space.count;
    }
    co_return space;
}

void VhdxNode::give_back(const Space& space) {
    const auto first = space.host / kMib;
    const auto count = space.count * geometry_.block_bytes / kMib;
    space_.release(first, count);
    if (fresh_from_ != ~std::uint64_t{0}) // it may have been written in part
        fresh_from_ = std::max(fresh_from_, first + count);
}

Task<void> VhdxNode::link(std::uint64_t index, ClusterRun run) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
        const auto number = geometry_.entry(index + i);
        const auto host = run.host + i * geometry_.block_bytes;
        std::uint64_t value = 0;
        if (run.kind == ClusterKind::Data)
            value = entry_of(State::Full, host);
        if (run.kind == ClusterKind::Partial)
            value = entry_of(State::Partial, host);
        if (run.kind == ClusterKind::Zero) {
            DOPPEL_AWAIT(old, entry(number));
            value = entry_of(State::Zero, old);
        }
        DOPPEL_AWAIT_VOID(set_entry(number, value));
    }
    if (run.kind == ClusterKind::Partial)
        DOPPEL_AWAIT_VOID(begin_bitmap(index));
    co_return {};
}

/// A block whose sectors are all absent still.
Task<void> VhdxNode::begin_bitmap(std::uint64_t index) {
    DOPPEL_AWAIT(bitmap, bitmap_of(index));
    if (bitmap == 0) {
        bool fresh = true;
        bitmap = take_units(1, fresh);
        table_.forget(bitmap, kMib);
        if (!fresh)
            DOPPEL_AWAIT_VOID(file_->write_zeroes(bitmap, kMib, Unmap::Keep, Durability::Cached));
        DOPPEL_AWAIT_VOID(set_entry(geometry_.bitmap_entry(index), entry_of(State::Full, bitmap)));
    }
    DOPPEL_AWAIT_VOID(
        set_bits(bitmap, bit_of(index, 0), geometry_.block_bytes / sector_bytes_, false));
    co_return {};
}

Task<void> VhdxNode::set_bits(std::uint64_t bitmap, std::uint64_t first, std::uint64_t count,
                              bool set) {
    for (auto bit = first; bit < first + count;) {
        const auto page = bitmap + bit / kPageBits * kLogPage;
        DOPPEL_AWAIT(bytes, table_.load(page));
        const auto end = std::min(first + count, base::align_down(bit, kPageBits) + kPageBits);
        bool changed = false;
        for (; bit < end; ++bit) {
            auto& byte = bytes[bit % kPageBits / 8];
            const auto mask = std::byte{1} << bit % 8;
            const auto value = set ? byte | mask : byte & ~mask;
            changed = changed || value != byte;
            byte = value;
        }
        if (changed)
            table_.mark_dirty(page);
    }
    co_return {};
}

Task<void> VhdxNode::mark_sectors(std::uint64_t index, std::uint64_t, std::uint64_t first,
                                  std::uint64_t count) {
    DOPPEL_AWAIT(bitmap, bitmap_of(index));
    if (bitmap == 0)
        co_return corrupt(
            fmt::format("block {} is there in part, but has no sector bitmap", index));
    DOPPEL_AWAIT_VOID(set_bits(bitmap, bit_of(index, first), count, true));
    co_return {};
}

/// What no table refers to any more is given back at the file's end, and used again elsewhere.
Task<void> VhdxNode::release_all() {
    CheckResult result;
    DOPPEL_AWAIT(space, walk(result));
    space_ = std::move(space);
    space_.trim();
    file_end_ = 0;
    if (file_->driver() != "host_device" && file_->size() > space_.end() * kMib) {
        DOPPEL_AWAIT_VOID(end_writing()); // the log counts on the longer file
        DOPPEL_AWAIT_VOID(file_->resize(space_.end() * kMib));
    }
    if (fresh_from_ != ~std::uint64_t{0}) // gaps below the end hold what lay there
        fresh_from_ = space_.end();
    co_return {};
}

} // namespace doppel::block::vhdx
