// SPDX-License-Identifier: Apache-2.0
#include "block/vpc/vpc_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/utf16.hpp"

namespace doppel::block::vpc {

namespace {

constexpr std::size_t kTableCacheBytes = 2u << 20;
constexpr std::uint64_t kSliceEntries = kSector / 4;
constexpr std::uint64_t kSliceBits = kSector * 8;
constexpr std::uint64_t kMaxLocatorBytes = 64u << 10;

} // namespace

Task<FoundFooter> find_footer(Node& file) {
    const auto size = file.size();
    std::vector<std::byte> bytes(kFooterBytes);
    Result<Footer> footer = base::fail(Errc::Corrupt, "the file is shorter than a footer");
    // Very old ones have 511 bytes, the last one being zero anyway.
    for (const std::uint64_t length : {std::uint64_t{512}, std::uint64_t{511}}) {
        if (size < length)
            continue;
        bytes[511] = {};
        const IoBuffer into{bytes.data(), length};
        DOPPEL_AWAIT_VOID(file.read(size - length, into));
        auto found = parse_footer(bytes);
        if (found)
            co_return FoundFooter{std::move(*found), false};
        if (length == 512)
            footer = std::move(found);
    }
    DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{bytes}));
    auto copy = parse_footer(bytes);
    if (copy && copy->type != Type::Fixed)
        co_return FoundFooter{std::move(*copy), true};
    co_return std::unexpected(std::move(footer).error());
}

VpcNode::VpcNode(OpenRequest& request, Footer footer, Header header)
    : ClusteredNode{request, footer.size_bytes, header.block_bytes}, footer_{std::move(footer)},
      header_{std::move(header)}, table_{*file_, kSector, kTableCacheBytes} {}

Task<std::unique_ptr<VpcNode>> VpcNode::open(OpenRequest request, Footer footer, bool footer_lost) {
    std::vector<std::byte> bytes(kHeaderBytes);
    const auto file_bytes = request.file->size();
    if (footer.header_offset > file_bytes || footer.header_offset % kSector != 0)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}': the header would lie at {:#x}",
                                         request.file->name(), footer.header_offset));
    DOPPEL_AWAIT_VOID(request.file->read(footer.header_offset, IoBuffer{bytes}));
    auto header = parse_header(bytes, footer.size_bytes, file_bytes);
    if (!header)
        co_return std::unexpected(
            std::move(header).error().with_context(fmt::format("'{}'", request.file->name())));
    std::unique_ptr<VpcNode> node{new VpcNode{request, std::move(footer), std::move(*header)}};
    node->footer_lost_ = footer_lost;
    if (node->footer_.type == Type::Differencing)
        DOPPEL_AWAIT_VOID(node->open_parent(*request.opener));
    if (!footer_lost && !node->read_only())
        DOPPEL_AWAIT_VOID(node->renew_copy());
    co_return node;
}

/// A change may have been cut off between the footers: QEMU goes by the copy, and would not see
/// what is written from now on.
Task<void> VpcNode::renew_copy() {
    std::vector<std::byte> copy(kFooterBytes);
    DOPPEL_AWAIT_VOID(file_->read(0, IoBuffer{copy}));
    if (!std::ranges::equal(copy, footer_.bytes))
        DOPPEL_AWAIT_VOID(file_->write(0, IoBuffer::of(footer_.bytes), Durability::Durable));
    co_return {};
}

/// Its relative path if there is one, else the file name of the path it had.
Task<void> VpcNode::open_parent(ImageOpener& opener) {
    std::string path;
    for (const auto& locator : header_.locators) {
        if (locator.platform != kRelativeLocator || locator.offset > file_->size())
            continue;
        std::vector<std::byte> bytes(std::min(locator.bytes, kMaxLocatorBytes));
        DOPPEL_AWAIT_VOID(file_->read(locator.offset, IoBuffer{bytes}));
        path = utf8_of(bytes, ByteOrder::Little);
    }
    if (path.empty())
        path = header_.parent_name.substr(header_.parent_name.find_last_of("\\/") + 1);
    std::ranges::replace(path, '\\', '/');
    while (path.starts_with("./"))
        path.erase(0, 2);
    parent_ = path;
    DOPPEL_AWAIT_VOID(open_backing(opener, path, "vpc"));
    if (!backing_ || backing_->file() == nullptr)
        co_return {};
    DOPPEL_AWAIT(found, find_footer(*backing_->file()));
    if (found.footer.uuid != header_.parent)
        co_return base::fail(
            Errc::Corrupt,
            fmt::format("'{}' is not the image that '{}' was made from", parent_, name()),
            "If what it shows is still right, say so with rebase -u.");
    co_return {};
}

Task<void> VpcNode::set_entry(std::uint64_t index, std::uint32_t value) {
    const auto slice = header_.table_offset + index / kSliceEntries * kSector;
    DOPPEL_AWAIT(bytes, table_.load(slice));
    base::store_be(bytes + index % kSliceEntries * 4, value);
    table_.mark_dirty(slice);
    co_return {};
}

Task<ClusterRun> VpcNode::find(std::uint64_t index, std::uint64_t most) {
    const auto first = index % kSliceEntries;
    DOPPEL_AWAIT(bytes, table_.load(header_.table_offset + (index - first) * 4));
    const auto at = [&](std::uint64_t i) {
        return base::load_be<std::uint32_t>(bytes + (first + i) * 4);
    };
    ClusterRun run;
    if (at(0) == kFree) {
        most = std::min(most, kSliceEntries - first);
        while (run.count < most && at(run.count) == kFree)
            ++run.count;
        co_return run;
    }
    run.host = at(0) * kSector + header_.bitmap_bytes();
    if (run.host < kFooterBytes || run.host >= std::max(file_->size(), file_end_))
        co_return corrupt(fmt::format("block {} lies past the end of the file", index));
    run.kind = tracks_sectors() ? ClusterKind::Partial : ClusterKind::Data;
    co_return run;
}

/// Bit 7 of a byte is the first sector.
Task<ClusteredNode::SectorRun> VpcNode::find_sectors(std::uint64_t, std::uint64_t host,
                                                     std::uint64_t first, std::uint64_t most) {
    const auto bitmap = host - header_.bitmap_bytes();
    DOPPEL_AWAIT(bytes, table_.load(bitmap + first / kSliceBits * kSector));
    const auto get = [&](std::uint64_t i) {
        return (static_cast<unsigned>(bytes[i / 8]) << i % 8 & 0x80) != 0;
    };
    const auto begin = first % kSliceBits;
    most = std::min(most, kSliceBits - begin);
    SectorRun run{get(begin), 1};
    while (run.count < most && get(begin + run.count) == run.present)
        ++run.count;
    co_return run;
}

Task<void> VpcNode::mark_sectors(std::uint64_t, std::uint64_t host, std::uint64_t first,
                                 std::uint64_t count) {
    const auto bitmap = host - header_.bitmap_bytes();
    for (auto sector = first; sector < first + count;) {
        const auto slice = bitmap + sector / kSliceBits * kSector;
        DOPPEL_AWAIT(bytes, table_.load(slice));
        const auto end = std::min(first + count, (sector / kSliceBits + 1) * kSliceBits);
        for (; sector < end; ++sector)
            bytes[sector % kSliceBits / 8] |= std::byte{0x80} >> sector % 8;
        table_.mark_dirty(slice);
    }
    co_return {};
}

Task<void> VpcNode::begin_writing() {
    CheckResult result;
    DOPPEL_AWAIT(end, walk(result));
    if (result.corruptions != 0)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}' is corrupt and cannot be written: {}", name(),
                                         result.findings.front()),
                             "Look at it with check.");
    end_ = end;
    footer_dirty_ = footer_lost_ || file_->size() != end_ + kFooterBytes;
    fresh_from_ = file_->driver() == "host_device" ? ~std::uint64_t{0} : file_->size();
    co_return {};
}

/// One at a time: each has its bitmap in front.
Task<ClusteredNode::Space> VpcNode::allocate(std::uint64_t, std::uint64_t) {
    const auto begin = end_;
    const auto host = begin + header_.bitmap_bytes();
    if (begin / kSector >= kFree)
        return ready<Space>(base::fail(Errc::NoSpace, "a VHD file cannot be larger than 2 TiB"));
    end_ = host + header_.block_bytes;
    file_end_ = std::max(file_end_, end_ + kFooterBytes);
    footer_dirty_ = true;
    table_.forget(begin, header_.bitmap_bytes());
    return ready<Space>(Space{host, 1, host >= fresh_from_});
}

/// The bitmap goes to the file along with the data, before the table names the block.
Task<void> VpcNode::link(std::uint64_t index, ClusterRun run) {
    for (std::uint64_t i = 0; run.kind == ClusterKind::Absent && i < run.count; ++i)
        DOPPEL_AWAIT_VOID(set_entry(index + i, kFree));
    if (run.kind == ClusterKind::Absent)
        co_return {};
    const auto begin = run.host - header_.bitmap_bytes();
    const std::vector<std::byte> bits(
        header_.bitmap_bytes(), run.kind == ClusterKind::Data ? std::byte{0xff} : std::byte{0});
    DOPPEL_AWAIT_VOID(file_->write(begin, IoBuffer::of(bits), Durability::Cached));
    DOPPEL_AWAIT_VOID(set_entry(index, static_cast<std::uint32_t>(begin / kSector)));
    if (run.kind == ClusterKind::Data && tracks_sectors())
        DOPPEL_AWAIT_VOID(mark_sectors(index, run.host, 0, header_.block_bytes / kSector));
    co_return {};
}

Task<void> VpcNode::write_ahead() {
    if (!footer_dirty_)
        co_return {};
    DOPPEL_AWAIT_VOID(file_->write(end_, IoBuffer::of(footer_.bytes), Durability::Cached));
    if (file_->driver() != "host_device" && file_->size() > end_ + kFooterBytes)
        DOPPEL_AWAIT_VOID(file_->resize(end_ + kFooterBytes)); // the footer is what stands last
    footer_dirty_ = footer_lost_ = false;
    co_return {};
}

Task<void> VpcNode::release_all() {
    CheckResult result;
    DOPPEL_AWAIT(end, walk(result));
    end_ = end;
    DOPPEL_AWAIT_VOID(file_->write(end_, IoBuffer::of(footer_.bytes), Durability::Durable));
    file_end_ = 0;
    if (file_->driver() == "host_device")
        co_return {};
    DOPPEL_AWAIT_VOID(file_->resize(end_ + kFooterBytes));
    fresh_from_ = std::min(fresh_from_, end_ + kFooterBytes);
    co_return {};
}

ImageInfo VpcNode::info() const {
    ImageInfo info;
    info.backing_file = parent_;
    info.backing_format = parent_.empty() ? "" : "vpc";
    info.cluster_bytes = header_.block_bytes;
    info.facts.emplace_back("image-type",
                            std::string{tracks_sectors() ? "differencing" : "dynamic"});
    info.facts.emplace_back("uuid", uuid_text(footer_.uuid));
    return info;
}

} // namespace doppel::block::vpc
