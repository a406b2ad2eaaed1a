// SPDX-License-Identifier: Apache-2.0
/// The metadata region: a table of items that are named by GUIDs.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string_view>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/utf16.hpp"
#include "block/vhdx/layout.hpp"

namespace doppel::block::vhdx {

using base::load_le;
using base::store_le;

namespace {

constexpr std::string_view kSignature = "metadata";
constexpr std::size_t kEntryAt = 32, kEntryBytes = 32;
constexpr std::uint16_t kMaxItems = 2047;
constexpr std::uint32_t kVirtualDisk = 2, kRequired = 4;

// The first field of each GUID tells the known ones apart; all of it is compared.
constexpr std::array<const char*, 6> kItems{
    "caa16737-fa36-4d43-b3b6-33f0aa44e76b", // file parameters
    "2fa54224-cd1b-4876-b211-5dbed83bf4b8", // size of the disk
    "beca12ab-b2e6-4523-93ef-c309e000c746", // id of the disk
    "8141bf1d-a96f-4709-ba47-f233a8faab5f", // logical sector size
    "cda348c7-445d-4471-9cc9-e9885251c556", // physical sector size
    "a8d35f2d-b30b-454d-abf7-d3d84834ab0c", // parent locator
};
enum Item : std::size_t { Parameters, Size, DiskId, Logical, Physical, Locator };
constexpr std::array<std::size_t, 6> kLeastBytes{8, 8, 16, 4, 4, 20};
constexpr std::string_view kLocatorType = "b04aefb7-d19e-4a81-b789-25b8e9445913";

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text), "Is this a VHDX image?");
}

Uuid load_uuid(const std::byte* at) {
    Uuid uuid{};
    std::memcpy(uuid.data(), at, uuid.size());
    return uuid;
}

Uuid parse_guid(std::string_view text) {
    const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    constexpr std::array<std::size_t, 16> kPlaces{3, 2, 1,  0,  5,  4,  7,  6,
                                                  8, 9, 10, 11, 12, 13, 14, 15};
    Uuid uuid{};
    std::size_t byte = 0;
    for (std::size_t i = 0; i < text.size(); i += text[i] == '-' ? 1 : 2)
        if (text[i] != '-')
            uuid[kPlaces[byte++]] =
                static_cast<std::byte>(digit(text[i]) << 4 | digit(text[i + 1]));
    return uuid;
}

Result<void> parse_locator(ParentLocator& parent, std::span<const std::byte> item) {
    if (guid_text(load_uuid(item.data())) != kLocatorType)
        return base::fail(Errc::Unsupported, "the parent is named in a way that is unknown");
    const auto count = load_le<std::uint16_t>(item.data() + 18);
    if (20u + 12u * count > item.size())
        return corrupt(
            fmt::format("the parent locator has {} entries in {} bytes", count, item.size()));
    for (std::size_t i = 0; i < count; ++i) {
        const auto* entry = item.data() + 20 + 12 * i;
        const auto text = [&](std::uint32_t offset, std::uint16_t length) -> Result<std::string> {
            if (offset > item.size() || length > item.size() - offset)
                return corrupt("an entry of the parent locator lies outside of it");
            return utf8_of(item.subspan(offset, length), ByteOrder::Little);
        };
        const auto key =
            DOPPEL_TRY(text(load_le<std::uint32_t>(entry), load_le<std::uint16_t>(entry + 8)));
        auto value =
            DOPPEL_TRY(text(load_le<std::uint32_t>(entry + 4), load_le<std::uint16_t>(entry + 10)));
        if (key == "parent_linkage")
            parent.linkage = std::move(value);
        else if (key == "parent_linkage2")
            parent.linkage2 = std::move(value);
        else if (key == "relative_path")
            parent.relative_path = std::move(value);
        else if (key == "absolute_win32_path")
            parent.absolute_path = std::move(value);
    }
    return {};
}

Result<void> take_item(Metadata& metadata, Item which, std::span<const std::byte> item,
                       std::uint64_t at) {
    switch (which) {
    case Parameters: {
        metadata.block_bytes = load_le<std::uint32_t>(item.data());
        const auto flags = load_le<std::uint32_t>(item.data() + 4);
        metadata.leave_allocated = (flags & 1) != 0;
        metadata.has_parent = (flags & 2) != 0;
        return {};
    }
    case Size:
        metadata.size_bytes = load_le<std::uint64_t>(item.data());
        metadata.size_at = at;
        return {};
    case DiskId: metadata.disk_id = load_uuid(item.data()); return {};
    case Logical: metadata.sector_bytes = load_le<std::uint32_t>(item.data()); return {};
    case Physical: metadata.physical_sector_bytes = load_le<std::uint32_t>(item.data()); return {};
    case Locator: metadata.locator_at = at; return parse_locator(metadata.parent, item);
    }
    return {};
}

Result<void> check_values(const Metadata& metadata, unsigned seen) {
    constexpr unsigned kAll = 1u << Parameters | 1u << Size | 1u << Logical;
    if ((seen & kAll) != kAll)
        return corrupt("the metadata lack the block size, the disk's size or the sector size");
    if (metadata.block_bytes < kMib || metadata.block_bytes > 256 * kMib ||
        !std::has_single_bit(metadata.block_bytes))
        return corrupt(fmt::format("blocks have {} bytes, allowed are powers of two from 1 to 256 "
                                   "MiB",
                                   metadata.block_bytes));
    if (metadata.sector_bytes != 512 && metadata.sector_bytes != 4096)
        return corrupt(
            fmt::format("sectors have {} bytes, allowed are 512 and 4096", metadata.sector_bytes));
    if (metadata.size_bytes > kMaxDiskBytes || metadata.size_bytes % metadata.sector_bytes != 0)
        return corrupt(fmt::format("the disk's size is {} bytes, allowed are whole sectors up to "
                                   "64 TiB",
                                   metadata.size_bytes));
    if (metadata.has_parent && metadata.locator_at == 0)
        return corrupt("the image has a parent, but says nothing about it");
    return {};
}

struct LocatorEntry {
    std::string_view key;
    std::string_view value;
};

Result<std::vector<std::byte>> serialize_locator(const ParentLocator& parent) {
    std::vector<LocatorEntry> entries{{"parent_linkage", parent.linkage},
                                      {"relative_path", parent.relative_path}};
    if (!parent.absolute_path.empty())
        entries.push_back({"absolute_win32_path", parent.absolute_path});
    std::vector<std::byte> bytes(20 + 12 * entries.size());
    std::ranges::copy(parse_guid(kLocatorType), bytes.begin());
    store_le(bytes.data() + 18, static_cast<std::uint16_t>(entries.size()));
    for (std::size_t i = 0; i < entries.size(); ++i) {
        const auto at = 20 + 12 * i;
        const auto append = [&](std::string_view text, std::size_t offset_at,
                                std::size_t length_at) {
            const auto utf16 = utf16_of(text, ByteOrder::Little);
            store_le(bytes.data() + offset_at, static_cast<std::uint32_t>(bytes.size()));
            store_le(bytes.data() + length_at, static_cast<std::uint16_t>(utf16.size()));
            bytes.insert(bytes.end(), utf16.begin(), utf16.end());
            return utf16.size() < 65536;
        };
        if (!append(entries[i].key, at, at + 8) || !append(entries[i].value, at + 4, at + 10))
            return base::fail(Errc::InvalidArgument, "the parent's name is too long");
    }
    return bytes;
}

} // namespace

Result<Metadata> parse_metadata(std::span<const std::byte> region) {
    if (region.size() < kMetadataTableBytes ||
        std::memcmp(region.data(), kSignature.data(), kSignature.size()) != 0)
        return corrupt("the metadata table is damaged");
    const auto count = load_le<std::uint16_t>(region.data() + 10);
    if (count > kMaxItems)
        return corrupt(
            fmt::format("there are {} metadata items, allowed are {}", count, kMaxItems));
    Metadata metadata;
    unsigned seen = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const auto* entry = region.data() + kEntryAt + i * kEntryBytes;
        const auto id = guid_text(load_uuid(entry));
        const std::uint64_t at = load_le<std::uint32_t>(entry + 16);
        const std::uint64_t length = load_le<std::uint32_t>(entry + 20);
        const auto flags = load_le<std::uint32_t>(entry + 24);
        const auto known = std::ranges::find(kItems, id);
        if (known == kItems.end()) {
            if ((flags & kRequired) != 0)
                return base::fail(Errc::Unsupported,
                                  fmt::format("the image needs metadata that are unknown: {}", id));
            ++metadata.foreign_items;
            continue;
        }
        const auto which = static_cast<std::size_t>(known - kItems.begin());
        if (at < kMetadataTableBytes || at > region.size() || length > region.size() - at ||
            length < kLeastBytes[which])
            return corrupt(fmt::format("the metadata item {} ({} bytes at {:#x}) lies outside of "
                                       "its region",
                                       id, length, at));
        seen |= 1u << which;
        DOPPEL_TRY_VOID(
            take_item(metadata, static_cast<Item>(which), region.subspan(at, length), at));
    }
    DOPPEL_TRY_VOID(check_values(metadata, seen));
    return metadata;
}

Result<std::vector<std::byte>> serialize_metadata(const Metadata& metadata) {
    std::vector<std::byte> region(kMib);
    std::memcpy(region.data(), kSignature.data(), kSignature.size());
    std::uint16_t count = 0;
    std::uint64_t next = kMetadataTableBytes;
    const auto put = [&](Item which, std::uint32_t flags, std::span<const std::byte> item) {
        auto* entry = region.data() + kEntryAt + count++ * kEntryBytes;
        std::ranges::copy(parse_guid(kItems[which]), entry);
        store_le(entry + 16, static_cast<std::uint32_t>(next));
        store_le(entry + 20, static_cast<std::uint32_t>(item.size()));
        store_le(entry + 24, flags);
        std::ranges::copy(item, region.begin() + static_cast<std::ptrdiff_t>(next));
        next += base::align_up(item.size(), 16);
    };
    std::array<std::byte, 8> pair{};
    store_le(pair.data(), static_cast<std::uint32_t>(metadata.block_bytes));
    store_le(pair.data() + 4,
             (metadata.leave_allocated ? 1u : 0u) | (metadata.has_parent ? 2u : 0u));
    put(Parameters, kRequired, pair);
    store_le(pair.data(), metadata.size_bytes);
    put(Size, kRequired | kVirtualDisk, pair);
    put(DiskId, kRequired | kVirtualDisk, metadata.disk_id);
    std::array<std::byte, 4> word{};
    store_le(word.data(), metadata.sector_bytes);
    put(Logical, kRequired | kVirtualDisk, word);
    store_le(word.data(), metadata.physical_sector_bytes);
    put(Physical, kRequired | kVirtualDisk, word);
    if (metadata.has_parent) {
        const auto locator = DOPPEL_TRY(serialize_locator(metadata.parent));
        if (next + locator.size() > region.size())
            return base::fail(Errc::InvalidArgument, "the parent's name is too long");
        put(Locator, kRequired, locator);
    }
    store_le(region.data() + 10, count);
    return region;
}

} // namespace doppel::block::vhdx
