// SPDX-License-Identifier: Apache-2.0
#include "block/vhdx/layout.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "base/crc32c.hpp"

namespace doppel::block::vhdx {

using base::load_le;
using base::store_le;

namespace {

constexpr std::string_view kFileSignature = "vhdxfile";
constexpr std::string_view kHeaderSignature = "head";
constexpr std::string_view kRegionSignature = "regi";
constexpr std::size_t kRegionEntryAt = 16, kRegionEntryBytes = 32;
constexpr std::uint32_t kMaxEntries = 2047;

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text), "Is this a VHDX image?");
}

/// Whether the CRC-32C at 4 is that of all bytes with it zero.
bool crc_holds(std::span<const std::byte> bytes) {
    constexpr std::array<std::byte, 4> kNothing{};
    auto crc = base::crc32c(bytes.first(4));
    crc = base::crc32c(kNothing, crc);
    return load_le<std::uint32_t>(bytes.data() + 4) == base::crc32c(bytes.subspan(8), crc);
}

void put_crc(std::span<std::byte> bytes) {
    store_le(bytes.data() + 4, std::uint32_t{0});
    store_le(bytes.data() + 4, base::crc32c(bytes));
}

bool begins_with(std::span<const std::byte> bytes, std::string_view text) {
    return bytes.size() >= text.size() && std::memcmp(bytes.data(), text.data(), text.size()) == 0;
}

Uuid load_uuid(const std::byte* at) {
    Uuid uuid{};
    std::memcpy(uuid.data(), at, uuid.size());
    return uuid;
}

constexpr Uuid guid(std::uint32_t a, std::uint16_t b, std::uint16_t c, std::uint64_t rest) {
    Uuid uuid{};
    for (std::size_t i = 0; i < 4; ++i)
        uuid[i] = static_cast<std::byte>(a >> 8 * i & 0xff);
    for (std::size_t i = 0; i < 2; ++i) {
        uuid[4 + i] = static_cast<std::byte>(b >> 8 * i & 0xff);
        uuid[6 + i] = static_cast<std::byte>(c >> 8 * i & 0xff);
    }
    for (std::size_t i = 0; i < 8; ++i)
        uuid[8 + i] = static_cast<std::byte>(rest >> 8 * (7 - i) & 0xff);
    return uuid;
}

constexpr Uuid kTableRegion = guid(0x2dc27766, 0xf623, 0x4200, 0x9d64115e9bfd4a08);
constexpr Uuid kMetadataRegion = guid(0x8b7ca206, 0x4790, 0x4b9a, 0xb8fe575f050f886e);

Result<void> check_region(const char* what, const Region& region) {
    if (region.offset < kMib || region.offset % kMib != 0 || region.bytes == 0 ||
        region.bytes % kMib != 0 || region.offset >> 62 != 0)
        return corrupt(fmt::format("the {} ({} bytes at {:#x}) does not lie on whole MiB behind "
                                   "the first",
                                   what, region.bytes, region.offset));
    return {};
}

} // namespace

bool is_vhdx(std::span<const std::byte> head) { return begins_with(head, kFileSignature); }

Result<Header> parse_header(std::span<const std::byte> bytes) {
    if (bytes.size() < kHeaderBytes || !begins_with(bytes, kHeaderSignature) ||
        !crc_holds(bytes.first(kHeaderBytes)))
        return corrupt("the header is damaged");
    Header header;
    header.sequence = load_le<std::uint64_t>(bytes.data() + 8);
    header.file_write = load_uuid(bytes.data() + 16);
    header.data_write = load_uuid(bytes.data() + 32);
    header.log = load_uuid(bytes.data() + 48);
    const auto log_version = load_le<std::uint16_t>(bytes.data() + 64);
    header.version = load_le<std::uint16_t>(bytes.data() + 66);
    header.log_bytes = load_le<std::uint32_t>(bytes.data() + 68);
    header.log_offset = load_le<std::uint64_t>(bytes.data() + 72);
    if (header.version != 1 || log_version != 0)
        return base::fail(Errc::Unsupported,
                          fmt::format("the version is {} and that of the log {}, known are 1 and 0",
                                      header.version, log_version));
    if (header.log_offset < kMib || header.log_offset % kMib != 0 || header.log_bytes % kMib != 0)
        return corrupt(fmt::format("the log ({} bytes at {:#x}) does not lie on whole MiB behind "
                                   "the first",
                                   header.log_bytes, header.log_offset));
    return header;
}

std::vector<std::byte> serialize_header(const Header& header) {
    std::vector<std::byte> bytes(kHeaderBytes);
    std::memcpy(bytes.data(), kHeaderSignature.data(), kHeaderSignature.size());
    store_le(bytes.data() + 8, header.sequence);
    std::ranges::copy(header.file_write, bytes.begin() + 16);
    std::ranges::copy(header.data_write, bytes.begin() + 32);
    std::ranges::copy(header.log, bytes.begin() + 48);
    store_le(bytes.data() + 66, header.version);
    store_le(bytes.data() + 68, header.log_bytes);
    store_le(bytes.data() + 72, header.log_offset);
    put_crc(bytes);
    return bytes;
}

Result<Regions> parse_regions(std::span<const std::byte> bytes) {
    if (bytes.size() < kRegionTableBytes || !begins_with(bytes, kRegionSignature) ||
        !crc_holds(bytes.first(kRegionTableBytes)))
        return corrupt("the region table is damaged");
    const auto count = load_le<std::uint32_t>(bytes.data() + 8);
    if (count > kMaxEntries)
        return corrupt(
            fmt::format("the region table has {} entries, allowed are {}", count, kMaxEntries));
    Regions regions;
    for (std::uint32_t i = 0; i < count; ++i) {
        const auto* entry = bytes.data() + kRegionEntryAt + i * kRegionEntryBytes;
        const auto id = load_uuid(entry);
        const Region region{load_le<std::uint64_t>(entry + 16), load_le<std::uint32_t>(entry + 24)};
        if (id == kTableRegion)
            regions.table = region;
        else if (id == kMetadataRegion)
            regions.metadata = region;
        else if ((load_le<std::uint32_t>(entry + 28) & 1) != 0)
            return base::fail(
                Errc::Unsupported,
                fmt::format("the image needs a region that is unknown: {}", guid_text(id)));
    }
    DOPPEL_TRY_VOID(check_region("block allocation table", regions.table));
    DOPPEL_TRY_VOID(check_region("metadata region", regions.metadata));
    return regions;
}

std::vector<std::byte> serialize_regions(const Regions& regions) {
    std::vector<std::byte> bytes(kRegionTableBytes);
    std::memcpy(bytes.data(), kRegionSignature.data(), kRegionSignature.size());
    store_le(bytes.data() + 8, std::uint32_t{2});
    const auto put = [&](std::size_t index, const Uuid& id, const Region& region) {
        auto* entry = bytes.data() + kRegionEntryAt + index * kRegionEntryBytes;
        std::ranges::copy(id, entry);
        store_le(entry + 16, region.offset);
        store_le(entry + 24, static_cast<std::uint32_t>(region.bytes));
        store_le(entry + 28, std::uint32_t{1});
    };
    put(0, kTableRegion, regions.table);
    put(1, kMetadataRegion, regions.metadata);
    put_crc(bytes);
    return bytes;
}

} // namespace doppel::block::vhdx
