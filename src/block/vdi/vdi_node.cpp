// SPDX-License-Identifier: Apache-2.0
#include "block/vdi/vdi_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::vdi {

namespace {
constexpr std::size_t kTableCacheBytes = 2u << 20;
constexpr std::uint64_t kSliceBytes = 512;
constexpr std::uint64_t kSliceEntries = kSliceBytes / 4;
} // namespace

VdiNode::VdiNode(OpenRequest& request, const Header& header)
    : ClusteredNode{request, header.size_bytes, header.block_bytes}, header_{header},
      table_{*file_, kSliceBytes, kTableCacheBytes} {}

Task<std::unique_ptr<VdiNode>> VdiNode::open(OpenRequest request) {
    std::vector<std::byte> head(std::min<std::uint64_t>(kHeaderBytes, request.file->size()));
    DOPPEL_AWAIT_VOID(request.file->read(0, IoBuffer{head}));
    auto header = parse_header(head, request.file->size());
    if (!header)
        co_return std::unexpected(
            std::move(header).error().with_context(fmt::format("'{}'", request.file->name())));
    std::unique_ptr<VdiNode> node{new VdiNode{request, *header}};
    if (header->type == Type::Differencing) {
        DOPPEL_AWAIT_VOID(node->find_parent());
        DOPPEL_AWAIT_VOID(node->open_backing(*request.opener, node->parent_, "vdi"));
    }
    co_return node;
}

Task<std::uint32_t> VdiNode::entry(std::uint64_t index) {
    const auto slice = header_.table_offset + index / kSliceEntries * kSliceBytes;
    DOPPEL_AWAIT(bytes, table_.load(slice));
    co_return base::load_le<std::uint32_t>(bytes + index % kSliceEntries * 4);
}

Task<void> VdiNode::set_entry(std::uint64_t index, std::uint32_t value) {
    const auto slice = header_.table_offset + index / kSliceEntries * kSliceBytes;
    DOPPEL_AWAIT(bytes, table_.load(slice));
    base::store_le(bytes + index % kSliceEntries * 4, value);
    table_.mark_dirty(slice);
    co_return {};
}

/// Up to the end of a slice of the table.
Task<ClusterRun> VdiNode::find(std::uint64_t index, std::uint64_t most) {
    const auto first = index % kSliceEntries;
    DOPPEL_AWAIT(bytes, table_.load(header_.table_offset + (index - first) * 4));
    const auto at = [&](std::uint64_t i) {
        return base::load_le<std::uint32_t>(bytes + (first + i) * 4);
    };
    most = std::min(most, kSliceEntries - first);
    const auto value = at(0);
    ClusterRun run;
    const bool mark = value == kFree || value == kZero;
    const std::uint64_t step = mark ? 0 : 1;
    while (run.count < most && at(run.count) == value + run.count * step &&
           (mark || header_.extra_bytes == 0))
        ++run.count;
    if (mark) {
        run.kind = value == kZero ? ClusterKind::Zero : ClusterKind::Absent;
        co_return run;
    }
    run.kind = ClusterKind::Data;
    run.host = header_.host(value);
    if (value >= std::max(next_, file_blocks()))
        co_return corrupt(fmt::format("block {} of the disk lies past the end of the file", index));
    co_return run;
}

ImageInfo VdiNode::info() const {
    ImageInfo info;
    info.backing_file = parent_;
    info.backing_format = parent_.empty() ? "" : "vdi";
    info.cluster_bytes = header_.block_bytes;
    const auto type = header_.type == Type::Fixed          ? "static"
                      : header_.type == Type::Differencing ? "differencing"
                      : header_.type == Type::Undo         ? "undo"
                                                           : "dynamic";
    info.facts.emplace_back("image-type", std::string{type});
    info.facts.emplace_back("uuid", guid_text(header_.created));
    if (header_.type == Type::Differencing)
        info.facts.emplace_back("parent-uuid", guid_text(header_.parent_created));
    if (!header_.comment.empty())
        info.facts.emplace_back("comment", header_.comment);
    return info;
}

} // namespace doppel::block::vdi
