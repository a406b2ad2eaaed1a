// SPDX-License-Identifier: Apache-2.0
/// VHDX as a row of the format table: probing, opening, creating.
#include <array>
#include <bit>
#include <cstring>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/clustered/parent.hpp"
#include "block/option_reader.hpp"
#include "block/utf16.hpp"
#include "block/vhdx/vhdx_node.hpp"

namespace doppel::block::vhdx {

namespace {

constexpr std::uint64_t kLogOffset = kMib;

constexpr std::array kOptions{
    OptionSpec{"backing_file", OptionKind::Text, "", "a VHDX that shows where this one is empty"},
    OptionSpec{"backing_fmt", OptionKind::Text, "", "its format: vhdx"},
    OptionSpec{"block_size", OptionKind::Size, "0",
               "unit of allocation, 1M to 256M; 0: by the size, 2M over a backing file"},
    OptionSpec{"block_state_zero", OptionKind::Switch, "off",
               "blocks that are not there are marked as zero"},
    OptionSpec{"log_size", OptionKind::Size, "1M", "of the log, whole MiB"},
    OptionSpec{"preallocation", OptionKind::Text, "off",
               "of a fixed image: off (a hole), falloc (space reserved) or full (zeroes written)"},
    OptionSpec{"size", OptionKind::Size, "", "size of the virtual disk"},
    OptionSpec{"subformat", OptionKind::Text, "dynamic",
               "dynamic, or fixed: every block has its place from the beginning"},
};

int probe(std::span<const std::byte> head, std::uint64_t) { return is_vhdx(head) ? 100 : 0; }

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, VhdxNode::open(std::move(request)));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

std::unexpected<Error> wrong(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

/// Few blocks of a large disk, small ones of a small disk, as QEMU chooses.
std::uint64_t usual_block(std::uint64_t size_bytes, bool backed) {
    if (backed)
        return 2 * kMib;
    if (size_bytes > std::uint64_t{32} << 40)
        return 64 * kMib;
    if (size_bytes > std::uint64_t{100} << 30)
        return 32 * kMib;
    return size_bytes > std::uint64_t{1} << 30 ? 16 * kMib : 8 * kMib;
}

struct Plan {
    Metadata metadata;
    std::uint64_t log_bytes = kMib;
    bool zero_state = false;
    Preallocation space = Preallocation::Off;
};

Result<Plan> plan_of(const OptionReader& options, std::uint64_t size_bytes) {
    Plan plan;
    auto& metadata = plan.metadata;
    metadata.size_bytes = base::align_up(size_bytes, metadata.sector_bytes);
    if (metadata.size_bytes > kMaxDiskBytes)
        return wrong(fmt::format("{} bytes are more than VHDX can hold (64 TiB)", size_bytes));
    metadata.has_parent = options.given("backing_file");
    metadata.block_bytes = DOPPEL_TRY(options.size("block_size"));
    if (metadata.block_bytes == 0)
        metadata.block_bytes = usual_block(size_bytes, metadata.has_parent);
    if (!std::has_single_bit(metadata.block_bytes) || metadata.block_bytes < kMib ||
        metadata.block_bytes > 256 * kMib)
        return wrong(fmt::format("block_size is {}, allowed are powers of two from 1M to 256M",
                                 metadata.block_bytes));
    plan.log_bytes = DOPPEL_TRY(options.size("log_size"));
    if (plan.log_bytes < kMib || plan.log_bytes % kMib != 0 || plan.log_bytes > kMaxLogBytes)
        return wrong(
            fmt::format("log_size is {}, allowed are whole MiB up to 64M", plan.log_bytes));
    const auto subformat = options.text("subformat");
    if (subformat != "dynamic" && subformat != "fixed")
        return wrong(fmt::format("subformat '{}' is unknown for vhdx", subformat),
                     "Use dynamic or fixed.");
    metadata.leave_allocated = subformat == "fixed";
    plan.space = DOPPEL_TRY(
        parse_reservation(options.text("preallocation"), "vhdx", metadata.leave_allocated));
    plan.zero_state = DOPPEL_TRY(options.flag("block_state_zero"));
    if (metadata.has_parent && (metadata.leave_allocated || plan.zero_state))
        return wrong("a fixed image, or blocks marked as zero, would hide the backing file");
    const auto format = options.text("backing_fmt");
    if (metadata.has_parent && !format.empty() && format != "vhdx")
        return wrong(
            fmt::format("the backing file of a vhdx image is a vhdx image, not {}", format));
    metadata.disk_id = random_uuid();
    return plan;
}

/// The entries, where they are not all zero; yields where the file ends.
Task<std::uint64_t> write_entries(Node& file, const Plan& plan, const Region& table) {
    const Geometry geometry{plan.metadata};
    const auto blocks = geometry.blocks(plan.metadata.size_bytes);
    auto end = table.offset + table.bytes;
    if (!plan.metadata.leave_allocated && !plan.zero_state)
        co_return end;
    std::vector<std::byte> bytes(kMib);
    constexpr std::uint64_t kChunk = kMib / 8;
    const auto entries = geometry.entries(plan.metadata.size_bytes);
    std::uint64_t index = 0;
    for (std::uint64_t first = 0; first < entries; first += kChunk) {
        const auto count = std::min(kChunk, entries - first);
        for (std::uint64_t i = 0; i < count; ++i) {
            std::uint64_t value = 0;
            const bool bitmap = (first + i) % (geometry.ratio + 1) == geometry.ratio;
            if (!bitmap && index < blocks) {
                value = plan.metadata.leave_allocated ? entry_of(State::Full, end)
                                                      : entry_of(State::Zero, 0);
                end += plan.metadata.leave_allocated ? geometry.block_bytes : 0;
                ++index;
            }
            base::store_le(bytes.data() + i * 8, value);
        }
        const auto from = IoBuffer::of(std::span{bytes}.first(count * 8));
        DOPPEL_AWAIT_VOID(file.write(table.offset + first * 8, from, Durability::Cached));
    }
    co_return end;
}

Task<void> write_heads(Node& file, const Plan& plan, const Regions& regions) {
    std::vector<std::byte> head(kMib);
    const std::string_view signature = "vhdxfile";
    std::memcpy(head.data(), signature.data(), signature.size());
    const auto creator = utf16_of("Doppel", ByteOrder::Little);
    std::ranges::copy(creator, head.begin() + 8);
    Header header;
    header.file_write = random_uuid();
    header.data_write = random_uuid();
    header.log_bytes = static_cast<std::uint32_t>(plan.log_bytes);
    header.log_offset = kLogOffset;
    for (const auto offset : kHeaderOffset) {
        ++header.sequence;
        std::ranges::copy(serialize_header(header),
                          head.begin() + static_cast<std::ptrdiff_t>(offset));
    }
    for (const auto offset : kRegionOffset)
        std::ranges::copy(serialize_regions(regions),
                          head.begin() + static_cast<std::ptrdiff_t>(offset));
    DOPPEL_AWAIT_VOID(file.write(0, IoBuffer{head}, Durability::Cached));
    co_return {};
}

Regions regions_of(const Plan& plan) {
    const auto entries = Geometry{plan.metadata}.entries(plan.metadata.size_bytes);
    Regions regions;
    regions.metadata = {kLogOffset + plan.log_bytes, kMib};
    regions.table = {regions.metadata.offset + kMib,
                     std::max(kMib, base::align_up(entries * 8, kMib))};
    return regions;
}

Task<void> create(CreateRequest request) {
    const OptionReader options{kOptions, request.options};
    DOPPEL_CO_TRY_VOID(options.check_names("vhdx"));
    DOPPEL_CO_TRY(plan, plan_of(options, request.size_bytes));
    auto& file = *request.file;
    if (plan.metadata.has_parent) {
        DOPPEL_AWAIT(parent,
                     locate_parent(*request.context, file.name(), options.text("backing_file")));
        plan.metadata.parent = std::move(parent);
    }
    const auto regions = regions_of(plan);
    DOPPEL_CO_TRY(region, serialize_metadata(plan.metadata));
    DOPPEL_AWAIT_VOID(
        file.write(regions.metadata.offset, IoBuffer::of(region), Durability::Cached));
    DOPPEL_AWAIT(end, write_entries(file, plan, regions.table));
    const auto data = regions.table.offset + regions.table.bytes;
    DOPPEL_AWAIT_VOID(take_space(file, data, end - data, plan.space));
    DOPPEL_AWAIT_VOID(file.resize(end));
    DOPPEL_AWAIT_VOID(write_heads(file, plan, regions));
    co_return {};
}

/// As if the disk were written once.
Result<SpaceNeed> measure(const DiskUse& use, const OptionValues& values) {
    const auto plan = DOPPEL_TRY(plan_of(OptionReader{kOptions, values}, use.size_bytes));
    const auto table = regions_of(plan).table;
    const auto& metadata = plan.metadata;
    const auto full =
        table.offset + table.bytes + base::align_up(metadata.size_bytes, metadata.block_bytes);
    return SpaceNeed{metadata.leave_allocated ? full : table.offset + table.bytes + use.data_bytes,
                     full};
}

Result<std::uint64_t> measure_unit(std::uint64_t size_bytes, const OptionValues& values) {
    const auto plan = DOPPEL_TRY(plan_of(OptionReader{kOptions, values}, size_bytes));
    return plan.metadata.block_bytes;
}

constexpr Format kFormat{"vhdx",      "Hyper-V's image: thin or fixed, differencing, with a log",
                         probe,       open,
                         create,      kOptions,
                         measure,     {},
                         measure_unit};

} // namespace

Task<ParentLocator> locate_parent(IoContext& context, std::string image, std::string written) {
    if (written.find('\\') != std::string::npos)
        co_return wrong(fmt::format("'{}' cannot be the backing file: VHDX separates folders by "
                                    "backslashes",
                                    written));
    DOPPEL_AWAIT(head, read_parent_head(context, std::move(image), written,
                                        kHeaderOffset[1] + kHeaderBytes));
    if (!is_vhdx(head) || head.size() < kHeaderOffset[1] + kHeaderBytes)
        co_return wrong(fmt::format("the backing file '{}' is no VHDX image", written));
    Result<Header> current = wrong(fmt::format("the headers of '{}' are damaged", written));
    for (const auto offset : kHeaderOffset) {
        auto header = parse_header(std::span{head}.subspan(offset, kHeaderBytes));
        if (header && (!current || header->sequence > current->sequence))
            current = std::move(header);
    }
    if (!current)
        co_return std::unexpected(std::move(current).error());
    ParentLocator parent;
    parent.linkage = fmt::format("{{{}}}", guid_text(current->data_write));
    std::ranges::replace(written, '/', '\\');
    parent.relative_path = (written.starts_with('\\') ? "" : ".\\") + written;
    co_return parent;
}

const Format& format() { return kFormat; }

} // namespace doppel::block::vhdx
