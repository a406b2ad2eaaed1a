// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"
#include "block/vhdx/replay.hpp"
#include "block/vhdx/vhdx_node.hpp"

namespace doppel::block::vhdx {

namespace {

constexpr std::size_t kTableCacheBytes = 16u << 20;

Task<std::vector<std::byte>> read_bytes(Node& file, std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> bytes(length);
    DOPPEL_AWAIT_VOID(file.read(offset, IoBuffer{bytes}));
    co_return bytes;
}

/// How the image names its parent, as a path of this system.
std::string path_of(const ParentLocator& parent) {
    auto path = parent.relative_path;
    if (path.empty()) // of another machine: its name may be here, too
        path = parent.absolute_path.substr(parent.absolute_path.rfind('\\') + 1);
    std::ranges::replace(path, '\\', '/');
    while (path.starts_with("./"))
        path.erase(0, 2);
    return path;
}

} // namespace

/// Error: neither copy of the header, or of the region table, is whole.
Task<VhdxNode::Heads> VhdxNode::read_heads(Node& file) {
    Heads heads;
    std::array<std::byte, 8> id{};
    DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{id}));
    if (!is_vhdx(id))
        co_return base::fail(Errc::Corrupt, "the magic number of VHDX is not there",
                             "Is this a VHDX image?");
    Result<Header> current = base::fail(Errc::Corrupt, "");
    Result<void> problem;
    for (unsigned slot = 0; slot < 2; ++slot) {
        DOPPEL_AWAIT(bytes, read_bytes(file, kHeaderOffset[slot], kHeaderBytes));
        auto header = parse_header(bytes);
        if (!header) {
            problem = std::unexpected(std::move(header).error());
        } else if (!current || header->sequence > current->sequence) {
            current = std::move(header);
            heads.slot = slot;
        }
    }
    if (!current)
        co_return std::unexpected(std::move(problem).error());
    heads.header = *current;
    for (unsigned copy = 0; copy < 2; ++copy) {
        DOPPEL_AWAIT(bytes, read_bytes(file, kRegionOffset[copy], kRegionTableBytes));
        auto regions = parse_regions(bytes);
        if (regions) {
            heads.regions = *regions;
            co_return heads;
        }
        if (copy == 1)
            co_return std::unexpected(std::move(regions).error());
    }
    co_return heads;
}

/// The header's other copy, which is the current one from then on.
Task<void> VhdxNode::write_header(Node& file, Heads& heads) {
    ++heads.header.sequence;
    heads.slot = 1 - heads.slot;
    const auto bytes = serialize_header(heads.header);
    DOPPEL_AWAIT_VOID(file.flush());
    DOPPEL_AWAIT_VOID(
        file.write(kHeaderOffset[heads.slot], IoBuffer::of(bytes), Durability::Durable));
    co_return {};
}

/// Yields whether something was written or hidden, so that the heads must be read again.
Task<bool> VhdxNode::replay(OpenRequest& request, Heads& heads) {
    const auto& header = heads.header;
    if (header.log == Uuid{})
        co_return false;
    if (header.log_bytes > kMaxLogBytes || header.log_offset > request.file->size() ||
        header.log_bytes > request.file->size() - header.log_offset)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("the log ({} bytes at {:#x}) passes the end of the file, "
                                         "or {} bytes",
                                         header.log_bytes, header.log_offset, kMaxLogBytes));
    DOPPEL_AWAIT(ring, read_bytes(*request.file, header.log_offset, header.log_bytes));
    DOPPEL_CO_TRY(replay, read_log(ring, header.log, request.file->size()));
    if (request.options.access == Access::ReadOnly) {
        request.file = replayed_view(std::move(request.file), std::move(replay));
        co_return true;
    }
    DOPPEL_AWAIT_VOID(replay_into(*request.file, replay));
    heads.header.log = {};
    DOPPEL_AWAIT_VOID(write_header(*request.file, heads));
    co_return true;
}

VhdxNode::VhdxNode(OpenRequest& request, const Heads& heads, Metadata metadata)
    : ClusteredNode{request, metadata.size_bytes, metadata.block_bytes, metadata.sector_bytes},
      heads_{heads}, items_{std::move(metadata)}, geometry_{items_},
      table_{*file_, kLogPage, kTableCacheBytes} {}

Task<std::unique_ptr<VhdxNode>> VhdxNode::open(OpenRequest request) {
    const auto path = request.file->name();
    const auto context = [&](Error error) {
        return std::unexpected(std::move(error).with_context(fmt::format("'{}'", path)));
    };
    auto heads_task = read_heads(*request.file);
    auto heads = co_await heads_task;
    if (!heads)
        co_return context(std::move(heads).error());
    auto replay_task = replay(request, *heads);
    auto replayed = co_await replay_task;
    if (!replayed)
        co_return context(std::move(replayed).error());
    const auto& regions = heads->regions;
    const auto file_bytes = request.file->size();
    if (regions.metadata.offset > file_bytes || regions.table.offset > file_bytes ||
        regions.table.bytes > file_bytes - regions.table.offset)
        co_return context(Error{Errc::Corrupt, 0, "a region passes the end of the file", {}, {}});
    DOPPEL_AWAIT(bytes, read_bytes(*request.file, regions.metadata.offset,
                                   std::min(regions.metadata.bytes, kMaxMetadataBytes)));
    auto metadata = parse_metadata(bytes);
    if (!metadata)
        co_return context(std::move(metadata).error());
    if (Geometry{*metadata}.entries(metadata->size_bytes) * 8 > regions.table.bytes)
        co_return context(Error{Errc::Corrupt,
                                0,
                                fmt::format("the block allocation table has {} bytes, too few for "
                                            "a disk of {}",
                                            regions.table.bytes, metadata->size_bytes),
                                {},
                                {}});
    std::unique_ptr<VhdxNode> node{new VhdxNode{request, *heads, std::move(*metadata)}};
    if (node->items_.has_parent) {
        node->parent_ = path_of(node->items_.parent);
        DOPPEL_AWAIT_VOID(node->open_backing(*request.opener, node->parent_, "vhdx"));
        DOPPEL_AWAIT_VOID(node->check_parent());
    }
    co_return node;
}

/// The parent is the one, and unchanged, whose DataWriteGuid was noted.
Task<void> VhdxNode::check_parent() {
    if (!backing_ || backing_->file() == nullptr)
        co_return {};
    DOPPEL_AWAIT(heads, read_heads(*backing_->file()));
    const auto is = fmt::format("{{{}}}", guid_text(heads.header.data_write));
    const auto matches = [&](std::string wanted) {
        std::ranges::transform(wanted, wanted.begin(), [](char c) {
            return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
        });
        return wanted == is;
    };
    if (!matches(items_.parent.linkage) && !matches(items_.parent.linkage2))
        co_return base::fail(
            Errc::Corrupt,
            fmt::format("'{}' was changed after '{}' was made from it", parent_, name()),
            "If what it shows is still right, say so with rebase -u.");
    co_return {};
}

} // namespace doppel::block::vhdx
