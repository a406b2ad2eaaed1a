// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <ranges>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"
#include "block/all_or_nothing.hpp"
#include "block/vdi/vdi_node.hpp"

namespace doppel::block::vdi {

namespace {
constexpr std::uint64_t kReadBytes = 1u << 20;
} // namespace

/// Walks the whole table, which is as it is on disk. Memory follows the file's size.
Task<VdiNode::Owners> VdiNode::find_owners(CheckResult& result) {
    Owners owners(std::min<std::uint64_t>(file_blocks(), kMaxBlocks), kFree);
    AlignedMemory bytes{std::min(header_.table_bytes(), kReadBytes)};
    std::uint64_t last = kFree;
    for (std::uint64_t index = 0; index < header_.blocks;) {
        const auto count = std::min<std::uint64_t>(bytes.size() / 4, header_.blocks - index);
        const IoBuffer into{bytes.span().first(count * 4)};
        DOPPEL_AWAIT_VOID(file_->read(header_.table_offset + index * 4, into));
        for (std::uint64_t i = 0; i < count; ++i, ++index) {
            const auto block = base::load_le<std::uint32_t>(bytes.data() + i * 4);
            if (block == kFree || block == kZero)
                continue;
            ++result.allocated_clusters;
            result.fragmented_clusters += last != kFree && block != last + 1;
            last = block;
            if (block >= owners.size())
                result.found_corruption(
                    fmt::format("block {} lies past the end of the file", index));
            else if (owners[block] != kFree)
                result.found_corruption(
                    fmt::format("blocks {} and {} lie in the same place", owners[block], index));
            else
                owners[block] = static_cast<std::uint32_t>(index);
        }
    }
    co_return owners;
}

Task<CheckResult> VdiNode::check(Repair repair) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!read_only())
        DOPPEL_AWAIT_VOID(commit());
    CheckResult result;
    result.total_clusters = header_.blocks;
    DOPPEL_AWAIT(owners, find_owners(result));
    const auto used = std::ranges::find_if(std::views::reverse(owners),
                                           [](std::uint32_t owner) { return owner != kFree; });
    const auto end = static_cast<std::uint64_t>(owners.rend() - used);
    result.image_end_offset = header_.data_offset + end * header_.stride();
    if (header_.allocated < end) {
        const bool fix = repair == Repair::All && result.corruptions == 0;
        result.corruptions_fixed += fix;
        result.found_corruption(fmt::format("the header counts {} blocks, block {} is in use{}",
                                            header_.allocated, end - 1, fix ? ": repaired" : ""));
    }
    const auto counted = std::max<std::uint64_t>(header_.allocated, end);
    result.leaks = counted - std::min(counted, result.allocated_clusters);
    const bool sound = result.corruptions == result.corruptions_fixed;
    if (repair == Repair::None || !sound || (result.leaks == 0 && result.corruptions == 0))
        co_return result;
    DOPPEL_AWAIT_VOID(compact(std::move(owners)));
    result.leaks_fixed = result.leaks;
    co_return result;
}

Task<void> VdiNode::copy_block(std::uint64_t from, std::uint64_t to) {
    AlignedMemory bytes{std::min(header_.stride(), kReadBytes)};
    for (std::uint64_t done = 0; done < header_.stride();) {
        const IoBuffer part{bytes.span().first(std::min(kReadBytes, header_.stride() - done))};
        DOPPEL_AWAIT_VOID(file_->read(header_.host(from) - header_.extra_bytes + done, part));
        DOPPEL_AWAIT_VOID(
            file_->write(header_.host(to) - header_.extra_bytes + done, part, Durability::Cached));
        done += part.size();
    }
    co_return {};
}

/// Fills the gaps with the last blocks. Nobody uses a gap: a power cut leaves it one.
Task<void> VdiNode::move_blocks(Owners& owners) {
    std::uint64_t gap = 0;
    for (auto last = owners.size(); last-- > gap;) {
        if (owners[last] == kFree)
            continue;
        while (gap < last && owners[gap] != kFree)
            ++gap;
        if (gap == last)
            break;
        DOPPEL_AWAIT_VOID(copy_block(last, gap));
        DOPPEL_AWAIT_VOID(set_entry(owners[last], static_cast<std::uint32_t>(gap)));
        owners[gap] = owners[last];
        owners[last] = kFree;
    }
    co_return {};
}

/// The blocks without gaps, and the file not longer than they are.
Task<void> VdiNode::compact(Owners owners) {
    AllOrNothing operation{broken_};
    auto before = owners;
    DOPPEL_AWAIT_VOID(use(std::move(before))); // until then the count covers both places
    DOPPEL_AWAIT_VOID(move_blocks(owners));
    DOPPEL_AWAIT_VOID(commit());
    DOPPEL_AWAIT_VOID(use(std::move(owners)));
    DOPPEL_AWAIT_VOID(commit());
    file_end_ = header_.data_offset + next_ * header_.stride();
    if (file_->driver() != "host_device" && file_->size() > file_end_)
        DOPPEL_AWAIT_VOID(file_->resize(file_end_));
    fresh_from_ = file_->driver() == "host_device" ? kMaxBlocks : next_;
    operation.done();
    co_return {};
}

} // namespace doppel::block::vdi
