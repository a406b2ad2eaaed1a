// SPDX-License-Identifier: Apache-2.0
#pragma once
/// qcow2 on disk, as pure data and functions over bytes (QEMU docs/interop/qcow2.txt, version 7.2).
/// All numbers are big-endian. Any thread.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace doppel::block::qcow2 {

using base::Errc;
using base::Result;

constexpr std::uint32_t QCOW_MAGIC = 0x514649fb;
constexpr unsigned kMinClusterBits = 9;
constexpr unsigned kMaxClusterBits = 21;
constexpr unsigned kMinExtendedClusterBits = 14;
constexpr std::uint64_t kMaxL1Bytes = 32u << 20;
constexpr std::uint64_t kMaxReftableBytes = 8u << 20;
constexpr unsigned kSubclusters = 32; // per cluster with extended L2 entries
constexpr std::size_t kMaxBackingName = 1023;
constexpr std::uint64_t kMaxHostOffset = std::uint64_t{1} << 56;

namespace incompatible {
constexpr std::uint64_t kDirty = 1, kCorrupt = 2, kDataFile = 4, kCompression = 8, kExtendedL2 = 16;
constexpr std::uint64_t kKnown = 31;
} // namespace incompatible
namespace compatible {
constexpr std::uint64_t kLazyRefcounts = 1;
}
namespace autoclear {
constexpr std::uint64_t kBitmaps = 1, kRawExternal = 2;
}

enum class Compression : std::uint8_t { Zlib = 0, Zstd = 1 };

struct Extension {
    std::uint32_t type = 0;
    std::vector<std::byte> bytes;
};

struct BitmapExtension {
    std::uint32_t count = 0;
    std::uint64_t directory_bytes = 0;
    std::uint64_t directory_offset = 0;
};

/// Where the LUKS header lies (crypt_method 2).
struct CryptoExtension {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
};
constexpr std::uint32_t kCryptNone = 0, kCryptLuks = 2;

struct Header {
    std::uint32_t version = 3;
    unsigned cluster_bits = 16;
    std::uint64_t size_bytes = 0; // of the virtual disk
    std::uint32_t crypt_method = 0;
    std::uint32_t l1_entries = 0;
    std::uint64_t l1_offset = 0;
    std::uint64_t reftable_offset = 0;
    std::uint32_t reftable_clusters = 0;
    std::uint32_t snapshot_count = 0;
    std::uint64_t snapshots_offset = 0;
    std::uint64_t incompatible = 0;
    std::uint64_t compatible = 0;
    std::uint64_t autoclear = 0;
    unsigned refcount_order = 4;
    Compression compression = Compression::Zlib;
    std::string backing_file;
    std::string backing_format;
    std::string data_file;
    BitmapExtension bitmaps;
    CryptoExtension crypto;
    std::vector<Extension> unknown_extensions; // kept when the header is rewritten

    bool has(std::uint64_t feature) const { return (incompatible & feature) != 0; }
    bool extended_l2() const { return has(incompatible::kExtendedL2); }
    bool external_data() const { return has(incompatible::kDataFile); }
    std::uint64_t cluster_bytes() const { return std::uint64_t{1} << cluster_bits; }
};

/// Where QEMU keeps fields that are rewritten alone.
constexpr std::uint64_t kOffsetOfL1 = 36;        // u32 entries, u64 offset
constexpr std::uint64_t kOffsetOfReftable = 48;  // u64 offset, u32 clusters
constexpr std::uint64_t kOffsetOfSnapshots = 60; // u32 count, u64 offset
constexpr std::uint64_t kOffsetOfSize = 24;
constexpr std::uint64_t kOffsetOfIncompatible = 72;
constexpr std::uint64_t kOffsetOfAutoclear = 88;

bool is_qcow2(std::span<const std::byte> head);
/// Whether the extensions and the backing file's name, which may lie anywhere in the first cluster,
/// lie in this beginning of it.
bool header_ends_within(std::span<const std::byte> head);
/// `head`: the first cluster, or what there is of it, or a part that the header ends in. Every
/// number is held against its limit and tables against `file_bytes`.
Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes);
/// The bytes of cluster 0. Error: names and extensions do not fit.
Result<std::vector<std::byte>> serialize_header(const Header& header);

/// Sizes that follow from the header.
struct Geometry {
    unsigned cluster_bits = 16;
    bool extended = false;
    unsigned refcount_order = 4;

    explicit Geometry(const Header& header)
        : cluster_bits{header.cluster_bits}, extended{header.extended_l2()},
          refcount_order{header.refcount_order} {}
    std::uint64_t cluster() const { return std::uint64_t{1} << cluster_bits; }
    std::uint64_t entry_bytes() const { return extended ? 16 : 8; }
    unsigned l2_bits() const { return cluster_bits - (extended ? 4 : 3); }
    std::uint64_t l2_entries() const { return std::uint64_t{1} << l2_bits(); }
    /// Guest bytes that one L2 table maps.
    std::uint64_t l2_span() const { return l2_entries() << cluster_bits; }
    unsigned subclusters() const { return extended ? kSubclusters : 1; }
    /// Bytes whose state is tracked on its own: a cluster, or a subcluster.
    std::uint64_t unit() const { return cluster() / subclusters(); }
    /// Host clusters that one refcount block counts.
    std::uint64_t refblock_entries() const { return cluster() * 8 >> refcount_order; }
    std::uint64_t max_refcount() const {
        return refcount_order == 6 ? ~std::uint64_t{0}
                                   : (std::uint64_t{1} << (1u << refcount_order)) - 1;
    }
    std::uint64_t clusters_for(std::uint64_t bytes) const {
        return (bytes + cluster() - 1) >> cluster_bits;
    }
    std::uint64_t l1_entries_for(std::uint64_t bytes) const {
        return bytes / l2_span() + (bytes % l2_span() != 0);
    }
    std::uint64_t within(std::uint64_t offset) const { return offset & (cluster() - 1); }
};

constexpr std::uint64_t kCopied = std::uint64_t{1} << 63;
constexpr std::uint64_t kCompressed = std::uint64_t{1} << 62;
constexpr std::uint64_t kZeroFlag = 1;
constexpr std::uint64_t kOffsetMask = 0x00fffffffffffe00;

enum class Kind : std::uint8_t { Unallocated, Zero, Data, Compressed };

/// An L2 entry: a word, and with extended L2 the bits of its subclusters (allocated in the low
/// half, zero in the high half).
struct Entry {
    std::uint64_t word = 0;
    std::uint64_t bits = 0;

    bool compressed() const { return (word & kCompressed) != 0; }
    bool copied() const { return (word & kCopied) != 0; }
    std::uint64_t host() const { return word & kOffsetMask; }
    bool operator==(const Entry&) const = default;
};

struct CompressedRange {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0; // up to the end of its last sector
};
CompressedRange compressed_range(std::uint64_t word, unsigned cluster_bits);
std::uint64_t compressed_word(std::uint64_t offset, std::uint64_t bytes, unsigned cluster_bits);

std::uint64_t load_refcount(std::span<const std::byte> block, std::uint64_t index, unsigned order);
void store_refcount(std::span<std::byte> block, std::uint64_t index, unsigned order,
                    std::uint64_t value);

} // namespace doppel::block::qcow2
