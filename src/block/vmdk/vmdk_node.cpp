// SPDX-License-Identifier: Apache-2.0
#include "block/vmdk/vmdk_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "block/vmdk/plain_extents.hpp"

namespace doppel::block::vmdk {

Limits VmdkNode::limits() const {
    return parts_.empty() ? Limits{} : parts_.front().node->limits();
}

VmdkNode::Part& VmdkNode::part_at(std::uint64_t offset) {
    return *std::prev(std::ranges::upper_bound(parts_, offset, {}, &Part::begin));
}

Task<void> VmdkNode::read(std::uint64_t offset, IoBuffer into) {
    for (std::size_t done = 0; done < into.size();) {
        auto& part = part_at(offset + done);
        const auto length = std::min(into.size() - done, part.end() - offset - done);
        DOPPEL_AWAIT_VOID(part.node->read(offset + done - part.begin, into.slice(done, length)));
        done += length;
    }
    co_return {};
}

Task<void> VmdkNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    DOPPEL_AWAIT_VOID(before_writing());
    for (std::size_t done = 0; done < from.size();) {
        auto& part = part_at(offset + done);
        const auto length = std::min(from.size() - done, part.end() - offset - done);
        DOPPEL_AWAIT_VOID(
            part.node->write(offset + done - part.begin, from.slice(done, length), durability));
        done += length;
    }
    co_return {};
}

Task<void> VmdkNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                  Durability durability) {
    DOPPEL_AWAIT_VOID(before_writing());
    for (std::uint64_t done = 0; done < length;) {
        auto& part = part_at(offset + done);
        const auto some = std::min(length - done, part.end() - offset - done);
        DOPPEL_AWAIT_VOID(
            part.node->write_zeroes(offset + done - part.begin, some, unmap, durability));
        done += some;
    }
    co_return {};
}

Task<void> VmdkNode::discard(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT_VOID(before_writing());
    for (std::uint64_t done = 0; done < length;) {
        auto& part = part_at(offset + done);
        const auto some = std::min(length - done, part.end() - offset - done);
        DOPPEL_AWAIT_VOID(part.node->discard(offset + done - part.begin, some));
        done += some;
    }
    co_return {};
}

Task<void> VmdkNode::flush() {
    if (read_only())
        co_return {};
    for (auto& part : parts_)
        DOPPEL_AWAIT_VOID(part.node->flush());
    co_return {};
}

Task<Extent> VmdkNode::status(std::uint64_t offset, std::uint64_t length) {
    auto& part = part_at(offset);
    return part.node->status(offset - part.begin, std::min(length, part.end() - offset));
}

Task<void> VmdkNode::close() {
    for (auto& part : parts_)
        DOPPEL_AWAIT_VOID(part.node->close());
    if (backing_)
        DOPPEL_AWAIT_VOID(backing_->close());
    if (file_)
        DOPPEL_AWAIT_VOID(file_->close());
    co_return {};
}

Node* VmdkNode::file() { return parts_.size() == 1 ? parts_.front().node->file() : nullptr; }

Task<std::vector<Placement>> VmdkNode::place(std::uint64_t offset, std::uint64_t length) {
    if (parts_.size() != 1)
        co_return cannot("bulk writing over several files");
    DOPPEL_AWAIT_VOID(before_writing());
    DOPPEL_AWAIT(places, parts_.front().node->place(offset, length));
    co_return places;
}

CompressionKind VmdkNode::compression() const {
    return parts_.size() == 1 ? parts_.front().node->compression() : CompressionKind::None;
}

Task<void> VmdkNode::write_compressed(std::uint64_t offset, std::vector<std::byte> bytes) {
    if (!is_stream())
        co_return cannot("compression but in streamOptimized images");
    DOPPEL_AWAIT_VOID(before_writing());
    DOPPEL_AWAIT_VOID(parts_.front().node->write_compressed(offset, std::move(bytes)));
    co_return {};
}

std::optional<std::uint64_t> VmdkNode::allocated_bytes() const {
    std::optional<std::uint64_t> sum = file_ ? file_->allocated_bytes() : 0;
    for (const auto& part : parts_)
        if (const auto bytes = part.node->allocated_bytes(); bytes && sum)
            *sum += *bytes;
    return sum;
}

/// The CID changes before the first change of what the image shows, and is durable before it.
Task<void> VmdkNode::before_writing() {
    DOPPEL_CO_TRY_VOID(require_whole());
    if (writing_)
        co_return {};
    auto wait = beginning_.lock();
    auto guard = co_await wait;
    if (writing_)
        co_return {};
    auto cid = random_cid();
    if (cid == descriptor_.cid)
        ++cid;
    const auto text = size_differs() ? resized_descriptor(size_bytes_) : descriptor_.text;
    DOPPEL_AWAIT_VOID(write_descriptor(with_value(text, "CID", cid_text(cid))));
    writing_ = true;
    co_return {};
}

/// In its place: other programs look for it nowhere else.
Task<void> VmdkNode::write_descriptor(std::string text) {
    if (text.size() > descriptor_bytes_)
        co_return base::fail(Errc::NoSpace,
                             fmt::format("'{}': the descriptor would have {} bytes, there is room "
                                         "for {}",
                                         name_, text.size(), descriptor_bytes_));
    DOPPEL_CO_TRY(parsed, parse_descriptor(std::as_bytes(std::span{text})));
    const bool own = file_ != nullptr;
    const auto old = descriptor_.text.size();
    descriptor_ = std::move(parsed);
    if (!own)
        text.resize(std::max(text.size(), old)); // what it had more is gone
    const IoBuffer from{text.data(), text.size()};
    DOPPEL_AWAIT_VOID(descriptor_file_->write(descriptor_at_, from, Durability::Cached));
    if (own && !file_->fixed_size() && file_->size() > text.size())
        DOPPEL_AWAIT_VOID(file_->resize(text.size()));
    DOPPEL_AWAIT_VOID(descriptor_file_->flush());
    co_return {};
}

ImageInfo VmdkNode::info() const {
    ImageInfo info;
    info.backing_file = parent_;
    info.backing_format = parent_.empty() ? "" : "vmdk";
    std::vector<ExtentInfo> extents;
    for (const auto& part : parts_) {
        ExtentInfo extent;
        extent.size_bytes = part.node->size();
        extent.file = part.node->name();
        extent.format = part.type;
        if (part.sparse != nullptr) {
            extent.cluster_bytes = part.sparse->header().grain_bytes;
            extent.compressed = part.sparse->header().compressed();
            info.dirty = info.dirty || part.sparse->header().unclean;
            info.compressed = info.compressed || extent.compressed;
        }
        extents.push_back(std::move(extent));
    }
    if (!extents.empty())
        info.cluster_bytes = extents.front().cluster_bytes;
    info.facts.emplace_back("cid", std::uint64_t{descriptor_.cid});
    info.facts.emplace_back("parent-cid", std::uint64_t{descriptor_.parent_cid});
    info.facts.emplace_back("create-type", descriptor_.create_type);
    info.facts.emplace_back("extents", std::move(extents));
    return info;
}

} // namespace doppel::block::vmdk
