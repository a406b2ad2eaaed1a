// SPDX-License-Identifier: Apache-2.0
#include "block/filter/joined_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::filter {

namespace {

constexpr std::uint64_t kSectorBytes = 512;

std::unexpected<Error> not_written() {
    return base::fail(Errc::PermissionDenied, "several disks as one can only be read");
}

} // namespace

JoinedNode::JoinedNode(std::vector<std::unique_ptr<Node>> parts) {
    for (auto& part : parts) {
        parts_.push_back({base::align_up(size_, kSectorBytes), std::move(part)});
        size_ = parts_.back().end();
    }
}

std::string JoinedNode::name() const {
    return fmt::format("{} and {} more", parts_.front().node->name(), parts_.size() - 1);
}

Limits JoinedNode::limits() const {
    Limits all;
    for (const auto& part : parts_) {
        const auto limits = part.node->limits();
        all.request_alignment = std::max(all.request_alignment, limits.request_alignment);
        all.memory_alignment = std::max(all.memory_alignment, limits.memory_alignment);
        all.cluster_bytes = std::max(all.cluster_bytes, limits.cluster_bytes);
    }
    return all;
}

JoinedNode::Place JoinedNode::find(std::uint64_t offset, std::uint64_t length) const {
    const auto next = std::ranges::upper_bound(parts_, offset, {}, &Part::begin);
    const auto& part = *std::prev(next);
    if (offset < part.end())
        return {part.node.get(), offset - part.begin, std::min(length, part.end() - offset)};
    return {nullptr, 0, std::min(length, next->begin - offset)};
}

Task<void> JoinedNode::read(std::uint64_t offset, IoBuffer into) {
    for (std::uint64_t done = 0; done < into.size();) {
        const auto place = find(offset + done, into.size() - done);
        const auto part = into.slice(done, place.length);
        if (place.node != nullptr)
            DOPPEL_AWAIT_VOID(place.node->read(place.offset, part));
        else
            part.fill(std::byte{0});
        done += place.length;
    }
    co_return {};
}

Task<Extent> JoinedNode::status(std::uint64_t offset, std::uint64_t length) {
    const auto place = find(offset, length);
    if (place.node != nullptr)
        return place.node->status(place.offset, place.length);
    Extent zeroes;
    zeroes.length = place.length;
    zeroes.content = Content::Zero;
    return ready<Extent>(zeroes);
}

std::optional<std::uint64_t> JoinedNode::allocated_bytes() const {
    std::uint64_t bytes = 0;
    for (const auto& part : parts_) {
        const auto more = part.node->allocated_bytes();
        if (!more)
            return std::nullopt;
        bytes += *more;
    }
    return bytes;
}

Task<void> JoinedNode::write(std::uint64_t, IoBuffer, Durability) {
    return ready<void>(not_written());
}

Task<void> JoinedNode::write_zeroes(std::uint64_t, std::uint64_t, Unmap, Durability) {
    return ready<void>(not_written());
}

Task<void> JoinedNode::discard(std::uint64_t, std::uint64_t) { return ready<void>(not_written()); }

Task<void> JoinedNode::resize(std::uint64_t) { return ready<void>(not_written()); }

} // namespace doppel::block::filter
