// SPDX-License-Identifier: Apache-2.0
#include "block/qed/qed_node.hpp"

#include <algorithm>
#include <bit>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::qed {

using base::load_le;

namespace {

constexpr std::size_t kHeadBytes = 64;
constexpr std::uint64_t kBackingFile = 1, kNeedCheck = 2, kBackingRaw = 4; // features
constexpr std::uint64_t kMinCluster = 4096, kMaxCluster = 64u << 20;
constexpr std::uint32_t kMaxTableClusters = 16;
constexpr std::uint32_t kMaxBackingName = 1023;
constexpr std::size_t kTableCacheBytes = 4u << 20;
constexpr std::uint64_t kSliceEntries = 4096 / 8;
constexpr std::uint64_t kZeroEntry = 1;

std::unexpected<Error> corrupt_header(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text), "Is this a QED image?");
}

bool is_qed(std::span<const std::byte> head) {
    return head.size() >= kHeadBytes && load_le<std::uint32_t>(head.data()) == QED_MAGIC;
}

int probe(std::span<const std::byte> head, std::uint64_t) { return is_qed(head) ? 100 : 0; }

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, QedNode::open(std::move(request)));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

constexpr Format kFormat{"qed", "an old image of QEMU", probe, open, nullptr, {}, nullptr};

} // namespace

Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes) {
    if (!is_qed(head))
        return corrupt_header("the magic number of QED is not there");
    const auto word = [&](std::size_t at) { return load_le<std::uint32_t>(head.data() + at); };
    const auto wide = [&](std::size_t at) { return load_le<std::uint64_t>(head.data() + at); };
    const auto features = wide(16);
    if ((features & ~(kBackingFile | kNeedCheck | kBackingRaw)) != 0)
        return base::fail(
            Errc::Unsupported,
            fmt::format("the image needs features that are unknown ({:#x})", features));
    Header header;
    header.cluster_bytes = word(4);
    if (!std::has_single_bit(header.cluster_bytes) || header.cluster_bytes < kMinCluster ||
        header.cluster_bytes > kMaxCluster)
        return corrupt_header(fmt::format("clusters have {} bytes, allowed are powers of two from "
                                          "4 KiB to 64 MiB",
                                          header.cluster_bytes));
    if (!std::has_single_bit(word(8)) || word(8) > kMaxTableClusters)
        return corrupt_header(fmt::format("tables have {} clusters, allowed are powers of two up "
                                          "to {}",
                                          word(8), kMaxTableClusters));
    header.table_bytes = word(8) * header.cluster_bytes;
    header.header_bytes = word(12) * header.cluster_bytes;
    header.l1_offset = wide(40);
    header.size_bytes = wide(48);
    const auto mapped = std::bit_width(header.entries()) * 2 - 2 +
                        std::bit_width(header.cluster_bytes) - 1; // as a power of two
    if (header.size_bytes % 512 != 0 ||
        (mapped < 62 && header.size_bytes > std::uint64_t{1} << mapped) ||
        header.size_bytes > std::uint64_t{1} << 62)
        return corrupt_header(
            fmt::format("the disk's size is {} bytes, more than the tables hold or no multiple of "
                        "512",
                        header.size_bytes));
    if (header.l1_offset % header.cluster_bytes != 0 || header.l1_offset == 0 ||
        header.l1_offset > file_bytes || header.table_bytes > file_bytes - header.l1_offset)
        return corrupt_header(fmt::format("the L1 table ({} bytes at {:#x}) passes the end of the "
                                          "file",
                                          header.table_bytes, header.l1_offset));
    header.needs_check = (features & kNeedCheck) != 0;
    header.backing_is_raw = (features & kBackingRaw) != 0;
    if ((features & kBackingFile) != 0) {
        header.backing_at = word(56);
        header.backing_bytes = word(60);
        if (header.backing_bytes > kMaxBackingName || header.backing_at > file_bytes ||
            header.backing_bytes > file_bytes - header.backing_at)
            return corrupt_header(fmt::format("the backing file's name ({} bytes at {}) is not in "
                                              "the file, or longer than {}",
                                              header.backing_bytes, header.backing_at,
                                              kMaxBackingName));
    }
    return header;
}

QedNode::QedNode(OpenRequest& request, const Header& header)
    : ClusteredNode{request, header.size_bytes, header.cluster_bytes}, header_{header},
      tables_{*file_, kMinCluster, kTableCacheBytes} {}

Task<std::unique_ptr<QedNode>> QedNode::open(OpenRequest request) {
    if (request.options.access != Access::ReadOnly)
        co_return base::fail(
            Errc::Unsupported,
            fmt::format("'{}': QED images can be read, not written", request.file->name()),
            "Convert it.");
    std::vector<std::byte> head(std::min<std::uint64_t>(kHeadBytes, request.file->size()));
    DOPPEL_AWAIT_VOID(request.file->read(0, IoBuffer{head}));
    auto header = parse_header(head, request.file->size());
    if (!header)
        co_return std::unexpected(
            std::move(header).error().with_context(fmt::format("'{}'", request.file->name())));
    std::unique_ptr<QedNode> node{new QedNode{request, *header}};
    if (header->backing_bytes > 0) {
        node->backing_name_.resize(header->backing_bytes);
        const IoBuffer name{node->backing_name_.data(), node->backing_name_.size()};
        DOPPEL_AWAIT_VOID(node->file_->read(header->backing_at, name));
        DOPPEL_AWAIT_VOID(node->open_backing(*request.opener, node->backing_name_,
                                             header->backing_is_raw ? "raw" : ""));
    }
    co_return node;
}

Task<std::uint64_t> QedNode::entry(std::uint64_t table, std::uint64_t index) {
    DOPPEL_AWAIT(bytes, tables_.load(table + index / kSliceEntries * kMinCluster));
    co_return load_le<std::uint64_t>(bytes + index % kSliceEntries * 8);
}

Result<void> QedNode::check_place(const char* what, std::uint64_t offset,
                                  std::uint64_t bytes) const {
    if (offset % header_.cluster_bytes != 0 || offset >= file_->size() ||
        bytes > base::align_up(file_->size(), header_.cluster_bytes) - offset)
        return corrupt(fmt::format("{} would lie at {:#x}", what, offset));
    return {};
}

/// Within a slice of an L2 table, or as far as there is none.
Task<ClusterRun> QedNode::find(std::uint64_t index, std::uint64_t most) {
    const auto first = index % header_.entries();
    DOPPEL_AWAIT(table, entry(header_.l1_offset, index / header_.entries()));
    if (table == 0)
        co_return ClusterRun{ClusterKind::Absent, 0, std::min(most, header_.entries() - first)};
    DOPPEL_CO_TRY_VOID(check_place("an L2 table", table, header_.table_bytes));
    DOPPEL_AWAIT(bytes, tables_.load(table + first / kSliceEntries * kMinCluster));
    const auto begin = first % kSliceEntries;
    const auto at = [&](std::uint64_t i) {
        return load_le<std::uint64_t>(bytes + (begin + i) * 8);
    };
    most = std::min(most, kSliceEntries - begin);
    const auto value = at(0);
    const bool data = value > kZeroEntry;
    ClusterRun run{data                  ? ClusterKind::Data
                   : value == kZeroEntry ? ClusterKind::Zero
                                         : ClusterKind::Absent,
                   value, 1};
    while (run.count < most &&
           at(run.count) == (data ? value + run.count * header_.cluster_bytes : value))
        ++run.count;
    if (data)
        DOPPEL_CO_TRY_VOID(check_place("a cluster", value, 1));
    co_return run;
}

ImageInfo QedNode::info() const {
    ImageInfo info;
    info.backing_file = backing_name_;
    info.backing_format = header_.backing_is_raw ? "raw" : "";
    info.cluster_bytes = header_.cluster_bytes;
    info.dirty = header_.needs_check;
    return info;
}

const Format& format() { return kFormat; }

} // namespace doppel::block::qed
