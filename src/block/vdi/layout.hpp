// SPDX-License-Identifier: Apache-2.0
#pragma once
/// VDI on disk, as pure data and functions over bytes (VirtualBox 7.0, src/VBox/Storage/VDICore.h).
/// All numbers are little-endian. Any thread.
///
///     0       header, in the first sector
///     table   a u32 per block of the disk: which block of the file it is, or one of two marks
///     data    the file's blocks, each with `extra_bytes` in front
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "block/uuid.hpp"

namespace doppel::block::vdi {

using base::Errc;
using base::Result;

constexpr std::uint32_t VDI_IMAGE_SIGNATURE = 0xbeda107f;
constexpr std::size_t kHeaderBytes = 512;
constexpr std::uint32_t kFree = 0xffffffff; // a differencing image shows its parent there
constexpr std::uint32_t kZero = 0xfffffffe;
constexpr std::uint64_t kMaxBlocks = 0x1fffff80; // QEMU's and VirtualBox's
constexpr std::uint64_t kMinBlockBytes = 4096;
constexpr std::uint64_t kMaxBlockBytes = 256u << 20;

enum class Type : std::uint32_t { Dynamic = 1, Fixed = 2, Undo = 3, Differencing = 4 };

struct Header {
    Type type = Type::Dynamic;
    std::uint32_t flags = 0;
    std::string comment;
    std::uint64_t table_offset = 0;
    std::uint64_t data_offset = 0;
    std::uint64_t size_bytes = 0; // of the disk
    std::uint64_t block_bytes = 1u << 20;
    std::uint64_t extra_bytes = 0; // in front of each block
    std::uint32_t blocks = 0;
    std::uint32_t allocated = 0;
    Uuid created{};
    Uuid modified{};
    Uuid parent_created{};
    Uuid parent_modified{};

    std::uint64_t stride() const { return extra_bytes + block_bytes; }
    std::uint64_t table_bytes() const { return std::uint64_t{blocks} * 4; }
    /// Where a block of the file begins, behind what stands in front of it.
    std::uint64_t host(std::uint64_t block) const {
        return data_offset + block * stride() + extra_bytes;
    }
};

bool is_vdi(std::span<const std::byte> head);
/// `head`: the first sector. Every number is held against its limit, tables against `file_bytes`.
Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes);
/// Enters the header's fields into the first sector, and leaves what it does not know.
void store_header(const Header& header, std::span<std::byte> sector);
/// A first sector for a new image.
std::vector<std::byte> new_sector(const Header& header);

} // namespace doppel::block::vdi
