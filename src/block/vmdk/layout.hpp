// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The sparse extent of VMDK on disk, as pure data and functions over bytes (VMware's Virtual Disk
/// Format 5.0, "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents"; libyal's
/// VMware Virtual Disk Format). All numbers are little-endian, places are sectors. Any thread.
///
///     header, descriptor, redundant directory and tables, directory and tables, grains
///     stream: header, descriptor, grains and tables, each behind a marker; directory; footer
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"

namespace doppel::block::vmdk {

using base::Errc;
using base::Result;

constexpr std::uint64_t kSector = 512;
constexpr std::uint32_t SPARSE_MAGICNUMBER = 0x564d444b; // "KDMV"
constexpr std::uint64_t GD_AT_END = ~std::uint64_t{0};
constexpr std::uint16_t COMPRESSION_DEFLATE = 1; // RFC 1950
constexpr std::uint64_t kMinGrainBytes = 512;
constexpr std::uint64_t kMaxGrainBytes = 16u << 20;
constexpr std::uint32_t kMaxTableEntries = 4096;
constexpr std::uint64_t kMaxTables = 8u << 20;
constexpr std::uint64_t kMaxSectorNumber = 0xffffffff; // what a grain's place can be
constexpr std::uint32_t kZeroGrain = 1;                // an entry, with kFlagZeroGrain
constexpr std::size_t kUncleanAt = 72;                 // uncleanShutdown, in the header

constexpr std::uint32_t kFlagNewlineTest = 1u << 0;
constexpr std::uint32_t kFlagRedundant = 1u << 1; // there is a redundant directory
constexpr std::uint32_t kFlagZeroGrain = 1u << 2;
constexpr std::uint32_t kFlagCompressed = 1u << 16;
constexpr std::uint32_t kFlagMarkers = 1u << 17;

/// SparseExtentHeader; what has a unit in its name is converted.
struct Header {
    std::uint32_t version = 1;
    std::uint32_t flags = kFlagNewlineTest | kFlagRedundant;
    std::uint64_t size_bytes = 0;
    std::uint64_t grain_bytes = 64u << 10;
    std::uint64_t descriptor_at = 0; // bytes; 0: none
    std::uint64_t descriptor_bytes = 0;
    std::uint32_t entries = 512; // of a table
    std::uint64_t redundant_at = 0;
    std::uint64_t directory_at = 0; // bytes; ~0: in the footer
    std::uint64_t overhead_bytes = 0;
    bool unclean = false;

    bool compressed() const { return (flags & kFlagCompressed) != 0; }
    bool redundant() const {
        return (flags & kFlagRedundant) != 0 && redundant_at != 0 && redundant_at != directory_at;
    }
    std::uint64_t grains() const { return (size_bytes + grain_bytes - 1) / grain_bytes; }
    std::uint64_t tables() const { return (grains() + entries - 1) / entries; }
    /// In whole sectors.
    std::uint64_t table_bytes() const { return (entries * 4ull + kSector - 1) / kSector * kSector; }
    std::uint64_t directory_bytes() const {
        return (tables() * 4 + kSector - 1) / kSector * kSector;
    }
};

bool is_sparse(std::span<const std::byte> head);
/// `sector`: 512 bytes. Every number is held against its limit; where the directory lies is not
/// looked at.
Result<Header> parse_header(std::span<const std::byte> sector);
/// Whether directories and descriptor lie in a file of this size.
Result<void> check_places(const Header& header, std::uint64_t file_bytes);
std::vector<std::byte> serialize_header(const Header& header);
/// Directories and tables behind `at`, all tables in their places; sets overhead_bytes.
void lay_out(Header& header, std::uint64_t at);

} // namespace doppel::block::vmdk
