// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "block/vmdk/plain_extents.hpp"
#include "block/vmdk/vmdk_node.hpp"

namespace doppel::block::vmdk {

namespace {

constexpr std::string_view kSparseSignature = "COWD"; // ESX's vmfsSparse

/// A sparse extent whose text stands in it.
Task<Descriptor> read_embedded(Node& file, const Header& header) {
    if (header.descriptor_at == 0 || header.descriptor_bytes == 0)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("'{}' is one extent of an image", file.name()),
                             "Name the image's descriptor, the small .vmdk beside it.");
    std::vector<std::byte> bytes(std::min(header.descriptor_bytes, kMaxDescriptorBytes));
    DOPPEL_AWAIT_VOID(file.read(header.descriptor_at, IoBuffer{bytes}));
    auto descriptor = parse_descriptor(bytes);
    if (!descriptor)
        co_return std::unexpected(
            std::move(descriptor).error().with_context(fmt::format("'{}'", file.name())));
    co_return std::move(*descriptor);
}

Task<Descriptor> read_text(Node& file) {
    if (file.size() > kMaxDescriptorBytes)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}': a VMDK descriptor has at most {} bytes",
                                         file.name(), kMaxDescriptorBytes));
    std::vector<std::byte> bytes(file.size());
    DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{bytes}));
    auto descriptor = parse_descriptor(bytes);
    if (!descriptor)
        co_return std::unexpected(
            std::move(descriptor).error().with_context(fmt::format("'{}'", file.name())));
    co_return std::move(*descriptor);
}

Task<std::vector<std::byte>> read_head(Node& file) {
    std::vector<std::byte> head(std::min<std::uint64_t>(kSector, file.size()));
    DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{head}));
    co_return head;
}

} // namespace

Task<Descriptor> read_descriptor(Node& file) {
    DOPPEL_AWAIT(head, read_head(file));
    if (!is_sparse(head)) {
        DOPPEL_AWAIT(text, read_text(file));
        co_return text;
    }
    DOPPEL_CO_TRY(header, parse_header(head));
    DOPPEL_AWAIT(descriptor, read_embedded(file, header));
    co_return descriptor;
}

VmdkNode::VmdkNode(const OpenRequest& request)
    : context_{*request.context}, options_{request.options}, name_{request.file->name()},
      beginning_{context_} {}

Task<std::unique_ptr<VmdkNode>> VmdkNode::open(OpenRequest request) {
    std::unique_ptr<VmdkNode> node{new VmdkNode{request}};
    DOPPEL_AWAIT(head, read_head(*request.file));
    if (std::string_view{reinterpret_cast<const char*>(head.data()), head.size()}.starts_with(
            kSparseSignature))
        co_return base::fail(
            Errc::Unsupported,
            fmt::format("'{}' is an extent of type VMFSSPARSE, of ESX 2 to 5, which is not read",
                        node->name_));
    if (is_sparse(head))
        DOPPEL_AWAIT_VOID(node->open_embedded(request));
    else
        DOPPEL_AWAIT_VOID(node->open_parts(request));
    if (!node->parts_.empty())
        node->size_bytes_ = node->parts_.back().end();
    DOPPEL_AWAIT_VOID(node->open_parent(*request.opener));
    co_return node;
}

Task<void> VmdkNode::open_embedded(OpenRequest& request) {
    OpenRequest own{request.context, std::move(request.file), request.options, request.opener};
    DOPPEL_AWAIT(extent, SparseExtent::open(std::move(own)));
    const auto& header = extent->header();
    DOPPEL_AWAIT(descriptor, read_embedded(*extent->file(), header));
    descriptor_ = std::move(descriptor);
    descriptor_file_ = extent->file();
    descriptor_at_ = header.descriptor_at;
    descriptor_bytes_ = header.descriptor_bytes;
    auto* sparse = extent.get();
    parts_.push_back({0, std::move(extent), sparse, {}});
    co_return {};
}

Task<void> VmdkNode::open_parts(OpenRequest& request) {
    file_ = std::move(request.file);
    DOPPEL_AWAIT(descriptor, read_text(*file_));
    descriptor_ = std::move(descriptor);
    descriptor_file_ = file_.get();
    descriptor_bytes_ = kMaxDescriptorBytes;
    for (const auto& line : descriptor_.extents) {
        DOPPEL_AWAIT(part, open_part(request, line));
        const auto bytes = line.sectors * kSector;
        if (&line != &descriptor_.extents.back() && part.node->size() != bytes)
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("the extent '{}' has {} bytes, '{}' says {}",
                                             part.node->name(), part.node->size(), name_, bytes));
        part.begin = parts_.empty() ? 0 : parts_.back().end();
        if (part.node->size() != 0)
            parts_.push_back(std::move(part));
    }
    co_return {};
}

Task<VmdkNode::Part> VmdkNode::open_part(OpenRequest& request, ExtentLine line) {
    const auto bytes = line.sectors * kSector;
    if (line.access == "NOACCESS")
        co_return base::fail(
            Errc::PermissionDenied,
            fmt::format("'{}' forbids the use of its extent '{}' (NOACCESS)", name_, line.file));
    if (line.type == "ZERO")
        co_return Part{0, std::make_unique<ZeroExtent>(bytes), nullptr, line.type};
    const bool flat = line.type == "FLAT" || line.type == "VMFS";
    if (!flat && line.type != "SPARSE")
        co_return base::fail(Errc::Unsupported,
                             fmt::format("'{}': extents of type {} are not read", name_, line.type),
                             "Known are FLAT, VMFS, SPARSE and ZERO.");
    auto options = options_;
    if (line.access == "RDONLY")
        options.access = Access::ReadOnly;
    DOPPEL_CO_TRY(file,
                  request.opener->open_part(line.file + options_.part_suffix, name_, options));
    const auto path = file->name();
    if (flat) {
        const auto begin = line.offset_sectors * kSector;
        if (!file->fixed_size() && file->size() < begin + bytes && !options_.repair_later)
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("'{}' has {} bytes, '{}' wants {} of it", path,
                                             file->size(), name_, begin + bytes));
        co_return Part{0, std::make_unique<FlatExtent>(std::move(file), begin, bytes), nullptr,
                       line.type};
    }
    OpenRequest own{request.context, std::move(file), options, request.opener};
    DOPPEL_AWAIT(extent, SparseExtent::open(std::move(own)));
    auto* sparse = extent.get();
    co_return Part{0, std::move(extent), sparse, line.type};
}

/// Where its hint says; of a path of Windows the last part, in the image's folder.
Task<void> VmdkNode::open_parent(ImageOpener& opener) {
    if (descriptor_.parent_cid == kNoParent)
        co_return {};
    parent_ = descriptor_.parent;
    if (const auto slash = parent_.rfind('\\'); slash != std::string::npos)
        parent_ = parent_.substr(slash + 1);
    if (parent_.empty())
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}' has a parent, but no name of it", name_));
    if (!options_.backing)
        co_return {};
    DOPPEL_AWAIT(backing, opener.open_backing(parent_, "vmdk", name_, options_));
    backing_ = std::move(backing);
    if (backing_->driver() == "vmdk") {
        const auto& parent = static_cast<const VmdkNode&>(*backing_);
        if (parent.cid() != descriptor_.parent_cid)
            co_return base::fail(
                Errc::Corrupt,
                fmt::format("'{}' was changed after '{}' was made from it", parent_, name_),
                "If what it shows is still right, say so with rebase -u.");
    }
    for (auto& part : parts_)
        if (part.sparse != nullptr)
            part.sparse->set_backing(std::make_unique<Slice>(*backing_, part.begin));
    co_return {};
}

} // namespace doppel::block::vmdk
