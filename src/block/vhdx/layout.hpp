// SPDX-License-Identifier: Apache-2.0
#pragma once
/// VHDX on disk, as pure data and functions over bytes (MS-VHDX v4.0). All numbers are
/// little-endian. Any thread.
///
///     0      file identifier       192K   region table and, at 256K, its copy
///     64K    header and, at 128K,  1M     log, metadata, block allocation table, blocks: anywhere,
///            its copy                     in whole MiB
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "block/uuid.hpp"

namespace doppel::block::vhdx {

using base::Errc;
using base::Result;

constexpr std::uint64_t kMib = 1u << 20;
constexpr std::uint64_t kHeaderOffset[2] = {64u << 10, 128u << 10};
constexpr std::uint64_t kRegionOffset[2] = {192u << 10, 256u << 10};
constexpr std::size_t kHeaderBytes = 4096;
constexpr std::size_t kRegionTableBytes = 64u << 10;
constexpr std::size_t kMetadataTableBytes = 64u << 10;
constexpr std::uint64_t kMaxDiskBytes = std::uint64_t{64} << 40;
constexpr std::uint64_t kMaxMetadataBytes = kMib; // of the region: what we and all others write

struct Header {
    std::uint64_t sequence = 0;
    Uuid file_write{};
    Uuid data_write{};
    Uuid log{}; // not null: the log must be replayed first
    std::uint16_t version = 1;
    std::uint32_t log_bytes = 0;
    std::uint64_t log_offset = 0;
};

bool is_vhdx(std::span<const std::byte> head);
Result<Header> parse_header(std::span<const std::byte> bytes); // kHeaderBytes
std::vector<std::byte> serialize_header(const Header& header);

struct Region {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
};
struct Regions {
    Region table; // block allocation table
    Region metadata;
};
/// Error: damaged, or a region that must be known and is not.
Result<Regions> parse_regions(std::span<const std::byte> bytes);
std::vector<std::byte> serialize_regions(const Regions& regions);

/// Where a differencing image's parent is, as the image says.
struct ParentLocator {
    std::string linkage;  // its DataWriteGuid, as text
    std::string linkage2; // another one that is good, too
    std::string relative_path;
    std::string absolute_path; // of Windows
};

struct Metadata {
    std::uint64_t block_bytes = 0;
    bool leave_allocated = false; // a fixed image
    bool has_parent = false;
    std::uint64_t size_bytes = 0;
    std::uint64_t size_at = 0;    // where in the region the size stands
    std::uint64_t locator_at = 0; // and the parent locator; 0: there is none
    Uuid disk_id{};
    std::uint32_t sector_bytes = 512;
    std::uint32_t physical_sector_bytes = 4096;
    ParentLocator parent;
    unsigned foreign_items = 0; // that we do not know and need not
};
Result<Metadata> parse_metadata(std::span<const std::byte> region);
/// The whole region. Error: the parent's name is too long.
Result<std::vector<std::byte>> serialize_metadata(const Metadata& metadata);

/// Entries of the block allocation table.
enum class State : std::uint8_t {
    NotPresent = 0,
    Undefined = 1,
    Zero = 2,
    Unmapped = 3,
    Full = 6,
    Partial = 7, // differencing images: the sector bitmap decides
};
constexpr std::uint64_t kOffsetMask = ~std::uint64_t{0xfffff};
constexpr std::uint64_t entry_of(State state, std::uint64_t offset) {
    return (offset & kOffsetMask) | static_cast<std::uint64_t>(state);
}
constexpr State state_of(std::uint64_t entry) { return static_cast<State>(entry & 7); }

/// Sizes that follow from the metadata. After every `ratio` blocks of the disk the table has an
/// entry for the sector bitmap of these.
struct Geometry {
    std::uint64_t block_bytes = 0;
    std::uint64_t ratio = 1;
    bool bitmaps = false; // the last chunk, too, has a bitmap entry

    explicit Geometry(const Metadata& metadata)
        : block_bytes{metadata.block_bytes},
          ratio{(std::uint64_t{1} << 23) * metadata.sector_bytes / metadata.block_bytes},
          bitmaps{metadata.has_parent} {}
    std::uint64_t blocks(std::uint64_t size) const {
        return (size + block_bytes - 1) / block_bytes;
    }
    std::uint64_t entries(std::uint64_t size) const {
        const auto count = blocks(size);
        if (bitmaps)
            return (count + ratio - 1) / ratio * (ratio + 1);
        return count == 0 ? 0 : count + (count - 1) / ratio;
    }
    std::uint64_t entry(std::uint64_t block) const { return block + block / ratio; }
    std::uint64_t bitmap_entry(std::uint64_t block) const {
        return (block / ratio + 1) * (ratio + 1) - 1;
    }
};

} // namespace doppel::block::vhdx
