// SPDX-License-Identifier: Apache-2.0
/// VDI as a row of the format table: probing, opening, creating.
#include <array>
#include <bit>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/clustered/parent.hpp"
#include "block/option_reader.hpp"
#include "block/vdi/vdi_node.hpp"

namespace doppel::block::vdi {

namespace {

constexpr std::uint64_t kAlignment = 1u << 20; // of table and data, VirtualBox's

constexpr std::array kOptions{
    OptionSpec{"backing_file", OptionKind::Text, "",
               "a .vdi in the same folder that shows where this one is empty"},
    OptionSpec{"backing_fmt", OptionKind::Text, "", "its format: vdi"},
    OptionSpec{"block_size", OptionKind::Size, "1M",
               "unit of allocation, 4k to 256M; QEMU reads 1M only"},
    OptionSpec{"preallocation", OptionKind::Text, "off", "off, or metadata: the same as static"},
    OptionSpec{"size", OptionKind::Size, "", "size of the virtual disk"},
    OptionSpec{"static", OptionKind::Switch, "off", "every block has its place from the beginning"},
};

int probe(std::span<const std::byte> head, std::uint64_t) { return is_vdi(head) ? 100 : 0; }

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, VdiNode::open(std::move(request)));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

std::unexpected<Error> wrong(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

Result<Header> header_of(const OptionReader& options, std::uint64_t size_bytes) {
    Header header;
    header.size_bytes = base::align_up(size_bytes, 512);
    header.block_bytes = DOPPEL_TRY(options.size("block_size"));
    if (!std::has_single_bit(header.block_bytes) || header.block_bytes < kMinBlockBytes ||
        header.block_bytes > kMaxBlockBytes)
        return wrong(fmt::format("block_size is {}, allowed are powers of two from 4k to 256M",
                                 header.block_bytes));
    const auto blocks = base::align_up(header.size_bytes, header.block_bytes) / header.block_bytes;
    if (blocks > kMaxBlocks)
        return wrong(fmt::format("{} bytes are too many for blocks of {} bytes", size_bytes,
                                 header.block_bytes),
                     "Use a larger block_size.");
    header.blocks = static_cast<std::uint32_t>(blocks);
    const auto mode = options.text("preallocation");
    if (mode != "off" && mode != "metadata")
        return wrong(fmt::format("preallocation '{}' is unknown for vdi", mode),
                     "Use off or metadata.");
    if (DOPPEL_TRY(options.flag("static")) || mode == "metadata")
        header.type = Type::Fixed;
    const auto parent = options.text("backing_file");
    const auto format = options.text("backing_fmt");
    if (!parent.empty() && !format.empty() && format != "vdi")
        return wrong(fmt::format("the backing file of a vdi image is a vdi image, not {}", format));
    if (!parent.empty() && (parent.find('/') != std::string::npos || !parent.ends_with(".vdi")))
        return wrong(fmt::format("'{}' cannot be the backing file: VDI stores no names, it must be "
                                 "a .vdi file in the image's folder",
                                 parent));
    if (!parent.empty() && header.type == Type::Fixed)
        return wrong("a static image would hide the backing file");
    header.table_offset = kAlignment;
    header.data_offset =
        kAlignment + std::max(kAlignment, base::align_up(header.table_bytes(), kAlignment));
    header.created = random_uuid();
    header.modified = random_uuid();
    return header;
}

/// Free entries, or in a static image each block in its place.
Task<void> write_table(Node& file, const Header& header) {
    constexpr std::uint32_t kChunk = 256u << 10;
    std::vector<std::byte> bytes(std::min(header.blocks, kChunk) * std::size_t{4}, std::byte{0xff});
    for (std::uint32_t first = 0; first < header.blocks; first += kChunk) {
        const auto count = std::min(header.blocks - first, kChunk);
        for (std::uint32_t i = 0; header.type == Type::Fixed && i < count; ++i)
            base::store_le(bytes.data() + i * std::size_t{4}, first + i);
        const auto from = IoBuffer::of(std::span{bytes}.first(count * std::size_t{4}));
        DOPPEL_AWAIT_VOID(file.write(header.table_offset + first * 4ull, from, Durability::Cached));
    }
    co_return {};
}

Task<void> create(CreateRequest request) {
    const OptionReader options{kOptions, request.options};
    DOPPEL_CO_TRY_VOID(options.check_names("vdi"));
    DOPPEL_CO_TRY(header, header_of(options, request.size_bytes));
    auto& file = *request.file;
    if (const auto parent = options.text("backing_file"); !parent.empty()) {
        DOPPEL_AWAIT(head, read_parent_head(*request.context, file.name(), parent, kHeaderBytes));
        DOPPEL_CO_TRY(above, parse_header(head, ~std::uint64_t{0} >> 1));
        header.type = Type::Differencing;
        header.parent_created = above.created;
        header.parent_modified = above.modified;
    }
    header.allocated = header.type == Type::Fixed ? header.blocks : 0;
    DOPPEL_AWAIT_VOID(write_table(file, header));
    DOPPEL_AWAIT_VOID(file.resize(header.data_offset + header.allocated * header.block_bytes));
    auto sector = new_sector(header);
    DOPPEL_AWAIT_VOID(file.write(0, IoBuffer{sector}, Durability::Cached));
    co_return {};
}

/// As if the disk were written once.
Result<SpaceNeed> measure(const DiskUse& use, const OptionValues& values) {
    const auto header = DOPPEL_TRY(header_of(OptionReader{kOptions, values}, use.size_bytes));
    const auto full = header.data_offset + header.blocks * header.block_bytes;
    return SpaceNeed{header.type == Type::Fixed ? full : header.data_offset + use.data_bytes, full};
}

Result<std::uint64_t> measure_unit(std::uint64_t, const OptionValues& values) {
    return OptionReader{kOptions, values}.size("block_size");
}

constexpr Format kFormat{"vdi",       "VirtualBox's image: thin or static, differencing",
                         probe,       open,
                         create,      kOptions,
                         measure,     {},
                         measure_unit};

} // namespace

const Format& format() { return kFormat; }

} // namespace doppel::block::vdi
