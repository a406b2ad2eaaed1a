// SPDX-License-Identifier: Apache-2.0
#include "block/vpc/layout.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <ctime>
#include <string_view>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/utf16.hpp"

namespace doppel::block::vpc {

using base::load_be;
using base::store_be;

namespace {

constexpr std::string_view kFooterCookie = "conectix", kHeaderCookie = "cxsparse";
constexpr std::size_t kFooterSum = 64, kHeaderSum = 36;
constexpr std::uint32_t kMaxCylinders = 65535;
constexpr std::uint64_t kMaxGeometry = std::uint64_t{kMaxCylinders} * 16 * 255; // sectors
constexpr std::time_t kEpoch = 946684800;                                       // 2000-01-01 UTC
constexpr std::size_t kNameAt = 64, kNameBytes = 512, kLocatorsAt = 576, kLocatorBytes = 24;
constexpr std::size_t kLocatorCount = 8;

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text), "Is this a VHD image?");
}

bool begins_with(std::span<const std::byte> bytes, std::string_view text) {
    return bytes.size() >= text.size() && std::memcmp(bytes.data(), text.data(), text.size()) == 0;
}

/// The complement of the sum of all bytes but those of the sum itself.
std::uint32_t sum_of(std::span<const std::byte> bytes, std::size_t sum_at) {
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i)
        if (i < sum_at || i >= sum_at + 4)
            sum += static_cast<std::uint32_t>(bytes[i]);
    return ~sum;
}

/// Those whose geometry is only for show.
bool size_counts(std::span<const std::byte> footer) {
    constexpr std::array<std::string_view, 5> kCreators{"win ", "qem2", "d2v ",
                                                        std::string_view{"tap\0", 4}, "CTXS"};
    const std::string_view creator{reinterpret_cast<const char*>(footer.data()) + 28, 4};
    return std::ranges::find(kCreators, creator) != kCreators.end();
}

void put_geometry(std::span<std::byte> footer, const Geometry& geometry) {
    store_be(footer.data() + 56, static_cast<std::uint16_t>(geometry.cylinders));
    footer[58] = static_cast<std::byte>(geometry.heads);
    footer[59] = static_cast<std::byte>(geometry.sectors);
}

} // namespace

Geometry geometry_of(std::uint64_t size_bytes) {
    const auto total = static_cast<std::uint32_t>(std::min(size_bytes / kSector, kMaxGeometry));
    if (total >= kMaxCylinders * 16u * 63u)
        return {total / 255 / 16, 16, 255};
    Geometry geometry{0, 0, 17};
    auto tracks = total / 17;
    geometry.heads = std::max((tracks + 1023) / 1024, 4u);
    if (tracks >= geometry.heads * 1024 || geometry.heads > 16) {
        geometry = {0, 16, 31};
        tracks = total / 31;
    }
    if (tracks >= geometry.heads * 1024) {
        geometry = {0, 16, 63};
        tracks = total / 63;
    }
    geometry.cylinders = tracks / geometry.heads;
    return geometry;
}

std::uint64_t geometric_size(std::uint64_t size_bytes) {
    auto sectors = (size_bytes + kSector - 1) / kSector;
    if (sectors > kMaxGeometry)
        return sectors * kSector; // past all geometries the size counts
    while (geometry_of(sectors * kSector).bytes() < size_bytes)
        ++sectors;
    return geometry_of(sectors * kSector).bytes();
}

bool is_vpc(std::span<const std::byte> head) { return begins_with(head, kFooterCookie); }

Result<Footer> parse_footer(std::span<const std::byte> bytes) {
    if (bytes.size() < kFooterBytes || !is_vpc(bytes))
        return corrupt("the footer of VHD is not there");
    bytes = bytes.first(kFooterBytes);
    if (load_be<std::uint32_t>(bytes.data() + kFooterSum) != sum_of(bytes, kFooterSum))
        return corrupt("the footer's checksum is wrong");
    Footer footer;
    footer.bytes.assign(bytes.begin(), bytes.end());
    const auto type = load_be<std::uint32_t>(bytes.data() + 60);
    if (type < 2 || type > 4)
        return base::fail(Errc::Unsupported,
                          fmt::format("the image's type is {}, known are 2 to 4", type));
    footer.type = static_cast<Type>(type);
    footer.header_offset = load_be<std::uint64_t>(bytes.data() + 16);
    const Geometry geometry{load_be<std::uint16_t>(bytes.data() + 56),
                            static_cast<std::uint32_t>(bytes[58]),
                            static_cast<std::uint32_t>(bytes[59])};
    const bool largest = geometry.bytes() == kMaxGeometry * kSector;
    footer.size_bytes = size_counts(bytes) || largest ? load_be<std::uint64_t>(bytes.data() + 48)
                                                      : geometry.bytes();
    if (footer.size_bytes > kMaxDiskBytes || footer.size_bytes % kSector != 0)
        return corrupt(fmt::format("the disk's size is {} bytes, allowed are whole sectors up to "
                                   "2040 GiB",
                                   footer.size_bytes));
    std::memcpy(footer.uuid.data(), bytes.data() + 68, footer.uuid.size());
    return footer;
}

Footer new_footer(Type type, std::uint64_t size_bytes, bool exact) {
    Footer footer;
    footer.uuid = random_uuid();
    footer.bytes.resize(kFooterBytes);
    auto* bytes = footer.bytes.data();
    std::memcpy(bytes, kFooterCookie.data(), kFooterCookie.size());
    store_be(bytes + 8, std::uint32_t{2});
    store_be(bytes + 12, std::uint32_t{0x10000});
    store_be(bytes + 24, static_cast<std::uint32_t>(std::time(nullptr) - kEpoch));
    std::memcpy(bytes + 28, exact ? "qem2" : "qemu", 4);
    store_be(bytes + 32, std::uint32_t{0x10000});
    std::memcpy(bytes + 36, "Wi2k", 4);
    store_be(bytes + 40, size_bytes);
    std::memcpy(bytes + 68, footer.uuid.data(), footer.uuid.size());
    set_footer(footer, type, type == Type::Fixed ? ~std::uint64_t{0} : kFooterBytes, size_bytes);
    if (!exact)
        std::memcpy(bytes + 28, "qemu", 4);
    store_be(bytes + kFooterSum, sum_of(footer.bytes, kFooterSum));
    return footer;
}

void set_footer(Footer& footer, Type type, std::uint64_t header_offset, std::uint64_t size_bytes) {
    auto* bytes = footer.bytes.data();
    footer.type = type;
    footer.header_offset = header_offset;
    store_be(bytes + 16, header_offset);
    if (footer.size_bytes != size_bytes && !size_counts(footer.bytes))
        std::memcpy(bytes + 28, "qem2", 4);
    footer.size_bytes = size_bytes;
    store_be(bytes + 48, size_bytes);
    put_geometry(footer.bytes, geometry_of(size_bytes));
    store_be(bytes + 60, static_cast<std::uint32_t>(type));
    store_be(bytes + kFooterSum, sum_of(footer.bytes, kFooterSum));
}

Result<Header> parse_header(std::span<const std::byte> bytes, std::uint64_t size_bytes,
                            std::uint64_t file_bytes) {
    if (bytes.size() < kHeaderBytes || !begins_with(bytes, kHeaderCookie))
        return corrupt("the header behind the footer's copy is not there");
    bytes = bytes.first(kHeaderBytes);
    if (load_be<std::uint32_t>(bytes.data() + kHeaderSum) != sum_of(bytes, kHeaderSum))
        return corrupt("the header's checksum is wrong");
    Header header;
    header.table_offset = load_be<std::uint64_t>(bytes.data() + 16);
    header.blocks = load_be<std::uint32_t>(bytes.data() + 28);
    header.block_bytes = load_be<std::uint32_t>(bytes.data() + 32);
    if (!std::has_single_bit(header.block_bytes) || header.block_bytes < kMinBlockBytes ||
        header.block_bytes > kMaxBlockBytes)
        return corrupt(fmt::format("blocks have {} bytes, allowed are powers of two from {} to {}",
                                   header.block_bytes, kMinBlockBytes, kMaxBlockBytes));
    const auto table_bytes = std::uint64_t{header.blocks} * 4;
    if (header.table_offset % kSector != 0 || header.table_offset < kFooterBytes ||
        header.table_offset > file_bytes || table_bytes > file_bytes - header.table_offset)
        return corrupt(fmt::format("the block table ({} bytes at {:#x}) passes the end of the "
                                   "file, or does not lie on a sector",
                                   table_bytes, header.table_offset));
    if (size_bytes > header.blocks * header.block_bytes)
        return corrupt(fmt::format("{} blocks of {} bytes are too few for a disk of {} bytes",
                                   header.blocks, header.block_bytes, size_bytes));
    std::memcpy(header.parent.data(), bytes.data() + 40, header.parent.size());
    header.parent_name = utf8_of(bytes.subspan(kNameAt, kNameBytes), ByteOrder::Big);
    for (std::size_t i = 0; i < kLocatorCount; ++i) {
        const auto* at = bytes.data() + kLocatorsAt + i * kLocatorBytes;
        header.locators.push_back({load_be<std::uint32_t>(at), load_be<std::uint32_t>(at + 4),
                                   load_be<std::uint32_t>(at + 8),
                                   load_be<std::uint64_t>(at + 16)});
    }
    return header;
}

std::vector<std::byte> serialize_header(const Header& header) {
    std::vector<std::byte> bytes(kHeaderBytes);
    std::memcpy(bytes.data(), kHeaderCookie.data(), kHeaderCookie.size());
    store_be(bytes.data() + 8, ~std::uint64_t{0});
    store_be(bytes.data() + 16, header.table_offset);
    store_be(bytes.data() + 24, std::uint32_t{0x10000});
    store_be(bytes.data() + 28, header.blocks);
    store_be(bytes.data() + 32, static_cast<std::uint32_t>(header.block_bytes));
    std::ranges::copy(header.parent, bytes.begin() + 40);
    auto name = utf16_of(header.parent_name, ByteOrder::Big);
    name.resize(std::min(name.size(), kNameBytes - 2));
    std::ranges::copy(name, bytes.begin() + kNameAt);
    for (std::size_t i = 0; i < std::min(header.locators.size(), kLocatorCount); ++i) {
        auto* at = bytes.data() + kLocatorsAt + i * kLocatorBytes;
        store_be(at, header.locators[i].platform);
        store_be(at + 4, static_cast<std::uint32_t>(header.locators[i].space_bytes));
        store_be(at + 8, static_cast<std::uint32_t>(header.locators[i].bytes));
        store_be(at + 16, header.locators[i].offset);
    }
    store_be(bytes.data() + kHeaderSum, sum_of(bytes, kHeaderSum));
    return bytes;
}

} // namespace doppel::block::vpc
