// SPDX-License-Identifier: Apache-2.0
#include "block/vmdk/sparse_extent.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/codec/codec.hpp"

namespace doppel::block::vmdk {

using base::load_le;

namespace {

constexpr std::size_t kTableCacheBytes = 4u << 20;
constexpr std::size_t kMarkerBytes = 12; // of a compressed grain: u64 sector of the disk, u32 bytes
constexpr std::uint64_t kFooterFromEnd = 2 * kSector;

/// The header with the directory's place, from the footer if it says so.
Task<Header> read_header(Node& file) {
    std::vector<std::byte> sector(std::min<std::uint64_t>(kSector, file.size()));
    DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{sector}));
    DOPPEL_CO_TRY(header, parse_header(sector));
    if (header.directory_at != GD_AT_END)
        co_return header;
    const auto size = file.size();
    if (size < header.overhead_bytes + 3 * kSector || size % kSector != 0)
        co_return base::fail(Errc::Corrupt,
                             "the footer is not there: the file was not written to its end");
    DOPPEL_AWAIT_VOID(file.read(size - kFooterFromEnd, IoBuffer{sector}));
    auto footer = parse_header(sector);
    if (!footer || footer->directory_at == GD_AT_END)
        co_return base::fail(Errc::Corrupt,
                             "the footer is not there: the file was not written to its end");
    footer->descriptor_at = header.descriptor_at;
    footer->descriptor_bytes = header.descriptor_bytes;
    co_return *footer;
}

} // namespace

SparseExtent::SparseExtent(OpenRequest& request, const Header& header)
    : ClusteredNode{request, header.size_bytes, header.grain_bytes}, header_{header},
      tables_{*file_, kSector, kTableCacheBytes} {}

Task<std::unique_ptr<SparseExtent>> SparseExtent::open(OpenRequest request) {
    auto task = read_header(*request.file);
    auto header = co_await task;
    if (header) {
        auto sound = check_places(*header, request.file->size());
        if (!sound)
            header = std::unexpected(std::move(sound).error());
    }
    if (!header)
        co_return std::unexpected(
            std::move(header).error().with_context(fmt::format("'{}'", request.file->name())));
    co_return std::unique_ptr<SparseExtent>{new SparseExtent{request, *header}};
}

/// Where a table lies, in bytes; 0: there is none.
Task<std::uint64_t> SparseExtent::table_at(std::uint64_t directory, std::uint64_t number) {
    const auto at = directory + number * 4;
    const auto slice = base::align_down(at, kSector);
    DOPPEL_AWAIT(bytes, tables_.load(slice));
    const auto table = load_le<std::uint32_t>(bytes + (at - slice)) * kSector;
    if (table >= std::max(file_->size(), file_end_))
        co_return corrupt(fmt::format("grain table {} lies past the end of the file", number));
    co_return table;
}

/// Up to the end of a slice of a table, or as far as there is none.
Task<ClusterRun> SparseExtent::find(std::uint64_t index, std::uint64_t most) {
    const auto first = index % header_.entries;
    most = std::min(most, header_.entries - first);
    if (stream_) // has written over the tables; nobody reads what it writes
        co_return ClusterRun{ClusterKind::Absent, 0, most};
    DOPPEL_AWAIT(table, table_at(header_.directory_at, index / header_.entries));
    if (table == 0)
        co_return ClusterRun{ClusterKind::Absent, 0, most};
    const auto slice = base::align_down(table + first * 4, kSector);
    const auto begin = (table + first * 4 - slice) / 4;
    DOPPEL_AWAIT(bytes, tables_.load(slice));
    const auto at = [&](std::uint64_t i) {
        return load_le<std::uint32_t>(bytes + (begin + i) * 4);
    };
    most = std::min(most, kSector / 4 - begin);
    const auto value = at(0);
    const bool zero = value == kZeroGrain && has_zero_state();
    ClusterRun run;
    if (value != 0 && !zero) {
        run.kind = header_.compressed() ? ClusterKind::Compressed : ClusterKind::Data;
        run.host = value * kSector;
        if (run.host >= std::max(file_->size(), file_end_))
            co_return corrupt(fmt::format("grain {} lies past the end of the file", index));
        if (header_.compressed())
            most = 1;
    } else if (zero) {
        run.kind = ClusterKind::Zero;
    }
    const auto step = run.kind == ClusterKind::Data ? header_.grain_bytes / kSector : 0;
    while (run.count < most && at(run.count) == value + run.count * step)
        ++run.count;
    co_return run;
}

/// The last grain may hold just what the disk has of it.
Task<void> SparseExtent::unpack(std::uint64_t index, std::uint64_t host, std::span<std::byte> out) {
    std::vector<std::byte> marker(kMarkerBytes);
    DOPPEL_AWAIT_VOID(file_->read(host, IoBuffer{marker}));
    const auto sector = load_le<std::uint64_t>(marker.data());
    const auto length = load_le<std::uint32_t>(marker.data() + 8);
    const auto begin = index * header_.grain_bytes;
    const auto room = file_->size() - std::min(file_->size(), host + kMarkerBytes);
    if (sector * kSector != begin || length > room || length > 2 * header_.grain_bytes)
        co_return corrupt(
            fmt::format("the marker of grain {} says sector {}, {} bytes", index, sector, length));
    std::vector<std::byte> stream(length);
    DOPPEL_AWAIT_VOID(file_->read(host + kMarkerBytes, IoBuffer{stream}));
    const auto got = codec::unzlib(stream, out);
    if (!got || *got < std::min<std::uint64_t>(out.size(), size_bytes_ - begin))
        co_return corrupt(fmt::format("the compressed grain {} is damaged", index));
    co_return {};
}

} // namespace doppel::block::vmdk
