// SPDX-License-Identifier: Apache-2.0
#pragma once
/// VHD on disk, as pure data and functions over bytes (Microsoft's Virtual Hard Disk Image Format
/// Specification 1.0, 2006). All numbers are big-endian. Any thread.
///
///     fixed    the disk, then the footer
///     others   the footer's copy, anywhere: header, block table, blocks; the footer at the end
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "block/uuid.hpp"

namespace doppel::block::vpc {

using base::Errc;
using base::Result;

constexpr std::uint64_t kSector = 512;
constexpr std::size_t kFooterBytes = 512;
constexpr std::size_t kHeaderBytes = 1024;
constexpr std::uint32_t kFree = 0xffffffff; // a differencing image shows its parent there
constexpr std::uint64_t kMaxDiskBytes = std::uint64_t{2040} << 30;
constexpr std::uint64_t kMinBlockBytes = 4096;
constexpr std::uint64_t kMaxBlockBytes = 256u << 20;

enum class Type : std::uint32_t { Fixed = 2, Dynamic = 3, Differencing = 4 };

struct Footer {
    std::vector<std::byte> bytes; // as read: what is not known stays
    Type type = Type::Dynamic;
    std::uint64_t header_offset = 0;
    std::uint64_t size_bytes = 0; // of the disk, as its creator meant it
    Uuid uuid{};
};

/// Cylinders, heads and sectors that hold the size, or a little less (appendix of the
/// specification).
struct Geometry {
    std::uint32_t cylinders = 0, heads = 0, sectors = 0;
    std::uint64_t bytes() const { return std::uint64_t{cylinders} * heads * sectors * kSector; }
};
Geometry geometry_of(std::uint64_t size_bytes);
/// The next size up that a geometry holds exactly.
std::uint64_t geometric_size(std::uint64_t size_bytes);

bool is_vpc(std::span<const std::byte> head);
Result<Footer> parse_footer(std::span<const std::byte> bytes);
/// A new footer. `exact`: the size counts; else the geometry does, as in Virtual PC.
Footer new_footer(Type type, std::uint64_t size_bytes, bool exact);
/// Enters type, header offset and size, which then counts exactly; makes the checksum right.
void set_footer(Footer& footer, Type type, std::uint64_t header_offset, std::uint64_t size_bytes);

struct Locator {
    std::uint32_t platform = 0; // "W2ru": a relative path of Windows
    std::uint64_t space_bytes = 0;
    std::uint64_t bytes = 0;
    std::uint64_t offset = 0;
};
constexpr std::uint32_t kRelativeLocator = 0x57327275;

struct Header {
    std::uint64_t table_offset = 0;
    std::uint32_t blocks = 0;
    std::uint64_t block_bytes = 2u << 20;
    Uuid parent{};
    std::string parent_name;
    std::vector<Locator> locators;

    /// In front of each block: a bit per sector, the first one in bit 7.
    std::uint64_t bitmap_bytes() const {
        return (block_bytes / kSector / 8 + kSector - 1) / kSector * kSector;
    }
};
Result<Header> parse_header(std::span<const std::byte> bytes, std::uint64_t size_bytes,
                            std::uint64_t file_bytes);
std::vector<std::byte> serialize_header(const Header& header);

} // namespace doppel::block::vpc
