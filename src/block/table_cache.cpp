// SPDX-License-Identifier: Apache-2.0
#include "block/table_cache.hpp"

#include <sys/uio.h>

#include <algorithm>

namespace doppel::block {

namespace {
constexpr std::uint64_t kSliceBytes = 4096;
constexpr std::size_t kMaxRun = 256; // slices in one write
} // namespace

TableCache::TableCache(Node& file, std::uint64_t cluster_bytes, std::size_t budget_bytes)
    : file_{file}, slice_bytes_{std::min(cluster_bytes, kSliceBytes)}, budget_bytes_{budget_bytes} {
}

std::byte* TableCache::find(std::uint64_t offset) {
    const auto found = by_offset_.find(offset);
    if (found == by_offset_.end())
        return nullptr;
    slices_.splice(slices_.begin(), slices_, found->second);
    return found->second->bytes.data();
}

Task<std::byte*> TableCache::load(std::uint64_t offset) {
    while (true) {
        if (auto* here = find(offset))
            co_return here;
        const auto writes = writes_;
        AlignedMemory bytes{slice_bytes_};
        DOPPEL_AWAIT_VOID(file_.read(offset, IoBuffer{bytes.span()}));
        if (auto* here = find(offset)) // somebody else was faster, and may have changed it
            co_return here;
        if (writes == writes_) // else it may have come, changed and gone meanwhile
            co_return insert(offset, std::move(bytes));
    }
}

std::byte* TableCache::insert(std::uint64_t offset, AlignedMemory bytes) {
    shrink();
    slices_.push_front({offset, std::move(bytes)});
    by_offset_[offset] = slices_.begin();
    return slices_.front().bytes.data();
}

void TableCache::shrink() {
    auto oldest = slices_.end();
    while (by_offset_.size() * slice_bytes_ >= budget_bytes_ && oldest != slices_.begin()) {
        --oldest;
        if (oldest->dirty)
            continue;
        by_offset_.erase(oldest->offset);
        oldest = slices_.erase(oldest);
    }
}

void TableCache::create(std::uint64_t offset, std::uint64_t bytes) {
    forget(offset, bytes);
    for (std::uint64_t done = 0; done < bytes; done += slice_bytes_) {
        insert(offset + done, AlignedMemory{slice_bytes_});
        mark_dirty(offset + done);
    }
}

void TableCache::mark_dirty(std::uint64_t offset) {
    auto& slice = *by_offset_.at(offset);
    dirty_count_ += !slice.dirty;
    slice.dirty = true;
}

void TableCache::forget(std::uint64_t offset, std::uint64_t bytes) {
    for (std::uint64_t done = 0; done < bytes; done += slice_bytes_) {
        const auto found = by_offset_.find(offset + done);
        if (found == by_offset_.end())
            continue;
        dirty_count_ -= found->second->dirty;
        slices_.erase(found->second);
        by_offset_.erase(found);
    }
    ++writes_; // a load under way must not bring it back
}

bool TableCache::overlaps(std::uint64_t offset, std::uint64_t bytes) const {
    const auto begin = offset / slice_bytes_ * slice_bytes_;
    if (bytes / slice_bytes_ > by_offset_.size()) {
        return std::ranges::any_of(slices_, [&](const Slice& slice) {
            return slice.offset + slice_bytes_ > offset && slice.offset < offset + bytes;
        });
    }
    for (auto at = begin; at < offset + bytes; at += slice_bytes_)
        if (by_offset_.contains(at))
            return true;
    return false;
}

std::vector<std::uint64_t> TableCache::dirty_offsets() const {
    std::vector<std::uint64_t> offsets;
    offsets.reserve(dirty_count_);
    for (const auto& slice : slices_)
        if (slice.dirty)
            offsets.push_back(slice.offset);
    std::ranges::sort(offsets);
    return offsets;
}

Task<void> TableCache::write(std::vector<std::uint64_t> offsets) {
    for (std::size_t first = 0; first < offsets.size();) {
        std::vector<iovec> pieces;
        std::size_t next = first;
        while (next < offsets.size() && pieces.size() < kMaxRun &&
               offsets[next] == offsets[first] + (next - first) * slice_bytes_) {
            pieces.push_back({by_offset_.at(offsets[next])->bytes.data(), slice_bytes_});
            ++next;
        }
        const IoBuffer from{pieces};
        DOPPEL_AWAIT_VOID(file_.write(offsets[first], from, Durability::Cached));
        ++writes_;
        for (; first < next; ++first) {
            by_offset_.at(offsets[first])->dirty = false;
            --dirty_count_;
        }
    }
    shrink();
    co_return {};
}

void TableCache::clear() {
    slices_.clear();
    by_offset_.clear();
    dirty_count_ = 0;
    ++writes_;
}

} // namespace doppel::block
