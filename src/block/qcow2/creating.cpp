// SPDX-License-Identifier: Apache-2.0
/// qcow2 as a row of the format table: probing, creating, amending.
#include <algorithm>
#include <array>
#include <bit>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/option_reader.hpp"
#include "block/qcow2/create_options.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {

constexpr std::array kPlainOptions{
    OptionSpec{"backing_file", OptionKind::Text, "", "image that shows where this one is empty"},
    OptionSpec{"backing_fmt", OptionKind::Text, "", "its format"},
    OptionSpec{"cluster_size", OptionKind::Size, "64k", "unit of allocation, 512 to 2M"},
    OptionSpec{"compat", OptionKind::Text, "1.1", "1.1 (version 3) or 0.10 (version 2)"},
    OptionSpec{"compression_type", OptionKind::Text, "zlib", "zlib or zstd"},
    OptionSpec{"data_file", OptionKind::Text, "", "file that holds the data instead of the image"},
    OptionSpec{"data_file_raw", OptionKind::Switch, "off", "the data file is a valid raw image"},
    OptionSpec{"encrypt.format", OptionKind::Text, "", "luks: encrypt the data"},
    OptionSpec{"extended_l2", OptionKind::Switch, "off", "track 32 parts of each cluster"},
    OptionSpec{"lazy_refcounts", OptionKind::Switch, "off",
               "write refcounts late; a crash costs a repair"},
    OptionSpec{"preallocation", OptionKind::Text, "off", "off, metadata, falloc or full"},
    OptionSpec{"refcount_bits", OptionKind::Number, "16", "width of a refcount, 1 to 64"},
    OptionSpec{"size", OptionKind::Size, "", "size of the virtual disk"},
};

/// With those of encryption.
const std::vector<OptionSpec>& all_options() {
    static const auto kAll = [] {
        std::vector<OptionSpec> all{kPlainOptions.begin(), kPlainOptions.end()};
        const auto more = crypto::encrypt_create_options();
        all.insert(all.end(), more.begin(), more.end());
        std::ranges::sort(all, {}, &OptionSpec::name);
        return all;
    }();
    return kAll;
}

constexpr std::array kOpenOptions{
    OptionSpec{"encrypt.format", OptionKind::Text, "", "luks"},
    OptionSpec{"encrypt.key-secret", OptionKind::Text, "", "id of the secret with the passphrase"},
};

int probe(std::span<const std::byte> head, std::uint64_t) { return is_qcow2(head) ? 100 : 0; }

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, Qcow2Node::open(std::move(request)));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

std::unexpected<Error> wrong(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

Result<void> read_sizes(Header& header, const OptionReader& options) {
    const auto cluster = DOPPEL_TRY(options.size("cluster_size"));
    if (!std::has_single_bit(cluster) || cluster < 512 || cluster > (2u << 20))
        return wrong(
            fmt::format("cluster_size is {}, allowed are powers of two from 512 to 2M", cluster));
    header.cluster_bits = static_cast<unsigned>(std::countr_zero(cluster));
    header.refcount_order = DOPPEL_TRY(read_refcount_order(options));
    return {};
}

Result<void> read_features(Header& header, const OptionReader& options) {
    if (DOPPEL_TRY(options.flag("lazy_refcounts")))
        header.compatible |= compatible::kLazyRefcounts;
    if (DOPPEL_TRY(options.flag("extended_l2"))) {
        header.incompatible |= incompatible::kExtendedL2;
        if (header.cluster_bits < kMinExtendedClusterBits)
            return wrong("extended_l2 wants a cluster_size of 16k or more");
    }
    const auto compression = options.text("compression_type");
    if (compression == "zstd") {
        header.compression = Compression::Zstd;
        header.incompatible |= incompatible::kCompression;
    } else if (compression != "zlib") {
        return wrong(fmt::format("compression_type '{}' is unknown", compression),
                     "Use zlib or zstd.");
    }
    header.data_file = options.text("data_file");
    if (!header.data_file.empty())
        header.incompatible |= incompatible::kDataFile;
    if (DOPPEL_TRY(options.flag("data_file_raw"))) {
        if (header.data_file.empty())
            return wrong("data_file_raw wants a data_file");
        header.autoclear |= autoclear::kRawExternal;
    }
    return {};
}

bool wants_encryption(const OptionReader& options) {
    return !options.text("encrypt.format").empty();
}

Result<void> check_encryption(const Header& header, const OptionReader& options) {
    if (!wants_encryption(options)) {
        for (const auto& spec : crypto::encrypt_create_options())
            if (options.given(spec.name))
                return wrong(fmt::format("{} wants encrypt.format=luks", spec.name));
        return {};
    }
    if (const auto form = options.text("encrypt.format"); form != "luks")
        return wrong(fmt::format("encrypt.format '{}' is unknown", form), "Use luks.");
    DOPPEL_TRY(crypto::read_luks_options(options, "encrypt."));
    if (header.external_data())
        return wrong("encryption and data_file exclude each other");
    if (header.version < 3 && options.text("preallocation") != "off")
        return wrong("preallocation of an encrypted image wants compat 1.1");
    return {};
}

Result<Header> header_of(const OptionReader& options) {
    DOPPEL_TRY_VOID(options.check_names("qcow2"));
    Header header;
    header.version = DOPPEL_TRY(parse_compat(options.text("compat")));
    DOPPEL_TRY_VOID(read_sizes(header, options));
    DOPPEL_TRY_VOID(read_features(header, options));
    header.backing_file = options.text("backing_file");
    header.backing_format = options.text("backing_fmt");
    if (header.backing_file.empty() && !header.backing_format.empty())
        return wrong("backing_fmt wants a backing_file");
    if (!header.backing_file.empty() && (header.autoclear & autoclear::kRawExternal) != 0)
        return wrong("data_file_raw and backing_file exclude each other");
    const bool v3_feature =
        header.incompatible != 0 || header.compatible != 0 || header.refcount_order != 4;
    if (header.version < 3 && v3_feature)
        return wrong("compat 0.10 has 16 refcount bits, zlib, and neither lazy_refcounts, "
                     "extended_l2 nor data_file",
                     "Use compat 1.1.");
    DOPPEL_TRY_VOID(check_encryption(header, options));
    const auto mode = options.text("preallocation");
    if (mode != "off" && mode != "metadata" && mode != "falloc" && mode != "full")
        return wrong(fmt::format("preallocation '{}' is unknown", mode),
                     "Use off, metadata, falloc or full.");
    if (mode != "off" && !header.backing_file.empty() && !header.extended_l2())
        return wrong("preallocation would hide the backing file");
    return header;
}

/// Where a file grows by being written, what follows the last byte that is set is a hole.
Task<void> write_cluster(Node& file, std::uint64_t offset, std::span<const std::byte> bytes) {
    const auto last = std::find_if(bytes.rbegin(), bytes.rend(),
                                   [](std::byte byte) { return byte != std::byte{0}; });
    const auto used =
        file.fixed_size() ? bytes.size() : static_cast<std::size_t>(bytes.rend() - last);
    const auto from = IoBuffer::of(bytes.first(used));
    return file.write(offset, from, Durability::Cached);
}

/// A disk of size 0: header, refcount table, one refcount block.
Task<void> write_minimal(Node& file, Header& header) {
    const auto cluster = header.cluster_bytes();
    header.reftable_offset = cluster;
    header.reftable_clusters = 1;
    std::vector<std::byte> table(cluster);
    base::store_be(table.data(), 2 * cluster);
    std::vector<std::byte> block(cluster);
    for (std::uint64_t i = 0; i < 3; ++i)
        store_refcount(block, i, header.refcount_order, 1);
    DOPPEL_CO_TRY(head, serialize_header(header));
    if (!file.fixed_size())
        DOPPEL_AWAIT_VOID(file.resize(3 * cluster));
    DOPPEL_AWAIT_VOID(write_cluster(file, 0, head));
    DOPPEL_AWAIT_VOID(write_cluster(file, cluster, table));
    DOPPEL_AWAIT_VOID(write_cluster(file, 2 * cluster, block));
    co_return {};
}

Preallocation preallocation_of(const std::string& mode) {
    return mode == "metadata" ? Preallocation::Metadata
           : mode == "falloc" ? Preallocation::Falloc
           : mode == "full"   ? Preallocation::Full
                              : Preallocation::Off;
}

Task<void> create(CreateRequest request) {
    const OptionReader options{all_options(), request.options};
    DOPPEL_CO_TRY(header, header_of(options));
    crypto::LuksOptions luks;
    Secret passphrase;
    if (wants_encryption(options)) {
        DOPPEL_CO_TRY(wanted, crypto::read_luks_options(options, "encrypt."));
        DOPPEL_CO_TRY(found, crypto::find_secret(options, "encrypt.key-secret", request.secrets));
        luks = wanted;
        passphrase = std::move(found);
    }
    if (request.size_bytes % 512 != 0)
        request.size_bytes = base::align_up(request.size_bytes, 512);
    DOPPEL_AWAIT_VOID(write_minimal(*request.file, header));
    if (!header.data_file.empty()) {
        DOPPEL_CO_TRY(data_file, request.opener->create_part(header.data_file));
        DOPPEL_AWAIT_VOID(data_file->resize(request.size_bytes));
        DOPPEL_AWAIT_VOID(data_file->close());
    }
    OpenRequest again{request.context, std::move(request.file), {}, request.opener};
    again.options.access = Access::ReadWrite;
    again.options.backing = false;
    DOPPEL_AWAIT(node, Qcow2Node::open(std::move(again)));
    if (wants_encryption(options))
        DOPPEL_AWAIT_VOID(node->encrypt(std::move(luks), std::move(passphrase)));
    DOPPEL_AWAIT_VOID(node->resize(request.size_bytes));
    const auto how = preallocation_of(options.text("preallocation"));
    if (how != Preallocation::Off)
        DOPPEL_AWAIT_VOID(node->preallocate(0, how));
    DOPPEL_AWAIT_VOID(node->close());
    co_return {};
}

constexpr std::uint64_t kBitmapEntryBytes = 24; // of the directory, in front of the name

/// Tables and bits of the bitmaps, and their directory, in whole clusters.
std::uint64_t bitmap_space(const std::vector<BitmapInfo>& bitmaps, std::uint64_t size_bytes,
                           const Geometry& geometry) {
    std::uint64_t clusters = 0;
    std::uint64_t directory = 0;
    for (const auto& bitmap : bitmaps) {
        if (bitmap.inconsistent)
            continue;
        const auto bits = (size_bytes + bitmap.granularity_bytes - 1) / bitmap.granularity_bytes;
        const auto data = geometry.clusters_for((bits + 7) / 8);
        clusters += data + geometry.clusters_for(data * 8);
        directory += base::align_up(kBitmapEntryBytes + bitmap.name.size(), 8);
    }
    return (clusters + geometry.clusters_for(directory)) << geometry.cluster_bits;
}

/// As if the disk were written once, from beginning to end.
Result<SpaceNeed> measure(const DiskUse& use, const OptionValues& values) {
    const OptionReader options{all_options(), values};
    const auto header = DOPPEL_TRY(header_of(options));
    const Geometry geometry{header};
    const auto data = geometry.clusters_for(use.size_bytes);
    const auto l1_entries = geometry.l1_entries_for(use.size_bytes);
    auto tables = 1 + l1_entries + geometry.clusters_for(l1_entries * 8);
    if (wants_encryption(options)) {
        const auto luks = DOPPEL_TRY(crypto::read_luks_options(options, "encrypt."));
        tables += geometry.clusters_for(DOPPEL_TRY(crypto::LuksVolume::plan(luks)).payload_bytes());
    }
    std::uint64_t counted = 0; // clusters of refcount blocks and their table
    while (true) {
        const auto blocks = (tables + data + counted + geometry.refblock_entries() - 1) /
                            geometry.refblock_entries();
        const auto needed = blocks + geometry.clusters_for(blocks * 8);
        if (needed <= counted)
            break;
        counted = needed;
    }
    const auto metadata = (tables + counted) << geometry.cluster_bits;
    const auto preallocated = options.text("preallocation") != "off";
    const auto full = metadata + (data << geometry.cluster_bits);
    SpaceNeed need;
    need.required = preallocated ? full : metadata + use.data_bytes;
    need.fully_allocated = full;
    if (header.external_data())
        need.required = need.fully_allocated = metadata;
    if (use.bitmaps && header.version >= 3)
        need.bitmaps = bitmap_space(*use.bitmaps, use.size_bytes, geometry);
    return need;
}

Result<std::uint64_t> measure_unit(std::uint64_t, const OptionValues& values) {
    return OptionReader{all_options(), values}.size("cluster_size");
}

} // namespace

std::span<const OptionSpec> create_options() { return all_options(); }

Result<unsigned> read_refcount_order(const OptionReader& options) {
    const auto bits = DOPPEL_TRY(options.size("refcount_bits"));
    if (!std::has_single_bit(bits) || bits > 64)
        return wrong(fmt::format("refcount_bits is {}, allowed are powers of two up to 64", bits));
    return static_cast<unsigned>(std::countr_zero(bits));
}

Result<std::uint32_t> parse_compat(const std::string& compat) {
    if (compat == "1.1" || compat == "v3")
        return 3;
    if (compat == "0.10" || compat == "v2")
        return 2;
    return wrong(fmt::format("compat '{}' is unknown", compat), "Use 0.10 or 1.1.");
}

const Format& format() {
    static const Format kFormat{
        "qcow2",     "QEMU's image: thin, snapshots, backing files, compression",
        probe,       open,
        create,      all_options(),
        measure,     kOpenOptions,
        measure_unit};
    return kFormat;
}

} // namespace doppel::block::qcow2
