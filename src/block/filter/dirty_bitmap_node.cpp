// SPDX-License-Identifier: Apache-2.0
#include "block/filter/dirty_bitmap_node.hpp"

#include <algorithm>
#include <bit>

#include <fmt/core.h>

namespace doppel::block::filter {

namespace {
constexpr std::uint64_t kMinGranularity = 512;
constexpr std::uint64_t kMaxGranularity = std::uint64_t{1} << 31;
constexpr std::uint64_t kMaxBits = std::uint64_t{1} << 30; // 128 MiB
} // namespace

Result<std::unique_ptr<ImageNode>> DirtyBitmapNode::create(std::unique_ptr<ImageNode> below,
                                                           const std::string& bitmap,
                                                           std::uint64_t granularity_bytes) {
    std::unique_ptr<DirtyBitmapNode> node{new DirtyBitmapNode{std::move(below)}};
    DOPPEL_TRY_VOID(node->add(bitmap, granularity_bytes));
    return node;
}

std::uint64_t DirtyBitmapNode::granules(unsigned granularity_bits) const {
    return (size() + (std::uint64_t{1} << granularity_bits) - 1) >> granularity_bits;
}

void DirtyBitmapNode::Bitmap::mark(std::uint64_t offset, std::uint64_t length) {
    if (length == 0)
        return;
    const auto first = offset >> granularity_bits;
    const auto last = (offset + length - 1) >> granularity_bits;
    std::fill(bits.begin() + static_cast<std::ptrdiff_t>(first),
              bits.begin() + static_cast<std::ptrdiff_t>(last + 1), true);
}

void DirtyBitmapNode::mark(std::uint64_t offset, std::uint64_t length) {
    for (auto& bitmap : bitmaps_)
        if (bitmap.recording)
            bitmap.mark(offset, length);
}

Task<void> DirtyBitmapNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    mark(offset, from.size());
    return FilterNode::write(offset, from, durability);
}

Task<void> DirtyBitmapNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                         Durability durability) {
    mark(offset, length);
    return FilterNode::write_zeroes(offset, length, unmap, durability);
}

Task<void> DirtyBitmapNode::discard(std::uint64_t offset, std::uint64_t length) {
    mark(offset, length);
    return FilterNode::discard(offset, length);
}

/// What is added is new.
Task<void> DirtyBitmapNode::resize(std::uint64_t size_bytes) {
    const auto old = size();
    DOPPEL_AWAIT_VOID(FilterNode::resize(size_bytes));
    for (auto& bitmap : bitmaps_)
        bitmap.bits.resize(granules(bitmap.granularity_bits));
    if (size_bytes > old)
        mark(old, size_bytes - old);
    co_return {};
}

Task<void> DirtyBitmapNode::apply_snapshot(std::string name) {
    DOPPEL_AWAIT_VOID(FilterNode::apply_snapshot(std::move(name)));
    for (auto& bitmap : bitmaps_)
        bitmap.bits.resize(granules(bitmap.granularity_bits));
    mark(0, size());
    co_return {};
}

Task<void> DirtyBitmapNode::make_empty() {
    mark(0, size());
    return FilterNode::make_empty();
}

DirtyBitmapNode::Bitmap* DirtyBitmapNode::find(const std::string& name) {
    const auto found = std::ranges::find(bitmaps_, name, &Bitmap::name);
    return found == bitmaps_.end() ? nullptr : &*found;
}

const DirtyBitmapNode::Bitmap* DirtyBitmapNode::find(const std::string& name) const {
    const auto found = std::ranges::find(bitmaps_, name, &Bitmap::name);
    return found == bitmaps_.end() ? nullptr : &*found;
}

Result<BitmapStore*> DirtyBitmapNode::behind(const std::string& name) const {
    if (behind_ == nullptr)
        return base::fail(Errc::NotFound, fmt::format("there is no bitmap '{}'", name));
    return behind_;
}

std::vector<BitmapInfo> DirtyBitmapNode::list() const {
    std::vector<BitmapInfo> all;
    for (const auto& bitmap : bitmaps_)
        all.push_back(
            {bitmap.name, std::uint64_t{1} << bitmap.granularity_bits, bitmap.recording, false});
    if (behind_ != nullptr)
        std::ranges::move(behind_->list(), std::back_inserter(all));
    return all;
}

Result<void> DirtyBitmapNode::add(const std::string& name, std::uint64_t granularity_bytes) {
    if (name.empty())
        return base::fail(Errc::InvalidArgument, "a bitmap wants a name");
    const auto known = list();
    if (std::ranges::find(known, name, &BitmapInfo::name) != known.end())
        return base::fail(Errc::AlreadyExists, fmt::format("there is a bitmap '{}' already", name));
    if (!std::has_single_bit(granularity_bytes) || granularity_bytes < kMinGranularity ||
        granularity_bytes > kMaxGranularity)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("granularity is {}, allowed are powers of two from {} to {}",
                                      granularity_bytes, kMinGranularity, kMaxGranularity));
    Bitmap bitmap{name, static_cast<unsigned>(std::countr_zero(granularity_bytes)), true, {}};
    const auto bits = granules(bitmap.granularity_bits);
    if (bits > kMaxBits)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("a bitmap of {} bits would be too large", bits),
                          "Use a larger granularity.");
    bitmap.bits.resize(bits);
    bitmaps_.push_back(std::move(bitmap));
    return {};
}

Result<void> DirtyBitmapNode::remove(const std::string& name) {
    if (std::erase_if(bitmaps_, [&](const auto& one) { return one.name == name; }) > 0)
        return {};
    auto* store = DOPPEL_TRY(behind(name));
    return store->remove(name);
}

Result<void> DirtyBitmapNode::clear(const std::string& name) {
    if (auto* bitmap = find(name)) {
        bitmap->bits.assign(bitmap->bits.size(), false);
        return {};
    }
    auto* store = DOPPEL_TRY(behind(name));
    return store->clear(name);
}

Result<void> DirtyBitmapNode::set_recording(const std::string& name, bool recording) {
    if (auto* bitmap = find(name)) {
        bitmap->recording = recording;
        return {};
    }
    auto* store = DOPPEL_TRY(behind(name));
    return store->set_recording(name, recording);
}

Result<void> DirtyBitmapNode::merge(const std::string& target, const BitmapStore& from,
                                    const std::string& source) {
    auto* bitmap = find(target);
    if (bitmap == nullptr) {
        auto* store = DOPPEL_TRY(behind(target));
        return store->merge(target, from, source);
    }
    for (const auto& [begin, end] : DOPPEL_TRY(from.marked(source))) {
        if (end > size())
            return base::fail(Errc::InvalidArgument, "the bitmaps are of disks of different sizes");
        bitmap->mark(begin, end - begin);
    }
    return {};
}

Result<std::vector<BitmapStore::MarkedRange>>
DirtyBitmapNode::marked(const std::string& name) const {
    const auto* bitmap = find(name);
    if (bitmap == nullptr) {
        const auto* store = DOPPEL_TRY(behind(name));
        return store->marked(name);
    }
    std::vector<MarkedRange> ranges;
    for (std::size_t i = 0; i < bitmap->bits.size(); ++i) {
        if (!bitmap->bits[i])
            continue;
        const auto begin = std::uint64_t{i} << bitmap->granularity_bits;
        const auto end = std::min(begin + (std::uint64_t{1} << bitmap->granularity_bits), size());
        if (!ranges.empty() && ranges.back().second == begin)
            ranges.back().second = end;
        else
            ranges.emplace_back(begin, end);
    }
    return ranges;
}

} // namespace doppel::block::filter
