// SPDX-License-Identifier: Apache-2.0
#include "block/vdi/layout.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::vdi {

using base::load_le;
using base::store_le;

namespace {

constexpr std::size_t kSignatureAt = 0x40, kVersionAt = 0x44, kHeaderSizeAt = 0x48, kTypeAt = 0x4c,
                      kFlagsAt = 0x50, kCommentAt = 0x54, kTableAt = 0x154, kDataAt = 0x158,
                      kSectorSizeAt = 0x168, kSizeAt = 0x170, kBlockSizeAt = 0x178,
                      kExtraAt = 0x17c, kBlocksAt = 0x180, kAllocatedAt = 0x184, kCreatedAt = 0x188,
                      kModifiedAt = 0x198, kParentCreatedAt = 0x1a8, kParentModifiedAt = 0x1b8;
constexpr std::size_t kCommentBytes = 256;
constexpr std::size_t kParsedBytes = kParentModifiedAt + 16;
constexpr std::uint32_t kVersion = 0x00010001;
constexpr std::uint32_t kHeaderSize = 0x190; // from its own field on, with the second geometry
constexpr std::string_view kText = "<<< Oracle VM VirtualBox Disk Image >>>\n";

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text), "Is this a VDI image?");
}

Uuid load_uuid(std::span<const std::byte> head, std::size_t at) {
    Uuid uuid{};
    std::memcpy(uuid.data(), head.data() + at, uuid.size());
    return uuid;
}

Result<void> check_sizes(const Header& header) {
    if (header.block_bytes < kMinBlockBytes || header.block_bytes > kMaxBlockBytes ||
        !std::has_single_bit(header.block_bytes))
        return corrupt(fmt::format("blocks have {} bytes, allowed are powers of two from {} to {}",
                                   header.block_bytes, kMinBlockBytes, kMaxBlockBytes));
    if (header.blocks > kMaxBlocks)
        return corrupt(
            fmt::format("there are {} blocks, allowed are {}", header.blocks, kMaxBlocks));
    if (header.size_bytes > header.blocks * header.block_bytes)
        return corrupt(fmt::format("{} blocks of {} bytes are too few for a disk of {} bytes",
                                   header.blocks, header.block_bytes, header.size_bytes));
    if (header.extra_bytes > header.block_bytes || header.extra_bytes % 512 != 0)
        return corrupt(fmt::format("{} bytes stand in front of each block, allowed are multiples "
                                   "of 512 up to {}",
                                   header.extra_bytes, header.block_bytes));
    return {};
}

Result<void> check_places(const Header& header, std::uint64_t file_bytes) {
    if (header.table_offset < kHeaderBytes || header.table_offset % 512 != 0 ||
        header.data_offset % 512 != 0)
        return corrupt(fmt::format("the block table lies at {:#x}, the data at {:#x}: neither may "
                                   "lie in the header, both lie on sectors",
                                   header.table_offset, header.data_offset));
    const auto end = header.table_offset + header.table_bytes();
    if (end > file_bytes)
        return corrupt(fmt::format("the block table ({} bytes at {:#x}) passes the end of the file",
                                   header.table_bytes(), header.table_offset));
    if (end > header.data_offset && header.table_bytes() != 0)
        return corrupt(fmt::format("the block table ends at {:#x}, behind the beginning of the "
                                   "data ({:#x})",
                                   end, header.data_offset));
    return {};
}

} // namespace

bool is_vdi(std::span<const std::byte> head) {
    return head.size() >= kParsedBytes &&
           load_le<std::uint32_t>(head.data() + kSignatureAt) == VDI_IMAGE_SIGNATURE;
}

Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes) {
    if (!is_vdi(head))
        return corrupt("the magic number of VDI is not there");
    const auto word = [&](std::size_t at) { return load_le<std::uint32_t>(head.data() + at); };
    if (word(kVersionAt) >> 16 != 1)
        return base::fail(Errc::Unsupported,
                          fmt::format("the version is {}.{}, known is 1", word(kVersionAt) >> 16,
                                      word(kVersionAt) & 0xffff));
    Header header;
    header.type = static_cast<Type>(word(kTypeAt));
    if (word(kTypeAt) < 1 || word(kTypeAt) > 4)
        return corrupt(fmt::format("the image's type is {}, known are 1 to 4", word(kTypeAt)));
    header.flags = word(kFlagsAt);
    const auto* comment = reinterpret_cast<const char*>(head.data() + kCommentAt);
    header.comment.assign(comment, ::strnlen(comment, kCommentBytes));
    header.table_offset = word(kTableAt);
    header.data_offset = word(kDataAt);
    if (word(kSectorSizeAt) != 512)
        return corrupt(fmt::format("sectors have {} bytes, known are 512", word(kSectorSizeAt)));
    const auto size = load_le<std::uint64_t>(head.data() + kSizeAt);
    if (size > kMaxBlocks * kMaxBlockBytes)
        return corrupt(fmt::format("the disk's size is {} bytes, allowed are {}", size,
                                   kMaxBlocks * kMaxBlockBytes));
    header.size_bytes = base::align_up(size, 512);
    header.block_bytes = word(kBlockSizeAt);
    header.extra_bytes = word(kExtraAt);
    header.blocks = word(kBlocksAt);
    header.allocated = word(kAllocatedAt);
    header.created = load_uuid(head, kCreatedAt);
    header.modified = load_uuid(head, kModifiedAt);
    header.parent_created = load_uuid(head, kParentCreatedAt);
    header.parent_modified = load_uuid(head, kParentModifiedAt);
    DOPPEL_TRY_VOID(check_sizes(header));
    DOPPEL_TRY_VOID(check_places(header, file_bytes));
    return header;
}

void store_header(const Header& header, std::span<std::byte> sector) {
    const auto put = [&](std::size_t at, std::uint64_t value) {
        store_le(sector.data() + at, static_cast<std::uint32_t>(value));
    };
    put(kTypeAt, static_cast<std::uint32_t>(header.type));
    put(kTableAt, header.table_offset);
    put(kDataAt, header.data_offset);
    store_le(sector.data() + kSizeAt, header.size_bytes);
    put(kBlocksAt, header.blocks);
    put(kAllocatedAt, header.allocated);
    std::ranges::copy(header.created, sector.begin() + kCreatedAt);
    std::ranges::copy(header.modified, sector.begin() + kModifiedAt);
    std::ranges::copy(header.parent_created, sector.begin() + kParentCreatedAt);
    std::ranges::copy(header.parent_modified, sector.begin() + kParentModifiedAt);
}

std::vector<std::byte> new_sector(const Header& header) {
    std::vector<std::byte> sector(kHeaderBytes);
    const auto put = [&](std::size_t at, std::uint64_t value) {
        store_le(sector.data() + at, static_cast<std::uint32_t>(value));
    };
    std::memcpy(sector.data(), kText.data(), kText.size());
    put(kSignatureAt, VDI_IMAGE_SIGNATURE);
    put(kVersionAt, kVersion);
    put(kHeaderSizeAt, kHeaderSize);
    put(kSectorSizeAt, 512);
    put(kBlockSizeAt, header.block_bytes);
    put(kExtraAt, header.extra_bytes);
    store_header(header, sector);
    return sector;
}

} // namespace doppel::block::vdi
