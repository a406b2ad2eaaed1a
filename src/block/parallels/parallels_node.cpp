// SPDX-License-Identifier: Apache-2.0
#include "block/parallels/parallels_node.hpp"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::parallels {

using base::load_le;

namespace {

constexpr std::string_view kMagic = "WithoutFreeSpace";
constexpr std::string_view kMagicExt = "WithouFreSpacExt"; // tables count in tracks
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kInUse = 0x746f6e59;
constexpr std::uint64_t kSector = 512;
constexpr std::uint64_t kHeaderBytes = 64; // the table follows
constexpr std::uint64_t kMaxTrackSectors = 1u << 20;
constexpr std::uint64_t kChunkEntries = 64u << 10; // of a table that is walked
constexpr std::size_t kTableCacheBytes = 2u << 20;

bool begins_with(std::span<const std::byte> head, std::string_view magic) {
    return head.size() >= magic.size() &&
           std::string_view{reinterpret_cast<const char*>(head.data()), magic.size()} == magic;
}

bool is_parallels(std::span<const std::byte> head) {
    return head.size() >= kHeaderBytes &&
           (begins_with(head, kMagic) || begins_with(head, kMagicExt)) &&
           load_le<std::uint32_t>(head.data() + 16) == kVersion;
}

int probe(std::span<const std::byte> head, std::uint64_t) { return is_parallels(head) ? 100 : 0; }

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, ParallelsNode::open(std::move(request)));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

constexpr Format kFormat{"parallels", "an image of Parallels, read only", probe, open, nullptr, {},
                         nullptr};

} // namespace

Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes) {
    const auto corrupt = [](std::string text) {
        return base::fail(Errc::Corrupt, std::move(text));
    };
    if (!is_parallels(head))
        return corrupt("the magic number of Parallels is not there");
    const auto word = [&](std::size_t at) { return load_le<std::uint32_t>(head.data() + at); };
    Header header;
    const bool ext = begins_with(head, kMagicExt);
    const std::uint64_t track = word(28);
    if (track == 0 || track > kMaxTrackSectors)
        return corrupt(
            fmt::format("a track has {} sectors, allowed are 1 to {}", track, kMaxTrackSectors));
    header.track_bytes = track * kSector;
    header.unit_bytes = ext ? header.track_bytes : kSector;
    header.entries = word(32);
    if (header.entries * 4ull > file_bytes - kHeaderBytes)
        return corrupt(
            fmt::format("the table of {} entries passes the end of the file", header.entries));
    const auto sectors = ext ? load_le<std::uint64_t>(head.data() + 36) : word(36);
    if (sectors > header.entries * track)
        return corrupt(fmt::format("the disk has {} sectors, the table is for {}", sectors,
                                   header.entries * track));
    header.size_bytes = sectors * kSector;
    header.in_use = word(44) == kInUse;
    return header;
}

ParallelsNode::ParallelsNode(OpenRequest& request, const Header& header)
    : ClusteredNode{request, header.size_bytes, header.cluster_bytes()}, header_{header},
      table_{*file_, kSector, kTableCacheBytes} {}

Task<std::unique_ptr<ParallelsNode>> ParallelsNode::open(OpenRequest request) {
    if (request.options.access == Access::ReadWrite)
        co_return base::fail(
            Errc::Unsupported,
            fmt::format("'{}': Parallels images can be read, not written", request.file->name()),
            "Convert it.");
    std::vector<std::byte> head(std::min<std::uint64_t>(kHeaderBytes, request.file->size()));
    DOPPEL_AWAIT_VOID(request.file->read(0, IoBuffer{head}));
    auto header = parse_header(head, request.file->size());
    if (!header)
        co_return std::unexpected(
            std::move(header).error().with_context(fmt::format("'{}'", request.file->name())));
    co_return std::unique_ptr<ParallelsNode>{new ParallelsNode{request, *header}};
}

/// Within one track.
Task<ClusterRun> ParallelsNode::find(std::uint64_t index, std::uint64_t most) {
    const auto offset = index * cluster_bytes_;
    const auto track = offset / header_.track_bytes;
    const auto inside = offset % header_.track_bytes;
    const auto at = kHeaderBytes + track * 4;
    const auto slice = base::align_down(at, kSector);
    DOPPEL_AWAIT(bytes, table_.load(slice));
    const auto entry = load_le<std::uint32_t>(bytes + (at - slice));
    ClusterRun run;
    run.count = std::min(most, (header_.track_bytes - inside) / cluster_bytes_);
    if (entry == 0)
        co_return run;
    run.kind = ClusterKind::Data;
    run.host = entry * header_.unit_bytes + inside;
    if (run.host >= file_->size())
        co_return corrupt(fmt::format("track {} lies past the end of the file", track));
    co_return run;
}

Task<CheckResult> ParallelsNode::check(Repair) {
    CheckResult result;
    result.total_clusters = header_.entries;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> used; // where, which
    for (std::uint64_t first = 0; first < header_.entries; first += kChunkEntries) {
        std::vector<std::byte> bytes(
            std::min<std::uint64_t>(kChunkEntries, header_.entries - first) * 4);
        DOPPEL_AWAIT_VOID(file_->read(kHeaderBytes + first * 4, IoBuffer{bytes}));
        for (std::uint64_t i = 0; i < bytes.size() / 4; ++i) {
            const auto host = load_le<std::uint32_t>(bytes.data() + i * 4) * header_.unit_bytes;
            if (host == 0)
                continue;
            if (host >= file_->size())
                result.found_corruption(
                    fmt::format("track {} lies past the end of the file", first + i));
            result.fragmented_clusters +=
                !used.empty() && host != used.back().first + header_.track_bytes;
            used.emplace_back(host, first + i);
        }
    }
    result.allocated_clusters = used.size();
    std::ranges::sort(used);
    auto end = kHeaderBytes + header_.entries * 4ull;
    for (const auto& [host, track] : used) {
        if (host < end)
            result.found_corruption(fmt::format("track {} lies where something else does", track));
        end = host + header_.track_bytes;
    }
    result.image_end_offset = end;
    if (file_->size() >= end + header_.track_bytes)
        result.leaks = (file_->size() - end) / header_.track_bytes;
    co_return result;
}

ImageInfo ParallelsNode::info() const {
    ImageInfo info;
    info.cluster_bytes = header_.track_bytes;
    info.dirty = header_.in_use;
    return info;
}

const Format& format() { return kFormat; }

} // namespace doppel::block::parallels
