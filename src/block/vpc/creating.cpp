// SPDX-License-Identifier: Apache-2.0
/// VHD as a row of the format table: probing, opening, creating.
#include <array>
#include <bit>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/clustered/parent.hpp"
#include "block/option_reader.hpp"
#include "block/utf16.hpp"
#include "block/vpc/fixed_node.hpp"
#include "block/vpc/vpc_node.hpp"

namespace doppel::block::vpc {

namespace {

constexpr std::array kOptions{
    OptionSpec{"backing_file", OptionKind::Text, "", "a VHD that shows where this one is empty"},
    OptionSpec{"backing_fmt", OptionKind::Text, "", "its format: vpc"},
    OptionSpec{"block_size", OptionKind::Size, "2M", "unit of allocation, 4k to 256M"},
    OptionSpec{"force_size", OptionKind::Switch, "on",
               "off: round the size up to cylinders, heads and sectors, as Virtual PC wants"},
    OptionSpec{"preallocation", OptionKind::Text, "off",
               "of a fixed image: off (a hole), falloc (space reserved) or full (zeroes written)"},
    OptionSpec{"size", OptionKind::Size, "", "size of the virtual disk"},
    OptionSpec{"subformat", OptionKind::Text, "dynamic", "dynamic, or fixed: all bytes in a row"},
};

/// A fixed VHD looks like any disk: it must be named.
int probe(std::span<const std::byte> head, std::uint64_t) { return is_vpc(head) ? 100 : 0; }

std::unexpected<Error> wrong(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    const auto path = request.file->name();
    auto task = find_footer(*request.file);
    auto found = co_await task;
    if (!found)
        co_return std::unexpected(std::move(found).error().with_context(fmt::format("'{}'", path)));
    auto& footer = found->footer;
    if (footer.type == Type::Fixed) {
        if (footer.size_bytes > request.file->size())
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("'{}': the disk has {} bytes, the file {}", path,
                                             footer.size_bytes, request.file->size()));
        co_return std::make_unique<FixedNode>(std::move(request.file), std::move(footer));
    }
    DOPPEL_AWAIT(node, VpcNode::open(std::move(request), std::move(footer), found->lost));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

struct Plan {
    Type type = Type::Dynamic;
    Header header;
    std::uint64_t size_bytes = 0;
    bool exact = true;
    Preallocation space = Preallocation::Off;
    std::string parent;
};

Result<Plan> plan_of(const OptionReader& options, std::uint64_t size_bytes) {
    Plan plan;
    plan.exact = DOPPEL_TRY(options.flag("force_size"));
    plan.size_bytes = plan.exact ? base::align_up(size_bytes, kSector) : geometric_size(size_bytes);
    if (plan.size_bytes > kMaxDiskBytes)
        return wrong(fmt::format("{} bytes are more than VHD can hold (2040 GiB)", size_bytes),
                     "Use vhdx.");
    const auto subformat = options.text("subformat");
    if (subformat != "dynamic" && subformat != "fixed")
        return wrong(fmt::format("subformat '{}' is unknown for vpc", subformat),
                     "Use dynamic or fixed.");
    plan.space =
        DOPPEL_TRY(parse_reservation(options.text("preallocation"), "vpc", subformat == "fixed"));
    plan.parent = options.text("backing_file");
    const auto format = options.text("backing_fmt");
    if (!plan.parent.empty() && !format.empty() && format != "vpc")
        return wrong(fmt::format("the backing file of a vpc image is a vpc image, not {}", format));
    if (!plan.parent.empty() && subformat == "fixed")
        return wrong("a fixed image would hide the backing file");
    plan.type = subformat == "fixed"   ? Type::Fixed
                : !plan.parent.empty() ? Type::Differencing
                                       : Type::Dynamic;
    auto& header = plan.header;
    header.block_bytes = DOPPEL_TRY(options.size("block_size"));
    if (!std::has_single_bit(header.block_bytes) || header.block_bytes < kMinBlockBytes ||
        header.block_bytes > kMaxBlockBytes)
        return wrong(fmt::format("block_size is {}, allowed are powers of two from 4k to 256M",
                                 header.block_bytes));
    header.blocks = static_cast<std::uint32_t>(base::align_up(plan.size_bytes, header.block_bytes) /
                                               header.block_bytes);
    return plan;
}

/// Copy of the footer, header, the parent's name, the table, the footer.
Task<void> write_dynamic(Node& file, Plan plan, const Footer& footer) {
    auto& header = plan.header;
    std::vector<std::byte> name;
    auto at = kFooterBytes + kHeaderBytes;
    if (!plan.parent.empty()) {
        std::ranges::replace(plan.parent, '/', '\\');
        name =
            utf16_of((plan.parent.starts_with('\\') ? "" : ".\\") + plan.parent, ByteOrder::Little);
        const auto space = base::align_up(name.size(), kSector);
        header.locators.push_back({kRelativeLocator, space, name.size(), at});
        DOPPEL_AWAIT_VOID(file.write(at, IoBuffer{name}, Durability::Cached));
        at += space;
    }
    header.table_offset = at;
    const std::vector<std::byte> table(
        base::align_up(std::max(header.blocks, 1u) * std::uint64_t{4}, kSector), std::byte{0xff});
    DOPPEL_AWAIT_VOID(file.write(at, IoBuffer::of(table), Durability::Cached));
    auto head = footer.bytes;
    const auto bytes = serialize_header(header);
    head.insert(head.end(), bytes.begin(), bytes.end());
    DOPPEL_AWAIT_VOID(file.write(0, IoBuffer{head}, Durability::Cached));
    DOPPEL_AWAIT_VOID(
        file.write(at + table.size(), IoBuffer::of(footer.bytes), Durability::Cached));
    co_return {};
}

Task<void> create(CreateRequest request) {
    const OptionReader options{kOptions, request.options};
    DOPPEL_CO_TRY_VOID(options.check_names("vpc"));
    DOPPEL_CO_TRY(plan, plan_of(options, request.size_bytes));
    auto& file = *request.file;
    if (!plan.parent.empty()) {
        DOPPEL_AWAIT(uuid, parent_uuid(*request.context, file.name(), plan.parent));
        plan.header.parent = uuid;
        plan.header.parent_name = plan.parent;
    }
    const auto footer = new_footer(plan.type, plan.size_bytes, plan.exact);
    if (plan.type != Type::Fixed) {
        DOPPEL_AWAIT_VOID(write_dynamic(file, std::move(plan), footer));
        co_return {};
    }
    DOPPEL_AWAIT_VOID(take_space(file, 0, plan.size_bytes, plan.space));
    DOPPEL_AWAIT_VOID(file.write(plan.size_bytes, IoBuffer::of(footer.bytes), Durability::Cached));
    co_return {};
}

/// As if the disk were written once: the footer twice, the header, the table; a bitmap in front of
/// each block.
Result<SpaceNeed> measure(const DiskUse& use, const OptionValues& values) {
    const auto plan = DOPPEL_TRY(plan_of(OptionReader{kOptions, values}, use.size_bytes));
    const auto& header = plan.header;
    if (plan.type == Type::Fixed)
        return SpaceNeed{plan.size_bytes + kFooterBytes, plan.size_bytes + kFooterBytes};
    const auto table = base::align_up(std::max(header.blocks, 1u) * std::uint64_t{4}, kSector);
    const auto fixed = 2 * kFooterBytes + kHeaderBytes + table;
    const auto block = header.bitmap_bytes() + header.block_bytes;
    return SpaceNeed{fixed + use.data_bytes / header.block_bytes * block,
                     fixed + header.blocks * block};
}

Result<std::uint64_t> measure_unit(std::uint64_t, const OptionValues& values) {
    return OptionReader{kOptions, values}.size("block_size");
}

constexpr Format kFormat{
    "vpc",       "VHD, of Virtual PC, Hyper-V and Azure: thin, fixed, differencing",
    probe,       open,
    create,      kOptions,
    measure,     {},
    measure_unit};

} // namespace

Task<Uuid> parent_uuid(IoContext& context, std::string image, std::string written) {
    if (written.find('\\') != std::string::npos)
        co_return wrong(fmt::format("'{}' cannot be the backing file: VHD separates folders by "
                                    "backslashes",
                                    written));
    DOPPEL_CO_TRY(file, FileNode::open(context, beside(image, written), {}));
    DOPPEL_AWAIT(found, find_footer(*file));
    co_return found.footer.uuid;
}

const Format& format() { return kFormat; }

} // namespace doppel::block::vpc
