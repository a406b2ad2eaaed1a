// SPDX-License-Identifier: Apache-2.0
#include "block/vmdk/layout.hpp"

#include <bit>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::vmdk {

using base::load_le;
using base::store_le;

namespace {

// SparseExtentHeader, packed.
constexpr std::size_t kVersionAt = 4, kFlagsAt = 8, kCapacityAt = 12, kGrainAt = 20,
                      kDescriptorAt = 28, kDescriptorSizeAt = 36, kEntriesAt = 44,
                      kRedundantAt = 48, kDirectoryAt = 56, kOverheadAt = 64, kNewlinesAt = 73,
                      kCompressionAt = 77;
constexpr std::uint32_t kNewlines = 0x0a0d200a; // "\n \r\n": changed by transfers as text
constexpr std::uint32_t kMaxVersion = 3;
constexpr std::uint64_t kMaxSectors = std::uint64_t{1} << 40;

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text));
}

Result<void> check_numbers(const Header& header, std::uint64_t capacity, std::uint64_t grain) {
    if (header.version < 1 || header.version > kMaxVersion)
        return base::fail(Errc::Unsupported, fmt::format("the version is {}, known are 1 to {}",
                                                         header.version, kMaxVersion));
    if (capacity > kMaxSectors)
        return corrupt(
            fmt::format("the extent has {} sectors, allowed are {}", capacity, kMaxSectors));
    if (!std::has_single_bit(grain) || grain > kMaxGrainBytes / kSector)
        return corrupt(fmt::format("a grain has {} sectors, allowed are powers of two up to {}",
                                   grain, kMaxGrainBytes / kSector));
    if (header.entries == 0 || header.entries > kMaxTableEntries)
        return corrupt(fmt::format("a grain table has {} entries, allowed are 1 to {}",
                                   header.entries, kMaxTableEntries));
    return {};
}

} // namespace

bool is_sparse(std::span<const std::byte> head) {
    return head.size() >= kSector && load_le<std::uint32_t>(head.data()) == SPARSE_MAGICNUMBER;
}

Result<Header> parse_header(std::span<const std::byte> sector) {
    if (!is_sparse(sector))
        return corrupt("the magic number of a VMDK extent is not there");
    const auto word = [&](std::size_t at) { return load_le<std::uint32_t>(sector.data() + at); };
    const auto wide = [&](std::size_t at) { return load_le<std::uint64_t>(sector.data() + at); };
    Header header;
    header.version = word(kVersionAt);
    header.flags = word(kFlagsAt);
    header.entries = word(kEntriesAt);
    DOPPEL_TRY_VOID(check_numbers(header, wide(kCapacityAt), wide(kGrainAt)));
    if ((header.flags & kFlagNewlineTest) != 0 && word(kNewlinesAt) != kNewlines)
        return corrupt("the file was damaged by a transfer as text");
    header.size_bytes = wide(kCapacityAt) * kSector;
    header.grain_bytes = wide(kGrainAt) * kSector;
    if (header.tables() > kMaxTables)
        return corrupt(fmt::format("the extent has {} grain tables, allowed are {}",
                                   header.tables(), kMaxTables));
    header.unclean = sector[kUncleanAt] != std::byte{0};
    const auto place = [&](std::size_t at) -> Result<std::uint64_t> {
        if (wide(at) == GD_AT_END)
            return GD_AT_END;
        if (wide(at) > kMaxSectors)
            return corrupt(fmt::format("something would lie at sector {}", wide(at)));
        return wide(at) * kSector;
    };
    header.descriptor_at = DOPPEL_TRY(place(kDescriptorAt));
    header.descriptor_bytes = DOPPEL_TRY(place(kDescriptorSizeAt));
    header.redundant_at = DOPPEL_TRY(place(kRedundantAt));
    header.directory_at = DOPPEL_TRY(place(kDirectoryAt));
    header.overhead_bytes = DOPPEL_TRY(place(kOverheadAt));
    const auto method = load_le<std::uint16_t>(sector.data() + kCompressionAt);
    if (header.compressed() && method != COMPRESSION_DEFLATE)
        return base::fail(Errc::Unsupported,
                          fmt::format("compression {} is unknown, known is {} (deflate)", method,
                                      COMPRESSION_DEFLATE));
    return header;
}

Result<void> check_places(const Header& header, std::uint64_t file_bytes) {
    const auto inside = [&](std::uint64_t at, std::uint64_t bytes) {
        return at >= kSector && at <= file_bytes && bytes <= file_bytes - at;
    };
    if (header.tables() != 0 && !inside(header.directory_at, header.tables() * 4))
        return corrupt(fmt::format("the grain directory ({} bytes at {:#x}) passes the end of the "
                                   "file",
                                   header.tables() * 4, header.directory_at));
    if (header.tables() != 0 && header.redundant() &&
        !inside(header.redundant_at, header.tables() * 4))
        return corrupt(fmt::format("the redundant grain directory ({} bytes at {:#x}) passes the "
                                   "end of the file",
                                   header.tables() * 4, header.redundant_at));
    if (header.descriptor_at != 0 && !inside(header.descriptor_at, header.descriptor_bytes))
        return corrupt(fmt::format("the descriptor ({} bytes at {:#x}) passes the end of the file",
                                   header.descriptor_bytes, header.descriptor_at));
    return {};
}

std::vector<std::byte> serialize_header(const Header& header) {
    std::vector<std::byte> sector(kSector);
    const auto word = [&](std::size_t at, std::uint32_t value) {
        store_le(sector.data() + at, value);
    };
    const auto place = [&](std::size_t at, std::uint64_t bytes) {
        store_le(sector.data() + at, bytes == GD_AT_END ? GD_AT_END : bytes / kSector);
    };
    word(0, SPARSE_MAGICNUMBER);
    word(kVersionAt, header.version);
    word(kFlagsAt, header.flags);
    word(kEntriesAt, header.entries);
    place(kCapacityAt, header.size_bytes);
    place(kGrainAt, header.grain_bytes);
    place(kDescriptorAt, header.descriptor_at);
    place(kDescriptorSizeAt, header.descriptor_bytes);
    place(kRedundantAt, header.redundant_at);
    place(kDirectoryAt, header.directory_at);
    place(kOverheadAt, header.overhead_bytes);
    sector[kUncleanAt] = std::byte{header.unclean};
    word(kNewlinesAt, kNewlines);
    store_le(sector.data() + kCompressionAt,
             header.compressed() ? COMPRESSION_DEFLATE : std::uint16_t{0});
    return sector;
}

void lay_out(Header& header, std::uint64_t at) {
    const auto bytes = header.directory_bytes() + header.tables() * header.table_bytes();
    if ((header.flags & kFlagRedundant) != 0) {
        header.redundant_at = at;
        at += bytes;
    }
    header.directory_at = at;
    header.overhead_bytes = base::align_up(at + bytes, header.grain_bytes);
}

} // namespace doppel::block::vmdk
