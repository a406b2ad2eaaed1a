// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/layout.hpp"

namespace doppel::block::qcow2 {

using base::fail;
using base::load_be;
using base::store_be;

namespace {

constexpr std::size_t kV2HeaderBytes = 72;
constexpr std::size_t kV3MinBytes = 104;
constexpr std::size_t kV3HeaderBytes = 112;
constexpr std::uint32_t kExtBackingFormat = 0xe2792aca;
constexpr std::uint32_t kExtFeatureNames = 0x6803f857;
constexpr std::uint32_t kExtCrypto = 0x0537be77;
constexpr std::uint64_t kMaxCryptoBytes = 64u << 20;
constexpr std::uint32_t kExtBitmaps = 0x23852875;
constexpr std::uint32_t kExtDataFile = 0x44415441;
constexpr std::size_t kMaxFormatName = 16;
constexpr std::size_t kExtensionHead = 8;
constexpr std::size_t kBitmapsBytes = 24;
constexpr std::size_t kSectorBytes = 512; // what a power cut does not tear

template <typename T> T field(std::span<const std::byte> head, std::size_t at) {
    return load_be<T>(head.data() + at);
}

std::unexpected<base::Error> corrupt(std::string text) {
    return fail(Errc::Corrupt, std::move(text), "Is this a qcow2 image?");
}

std::string text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<void> parse_extension(Header& header, std::uint32_t type, std::span<const std::byte> bytes) {
    switch (type) {
    case kExtBackingFormat:
        if (bytes.size() >= kMaxFormatName)
            return corrupt(fmt::format("the backing format's name has {} bytes, allowed are {}",
                                       bytes.size(), kMaxFormatName - 1));
        header.backing_format = text_of(bytes);
        return {};
    case kExtDataFile: header.data_file = text_of(bytes); return {};
    case kExtFeatureNames: return {}; // written anew
    case kExtBitmaps:
        if (bytes.size() < 24)
            return corrupt("the bitmap extension is shorter than 24 bytes");
        header.bitmaps = {field<std::uint32_t>(bytes, 0), field<std::uint64_t>(bytes, 8),
                          field<std::uint64_t>(bytes, 16)};
        return {};
    case kExtCrypto:
        if (bytes.size() != 16)
            return corrupt(fmt::format("the encryption extension has {} bytes", bytes.size()));
        header.crypto = {field<std::uint64_t>(bytes, 0), field<std::uint64_t>(bytes, 8)};
        return {};
    default: header.unknown_extensions.push_back({type, {bytes.begin(), bytes.end()}}); return {};
    }
}

Result<void> parse_extensions(Header& header, std::span<const std::byte> head, std::size_t at,
                              std::size_t end) {
    while (at + 8 <= end) {
        const auto type = field<std::uint32_t>(head, at);
        const auto length = field<std::uint32_t>(head, at + 4);
        at += 8;
        if (type == 0)
            return {};
        if (length > end - at)
            return corrupt(fmt::format("header extension {:#010x} has {} bytes, {} are left", type,
                                       length, end - at));
        DOPPEL_TRY_VOID(parse_extension(header, type, head.subspan(at, length)));
        at += base::align_up(length, 8);
    }
    return {};
}

Result<void> parse_backing_name(Header& header, std::span<const std::byte> head) {
    const auto offset = field<std::uint64_t>(head, 8);
    const auto length = field<std::uint32_t>(head, 16);
    if (offset == 0)
        return {};
    if (length > kMaxBackingName || offset > head.size() || length > head.size() - offset)
        return corrupt(fmt::format("the backing file's name ({} bytes at {}) is not in the first "
                                   "cluster, or longer than {}",
                                   length, offset, kMaxBackingName));
    header.backing_file = text_of(head.subspan(offset, length));
    return {};
}

Result<void> check_table(const char* what, std::uint64_t offset, std::uint64_t bytes,
                         std::uint64_t limit, const Header& header, std::uint64_t file_bytes) {
    if (bytes > limit)
        return corrupt(fmt::format("the {} has {} bytes, allowed are {}", what, bytes, limit));
    if (bytes != 0 && (offset & (header.cluster_bytes() - 1)) != 0)
        return corrupt(
            fmt::format("the {} lies at {:#x}, not on a cluster boundary", what, offset));
    if (offset > file_bytes || bytes > base::align_up(file_bytes, header.cluster_bytes()) - offset)
        return corrupt(fmt::format("the {} ({} bytes at {:#x}) passes the end of the file", what,
                                   bytes, offset));
    return {};
}

Result<void> check_numbers(const Header& header, std::uint64_t file_bytes) {
    const Geometry geometry{header};
    if (header.extended_l2() && header.cluster_bits < kMinExtendedClusterBits)
        return corrupt("extended L2 entries want clusters of 16 KiB or more");
    if (header.size_bytes > (std::uint64_t{1} << 62))
        return corrupt(
            fmt::format("the disk's size is {} bytes, allowed is 2^62", header.size_bytes));
    if (geometry.l1_entries_for(header.size_bytes) > header.l1_entries)
        return corrupt(fmt::format("the L1 table has {} entries, too few for {} bytes",
                                   header.l1_entries, header.size_bytes));
    DOPPEL_TRY_VOID(check_table("L1 table", header.l1_offset, std::uint64_t{header.l1_entries} * 8,
                                kMaxL1Bytes, header, file_bytes));
    if (header.reftable_clusters == 0)
        return corrupt("there is no refcount table");
    DOPPEL_TRY_VOID(check_table("refcount table", header.reftable_offset,
                                std::uint64_t{header.reftable_clusters} * header.cluster_bytes(),
                                kMaxReftableBytes, header, file_bytes));
    if (header.snapshot_count > 65536)
        return corrupt(fmt::format("{} snapshots, allowed are 65536", header.snapshot_count));
    return check_table("snapshot table", header.snapshots_offset,
                       std::uint64_t{header.snapshot_count} * 40, 64u << 20, header, file_bytes);
}

Result<void> check_encryption(const Header& header, std::uint64_t file_bytes) {
    if (header.crypt_method == kCryptNone)
        return {};
    if (header.crypt_method != kCryptLuks)
        return fail(Errc::Unsupported,
                    fmt::format("the image is encrypted by method {}, only LUKS is known here",
                                header.crypt_method),
                    "Convert it with the program that made it.");
    if (header.crypto.bytes == 0)
        return corrupt("the image is encrypted and does not say where its LUKS header is");
    return check_table("LUKS header", header.crypto.offset, header.crypto.bytes, kMaxCryptoBytes,
                       header, file_bytes);
}

Result<std::size_t> parse_v3_fields(Header& header, std::span<const std::byte> head) {
    if (head.size() < kV3MinBytes)
        return corrupt("the file ends inside the header");
    header.incompatible = field<std::uint64_t>(head, 72);
    header.compatible = field<std::uint64_t>(head, 80);
    header.autoclear = field<std::uint64_t>(head, 88);
    header.refcount_order = field<std::uint32_t>(head, 96);
    const auto length = field<std::uint32_t>(head, 100);
    if (header.refcount_order > 6)
        return corrupt(fmt::format("refcount_order is {}, allowed 0..6", header.refcount_order));
    if (length < kV3MinBytes || length % 8 != 0 || length > head.size())
        return corrupt(fmt::format("header_length is {}, allowed are multiples of 8 from {} to {}",
                                   length, kV3MinBytes, head.size()));
    if (const auto unknown = header.incompatible & ~incompatible::kKnown; unknown != 0)
        return fail(Errc::Unsupported,
                    fmt::format("the image needs feature bits {:#x}, which are unknown", unknown),
                    "A newer program has written it.");
    const auto type = length > kV3MinBytes ? std::to_integer<unsigned>(head[104]) : 0;
    if (type > 1)
        return fail(Errc::Unsupported, fmt::format("compression type {} is unknown", type));
    if ((type != 0) != header.has(incompatible::kCompression))
        return corrupt("the compression type and its feature bit contradict each other");
    header.compression = type == 1 ? Compression::Zstd : Compression::Zlib;
    return length;
}

struct FeatureName {
    std::uint8_t type; // 0 incompatible, 1 compatible, 2 autoclear
    std::uint8_t bit;
    std::string_view name;
};
constexpr std::array kFeatureNames{
    FeatureName{0, 0, "dirty bit"},
    FeatureName{0, 1, "corrupt bit"},
    FeatureName{0, 2, "external data file"},
    FeatureName{0, 3, "compression type"},
    FeatureName{0, 4, "extended L2 entries"},
    FeatureName{1, 0, "lazy refcounts"},
    FeatureName{2, 0, "bitmaps"},
    FeatureName{2, 1, "raw external data"},
};

std::vector<std::byte> feature_table() {
    constexpr std::size_t kRow = 48;
    std::vector<std::byte> table(kFeatureNames.size() * kRow);
    for (std::size_t i = 0; i < kFeatureNames.size(); ++i) {
        const auto& feature = kFeatureNames[i];
        table[i * kRow] = std::byte{feature.type};
        table[i * kRow + 1] = std::byte{feature.bit};
        std::memcpy(table.data() + i * kRow + 2, feature.name.data(), feature.name.size());
    }
    return table;
}

void append_extension(std::vector<std::byte>& out, std::uint32_t type,
                      std::span<const std::byte> bytes) {
    std::array<std::byte, 8> head{};
    store_be(head.data(), type);
    store_be(head.data() + 4, static_cast<std::uint32_t>(bytes.size()));
    out.insert(out.end(), head.begin(), head.end());
    out.insert(out.end(), bytes.begin(), bytes.end());
    out.resize(base::align_up(out.size(), 8));
}

std::span<const std::byte> bytes_of(const std::string& text) {
    return std::as_bytes(std::span{text.data(), text.size()});
}

/// A torn write must not part the fixed fields from what belongs to them. Nearly always all of it
/// lies in one sector: the names of features, which nobody needs, only if they do not pass it. A
/// long backing name does; it stays where it is when bitmaps come and go.
void append_extensions(std::vector<std::byte>& out, const Header& header) {
    if (header.crypt_method == kCryptLuks) {
        std::array<std::byte, 16> bytes{};
        store_be(bytes.data(), header.crypto.offset);
        store_be(bytes.data() + 8, header.crypto.bytes);
        append_extension(out, kExtCrypto, bytes);
    }
    if (!header.backing_format.empty())
        append_extension(out, kExtBackingFormat, bytes_of(header.backing_format));
    if (!header.data_file.empty() && header.external_data())
        append_extension(out, kExtDataFile, bytes_of(header.data_file));
    if (header.bitmaps.count > 0) {
        std::array<std::byte, kBitmapsBytes> bytes{};
        store_be(bytes.data(), header.bitmaps.count);
        store_be(bytes.data() + 8, header.bitmaps.directory_bytes);
        store_be(bytes.data() + 16, header.bitmaps.directory_offset);
        append_extension(out, kExtBitmaps, bytes);
    }
    for (const auto& extension : header.unknown_extensions)
        append_extension(out, extension.type, extension.bytes);
    const auto names = feature_table();
    const auto rest = kExtensionHead + header.backing_file.size(); // the end marker, the name
    if (header.version >= 3 && out.size() + kExtensionHead + names.size() + rest <= kSectorBytes)
        append_extension(out, kExtFeatureNames, names);
    else if (header.version >= 3 && header.bitmaps.count == 0 && header.cluster_bits > 9)
        out.resize(out.size() + kExtensionHead + kBitmapsBytes);
    out.resize(out.size() + kExtensionHead);
}

void store_fixed_fields(std::span<std::byte> out, const Header& header) {
    auto* at = out.data();
    store_be(at, QCOW_MAGIC);
    store_be(at + 4, header.version);
    store_be(at + 20, static_cast<std::uint32_t>(header.cluster_bits));
    store_be(at + 24, header.size_bytes);
    store_be(at + 32, header.crypt_method);
    store_be(at + 36, header.l1_entries);
    store_be(at + 40, header.l1_offset);
    store_be(at + 48, header.reftable_offset);
    store_be(at + 56, header.reftable_clusters);
    store_be(at + 60, header.snapshot_count);
    store_be(at + 64, header.snapshots_offset);
    if (header.version < 3)
        return;
    store_be(at + 72, header.incompatible);
    store_be(at + 80, header.compatible);
    store_be(at + 88, header.autoclear);
    store_be(at + 96, static_cast<std::uint32_t>(header.refcount_order));
    store_be(at + 100, static_cast<std::uint32_t>(kV3HeaderBytes));
    out[104] = static_cast<std::byte>(header.compression);
}

} // namespace

bool is_qcow2(std::span<const std::byte> head) {
    if (head.size() < kV2HeaderBytes || field<std::uint32_t>(head, 0) != QCOW_MAGIC)
        return false;
    const auto version = field<std::uint32_t>(head, 4);
    return version == 2 || version == 3;
}

bool header_ends_within(std::span<const std::byte> head) {
    if (head.size() < kV3HeaderBytes)
        return false;
    const auto name = field<std::uint64_t>(head, 8);
    if (name > head.size() || (name != 0 && field<std::uint32_t>(head, 16) > head.size() - name))
        return false;
    const bool v3 = field<std::uint32_t>(head, 4) >= 3;
    const std::size_t end = name != 0 ? name : head.size();
    std::size_t at = v3 ? field<std::uint32_t>(head, 100) : kV2HeaderBytes;
    while (at + kExtensionHead <= end) {
        if (field<std::uint32_t>(head, at) == 0)
            return true;
        at += kExtensionHead + base::align_up(field<std::uint32_t>(head, at + 4), 8);
    }
    return name != 0;
}

Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes) {
    if (head.size() < kV2HeaderBytes)
        return corrupt(fmt::format("the file has {} bytes, less than a header", head.size()));
    if (field<std::uint32_t>(head, 0) != QCOW_MAGIC)
        return corrupt("the magic number of qcow2 is missing");
    Header header;
    header.version = field<std::uint32_t>(head, 4);
    if (header.version != 2 && header.version != 3)
        return fail(Errc::Unsupported,
                    fmt::format("qcow version {} is unknown, 2 and 3 are not", header.version));
    header.cluster_bits = field<std::uint32_t>(head, 20);
    if (header.cluster_bits < kMinClusterBits || header.cluster_bits > kMaxClusterBits)
        return corrupt(fmt::format("cluster_bits is {}, allowed {}..{}", header.cluster_bits,
                                   kMinClusterBits, kMaxClusterBits));
    header.size_bytes = field<std::uint64_t>(head, 24);
    header.crypt_method = field<std::uint32_t>(head, 32);
    header.l1_entries = field<std::uint32_t>(head, 36);
    header.l1_offset = field<std::uint64_t>(head, 40);
    header.reftable_offset = field<std::uint64_t>(head, 48);
    header.reftable_clusters = field<std::uint32_t>(head, 56);
    header.snapshot_count = field<std::uint32_t>(head, 60);
    header.snapshots_offset = field<std::uint64_t>(head, 64);
    std::size_t length = kV2HeaderBytes;
    if (header.version == 3)
        length = DOPPEL_TRY(parse_v3_fields(header, head));
    const auto cluster = head.first(std::min<std::size_t>(head.size(), header.cluster_bytes()));
    DOPPEL_TRY_VOID(check_numbers(header, file_bytes));
    DOPPEL_TRY_VOID(parse_backing_name(header, cluster));
    const auto backing_at = field<std::uint64_t>(head, 8);
    const auto end =
        backing_at != 0 ? std::min<std::size_t>(backing_at, cluster.size()) : cluster.size();
    DOPPEL_TRY_VOID(parse_extensions(header, cluster, length, end));
    DOPPEL_TRY_VOID(check_encryption(header, file_bytes));
    return header;
}

Result<std::vector<std::byte>> serialize_header(const Header& header) {
    std::vector<std::byte> out(header.version >= 3 ? kV3HeaderBytes : kV2HeaderBytes);
    store_fixed_fields(out, header);
    append_extensions(out, header);
    if (!header.backing_file.empty()) {
        if (header.backing_file.size() > kMaxBackingName)
            return fail(Errc::InvalidArgument,
                        fmt::format("the backing file's name has {} bytes, allowed are {}",
                                    header.backing_file.size(), kMaxBackingName));
        store_be(out.data() + 8, static_cast<std::uint64_t>(out.size()));
        store_be(out.data() + 16, static_cast<std::uint32_t>(header.backing_file.size()));
        const auto name = bytes_of(header.backing_file);
        out.insert(out.end(), name.begin(), name.end());
    }
    if (out.size() > header.cluster_bytes())
        return fail(Errc::InvalidArgument,
                    fmt::format("the header needs {} bytes, a cluster has {}", out.size(),
                                header.cluster_bytes()),
                    "Use a shorter backing file name or larger clusters.");
    out.resize(header.cluster_bytes());
    return out;
}

CompressedRange compressed_range(std::uint64_t word, unsigned cluster_bits) {
    const unsigned split = 62 - (cluster_bits - 8);
    const auto offset = word & ((std::uint64_t{1} << split) - 1);
    const auto sectors = (word & (kCompressed - 1)) >> split;
    return {offset, (sectors + 1) * 512 - (offset & 511)};
}

std::uint64_t compressed_word(std::uint64_t offset, std::uint64_t bytes, unsigned cluster_bits) {
    const unsigned split = 62 - (cluster_bits - 8);
    const auto sectors = ((offset + bytes - 1) >> 9) - (offset >> 9);
    return kCompressed | sectors << split | offset;
}

std::uint64_t load_refcount(std::span<const std::byte> block, std::uint64_t index, unsigned order) {
    switch (order) {
    case 3: return std::to_integer<std::uint64_t>(block[index]);
    case 4: return load_be<std::uint16_t>(block.data() + index * 2);
    case 5: return load_be<std::uint32_t>(block.data() + index * 4);
    case 6: return load_be<std::uint64_t>(block.data() + index * 8);
    default: {
        const unsigned width = 1u << order; // 1, 2 or 4 bits, the lowest first
        const auto bit = index << order;
        return (std::to_integer<unsigned>(block[bit / 8]) >> (bit % 8)) & ((1u << width) - 1);
    }
    }
}

void store_refcount(std::span<std::byte> block, std::uint64_t index, unsigned order,
                    std::uint64_t value) {
    switch (order) {
    case 3: block[index] = static_cast<std::byte>(value); return;
    case 4: store_be(block.data() + index * 2, static_cast<std::uint16_t>(value)); return;
    case 5: store_be(block.data() + index * 4, static_cast<std::uint32_t>(value)); return;
    case 6: store_be(block.data() + index * 8, value); return;
    default: {
        const unsigned width = 1u << order;
        const auto bit = index << order;
        const unsigned mask = ((1u << width) - 1) << (bit % 8);
        const auto old = std::to_integer<unsigned>(block[bit / 8]) & ~mask;
        block[bit / 8] = static_cast<std::byte>(old | (static_cast<unsigned>(value) << (bit % 8)));
    }
    }
}

} // namespace doppel::block::qcow2
