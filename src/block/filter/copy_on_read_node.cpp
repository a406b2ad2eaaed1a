// SPDX-License-Identifier: Apache-2.0
#include "block/filter/copy_on_read_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"

namespace doppel::block::filter {

namespace {
constexpr std::uint64_t kAtOnce = 1u << 20;

/// The image says nothing about it, and something behind it might.
bool is_behind(const Extent& extent) { return !extent.allocated && extent.depth > 0; }

} // namespace

Result<std::unique_ptr<ImageNode>> CopyOnReadNode::create(IoContext& context,
                                                          std::unique_ptr<ImageNode> below) {
    if (below->read_only())
        return base::fail(Errc::PermissionDenied,
                          fmt::format("copy-on-read wants to write '{}', which is opened read only",
                                      below->name()));
    return std::unique_ptr<ImageNode>{new CopyOnReadNode{context, std::move(below)}};
}

Task<bool> CopyOnReadNode::all_here(std::uint64_t begin, std::uint64_t end) {
    for (auto at = begin; at < end;) {
        DOPPEL_AWAIT(extent, below().status(at, end - at));
        if (is_behind(extent))
            co_return false;
        at += extent.length;
    }
    co_return true;
}

/// The range is held exclusively.
Task<void> CopyOnReadNode::fetch(std::uint64_t begin, std::uint64_t end) {
    AlignedMemory memory;
    for (auto at = begin; at < end;) {
        DOPPEL_AWAIT(extent, below().status(at, std::min(end - at, kAtOnce)));
        if (is_behind(extent) && extent.content == Content::Zero) {
            DOPPEL_AWAIT_VOID(
                below().write_zeroes(at, extent.length, Unmap::Allow, Durability::Cached));
        } else if (is_behind(extent)) {
            if (memory.size() < extent.length)
                memory = AlignedMemory::uninitialized(extent.length);
            const IoBuffer bytes{memory.span().first(extent.length)};
            DOPPEL_AWAIT_VOID(below().read(at, bytes));
            DOPPEL_AWAIT_VOID(below().write(at, bytes, Durability::Cached));
        }
        at += extent.length;
    }
    co_return {};
}

Task<void> CopyOnReadNode::read(std::uint64_t offset, IoBuffer into) {
    // Whole clusters: what a write of a part would copy anyway.
    const auto grain = std::max<std::uint64_t>(limits().cluster_bytes, 1);
    const auto begin = base::align_down(offset, grain);
    const auto end = std::min(base::align_up(offset + into.size(), grain), size());
    DOPPEL_AWAIT(here, all_here(begin, end));
    if (!here) {
        auto wait = ranges_.lock(begin, end, RangeLock::Mode::Exclusive);
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(fetch(begin, end));
    }
    DOPPEL_AWAIT_VOID(below().read(offset, into));
    co_return {};
}

Task<void> CopyOnReadNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    auto wait = ranges_.lock(offset, offset + from.size(), RangeLock::Mode::Shared);
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(below().write(offset, from, durability));
    co_return {};
}

Task<void> CopyOnReadNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                        Durability durability) {
    auto wait = ranges_.lock(offset, offset + length, RangeLock::Mode::Shared);
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(below().write_zeroes(offset, length, unmap, durability));
    co_return {};
}

Task<void> CopyOnReadNode::discard(std::uint64_t offset, std::uint64_t length) {
    auto wait = ranges_.lock(offset, offset + length, RangeLock::Mode::Shared);
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(below().discard(offset, length));
    co_return {};
}

} // namespace doppel::block::filter
