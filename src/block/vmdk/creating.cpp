// SPDX-License-Identifier: Apache-2.0
/// VMDK as a row of the format table: probing, opening, creating.
#include <sys/random.h>

#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/clustered/parent.hpp"
#include "block/option_reader.hpp"
#include "block/vmdk/vmdk_node.hpp"

namespace doppel::block::vmdk {

namespace {

constexpr std::uint64_t kDescriptorRoom = 20 * kSector; // in an extent

constexpr std::array kOptions{
    OptionSpec{"adapter_type", OptionKind::Text, "ide",
               "of the virtual machine: ide, buslogic, lsilogic or legacyESX"},
    OptionSpec{"backing_file", OptionKind::Text, "", "a VMDK that shows where this one is empty"},
    OptionSpec{"backing_fmt", OptionKind::Text, "", "its format: vmdk"},
    OptionSpec{"compat6", OptionKind::Switch, "off", "the same as hwversion=6"},
    OptionSpec{"hwversion", OptionKind::Text, "4", "version of the virtual hardware"},
    OptionSpec{"preallocation", OptionKind::Text, "off",
               "of a flat image: off (a hole), falloc (space reserved) or full (zeroes written)"},
    OptionSpec{"size", OptionKind::Size, "", "size of the virtual disk"},
    OptionSpec{"subformat", OptionKind::Text, "monolithicSparse",
               "monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, or "
               "streamOptimized: compressed, as ESXi imports it"},
    OptionSpec{"toolsversion", OptionKind::Text, "2147483647", "version of VMware Tools"},
    OptionSpec{"zeroed_grain", OptionKind::Switch, "off",
               "tables can say that a grain is zero; VMware reads it from version 2 on"},
};

int probe(std::span<const std::byte> head, std::uint64_t) {
    return is_sparse(head) || is_descriptor(head) ? 100 : 0;
}

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, VmdkNode::open(std::move(request)));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

std::unexpected<Error> wrong(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

constexpr std::array<std::string_view, 5> kSubformats{"monolithicSparse", "monolithicFlat",
                                                      "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
                                                      "streamOptimized"};
constexpr std::uint64_t kSplitBytes = std::uint64_t{2} << 30;

struct Plan {
    std::string subformat;
    std::string adapter;
    std::string hardware;
    std::string tools;
    std::string parent;
    std::uint32_t parent_cid = kNoParent;
    std::uint64_t size_bytes = 0;
    bool zero_grains = false;
    Preallocation space = Preallocation::Off;

    bool flat() const { return subformat.ends_with("Flat"); }
    bool split() const { return subformat.starts_with("twoGb"); }
    bool stream() const { return subformat == "streamOptimized"; }
};

bool is_number(std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

Result<Plan> plan_of(const OptionReader& options, std::uint64_t size_bytes) {
    Plan plan;
    plan.size_bytes = base::align_up(size_bytes, kSector);
    plan.subformat = options.text("subformat");
    if (std::ranges::find(kSubformats, plan.subformat) == kSubformats.end())
        return wrong(fmt::format("subformat '{}' is unknown for vmdk", plan.subformat),
                     "Use monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, "
                     "twoGbMaxExtentFlat or streamOptimized.");
    plan.space = DOPPEL_TRY(parse_reservation(options.text("preallocation"), "vmdk", plan.flat()));
    plan.adapter = options.text("adapter_type");
    constexpr std::array<std::string_view, 4> kAdapters{"ide", "buslogic", "lsilogic", "legacyESX"};
    if (std::ranges::find(kAdapters, plan.adapter) == kAdapters.end())
        return wrong(fmt::format("adapter_type '{}' is unknown", plan.adapter),
                     "Use ide, buslogic, lsilogic or legacyESX.");
    const bool six = DOPPEL_TRY(options.flag("compat6"));
    if (six && options.given("hwversion"))
        return wrong("compat6 and hwversion exclude each other", "Use hwversion=6.");
    plan.hardware = six ? "6" : options.text("hwversion");
    plan.tools = options.text("toolsversion");
    if (!is_number(plan.hardware) || !is_number(plan.tools))
        return wrong(fmt::format("hwversion '{}' and toolsversion '{}' must be numbers",
                                 plan.hardware, plan.tools));
    plan.zero_grains = DOPPEL_TRY(options.flag("zeroed_grain"));
    plan.parent = options.text("backing_file");
    const auto format = options.text("backing_fmt");
    if (!plan.parent.empty() && !format.empty() && format != "vmdk")
        return wrong(
            fmt::format("the backing file of a vmdk image is a vmdk image, not {}", format));
    if (!plan.parent.empty() && (plan.flat() || plan.stream()))
        return wrong(fmt::format("a {} image has no backing file", plan.subformat),
                     "Use monolithicSparse or twoGbMaxExtentSparse.");
    if (plan.zero_grains && (plan.flat() || plan.stream()))
        return wrong(fmt::format("a {} image has no zeroed_grain", plan.subformat));
    if (plan.parent.find_first_of("\"\\\n") != std::string::npos)
        return wrong(fmt::format("'{}' cannot be the backing file: VMDK has no way to write it",
                                 plan.parent));
    return plan;
}

std::string descriptor_text(const Plan& plan, const std::vector<ExtentLine>& extents) {
    const auto geometry = geometry_of(plan.size_bytes, plan.adapter);
    auto text = fmt::format("# Disk DescriptorFile\nversion=1\nCID={}\nparentCID={}\n"
                            "createType=\"{}\"\n",
                            cid_text(random_cid()), cid_text(plan.parent_cid), plan.subformat);
    if (!plan.parent.empty())
        text += fmt::format("parentFileNameHint=\"{}\"\n", plan.parent);
    text += "\n# Extent description\n";
    for (const auto& extent : extents)
        text += extent_text(extent);
    return text + fmt::format("\n# The Disk Data Base\n#DDB\n\n"
                              "ddb.virtualHWVersion = \"{}\"\n"
                              "ddb.geometry.cylinders = \"{}\"\n"
                              "ddb.geometry.heads = \"{}\"\n"
                              "ddb.geometry.sectors = \"{}\"\n"
                              "ddb.adapterType = \"{}\"\n"
                              "ddb.toolsVersion = \"{}\"\n",
                              plan.hardware, geometry.cylinders, geometry.heads, geometry.sectors,
                              plan.adapter, plan.tools);
}

/// The part of a path behind its last slash.
std::string last_part(const std::string& path) { return path.substr(path.rfind('/') + 1); }

Result<Header> sparse_header(const Plan& plan, std::uint64_t size_bytes) {
    Header header;
    header.size_bytes = size_bytes;
    if (plan.zero_grains) {
        header.version = 2;
        header.flags |= kFlagZeroGrain;
    }
    if (!plan.split()) {
        header.descriptor_at = kSector;
        header.descriptor_bytes = kDescriptorRoom;
    }
    if (plan.stream()) { // directory and tables come behind the grains
        header.version = 3;
        header.flags = kFlagNewlineTest | kFlagCompressed | kFlagMarkers;
        header.directory_at = GD_AT_END;
        header.overhead_bytes = header.grain_bytes;
        return header;
    }
    lay_out(header, kSector + header.descriptor_bytes);
    if ((size_bytes + header.overhead_bytes) / kSector > kMaxSectorNumber)
        return wrong(
            fmt::format("{} bytes are more than one sparse extent can hold (2 TiB)", size_bytes));
    return header;
}

/// Entries of tables side by side behind it.
Task<void> write_directory(Node& file, std::uint64_t at, const Header& header) {
    std::vector<std::byte> bytes(header.directory_bytes());
    for (std::uint64_t i = 0; i < header.tables(); ++i)
        base::store_le(bytes.data() + i * 4,
                       static_cast<std::uint32_t>(
                           (at + header.directory_bytes() + i * header.table_bytes()) / kSector));
    DOPPEL_AWAIT_VOID(file.write(at, IoBuffer{bytes}, Durability::Cached));
    co_return {};
}

/// All but the text is written; the tables are holes.
Task<void> write_sparse(Node& file, const Header& header) {
    DOPPEL_AWAIT_VOID(file.resize(header.overhead_bytes));
    if (file.fixed_size())
        DOPPEL_AWAIT_VOID(
            file.write_zeroes(0, header.overhead_bytes, Unmap::Allow, Durability::Cached));
    if (header.redundant())
        DOPPEL_AWAIT_VOID(write_directory(file, header.redundant_at, header));
    if (header.directory_at != GD_AT_END)
        DOPPEL_AWAIT_VOID(write_directory(file, header.directory_at, header));
    const auto sector = serialize_header(header);
    DOPPEL_AWAIT_VOID(file.write(0, IoBuffer::of(sector), Durability::Cached));
    co_return {};
}

/// The descriptor in the only extent.
Task<void> create_embedded(Node& file, const Plan& plan, std::string name) {
    DOPPEL_CO_TRY(header, sparse_header(plan, plan.size_bytes));
    auto text = descriptor_text(plan, {{"RW", plan.size_bytes / kSector, "SPARSE", name, 0}});
    if (text.size() > kDescriptorRoom)
        co_return wrong(
            fmt::format("the names '{}' and '{}' are too long for VMDK", name, plan.parent));
    DOPPEL_AWAIT_VOID(write_sparse(file, header));
    DOPPEL_AWAIT_VOID(
        file.write(header.descriptor_at, IoBuffer{text.data(), text.size()}, Durability::Cached));
    if (!plan.stream())
        co_return {};
    StreamWriter writer{file, header};
    DOPPEL_AWAIT_VOID(writer.finish());
    co_return {};
}

/// "disk.vmdk" has the parts "disk-flat.vmdk", "disk-f001.vmdk", "disk-s001.vmdk" …
std::string part_name(const Plan& plan, const std::string& name, std::size_t number) {
    const auto dot = std::min(name.rfind('.'), name.size());
    const auto mark = !plan.split() ? std::string{"flat"}
                                    : fmt::format("{}{:03}", plan.flat() ? 'f' : 's', number);
    return fmt::format("{}-{}{}", name.substr(0, dot), mark, name.substr(dot));
}

Task<void> create_parts(Node& file, const Plan& plan, std::string name, ImageOpener& opener) {
    std::vector<ExtentLine> lines;
    for (std::uint64_t at = 0; at < plan.size_bytes || lines.empty();) {
        const auto size =
            plan.split() ? std::min(kSplitBytes, plan.size_bytes - at) : plan.size_bytes - at;
        if (lines.size() == kMaxExtents)
            co_return wrong(fmt::format("{} bytes are more than {} extents of 2 GiB hold",
                                        plan.size_bytes, kMaxExtents),
                            "Use monolithicFlat or monolithicSparse.");
        const auto part = part_name(plan, name, lines.size() + 1);
        DOPPEL_CO_TRY(extent, opener.create_part(part));
        if (plan.flat()) {
            DOPPEL_AWAIT_VOID(take_space(*extent, 0, size, plan.space));
            DOPPEL_AWAIT_VOID(extent->resize(size));
        } else {
            DOPPEL_CO_TRY(header, sparse_header(plan, size));
            DOPPEL_AWAIT_VOID(write_sparse(*extent, header));
        }
        lines.push_back({"RW", size / kSector, plan.flat() ? "FLAT" : "SPARSE", part, 0});
        at += size;
    }
    auto text = descriptor_text(plan, lines);
    if (text.size() > kMaxDescriptorBytes)
        co_return wrong(fmt::format("the names of {} extents are too long", lines.size()));
    DOPPEL_AWAIT_VOID(file.write(0, IoBuffer{text.data(), text.size()}, Durability::Cached));
    co_return {};
}

Task<void> create(CreateRequest request) {
    const OptionReader options{kOptions, request.options};
    DOPPEL_CO_TRY_VOID(options.check_names("vmdk"));
    DOPPEL_CO_TRY(plan, plan_of(options, request.size_bytes));
    auto& file = *request.file;
    if (!plan.parent.empty()) {
        DOPPEL_CO_TRY(parent,
                      FileNode::open(*request.context, beside(file.name(), plan.parent), {}));
        DOPPEL_AWAIT(descriptor, read_descriptor(*parent));
        plan.parent_cid = descriptor.cid;
    }
    const auto name =
        last_part(request.published_name.empty() ? file.name() : request.published_name);
    if (plan.flat() || plan.split())
        DOPPEL_AWAIT_VOID(create_parts(file, plan, name, *request.opener));
    else
        DOPPEL_AWAIT_VOID(create_embedded(file, plan, name));
    co_return {};
}

/// As if the disk were written once; a stream as if nothing could be compressed.
Result<SpaceNeed> measure(const DiskUse& use, const OptionValues& values) {
    const auto plan = DOPPEL_TRY(plan_of(OptionReader{kOptions, values}, use.size_bytes));
    if (plan.flat())
        return SpaceNeed{plan.size_bytes, plan.size_bytes};
    std::uint64_t metadata = 0, full = 0;
    for (std::uint64_t at = 0; at < plan.size_bytes || at == 0;) {
        const auto size =
            plan.split() ? std::min(kSplitBytes, plan.size_bytes - at) : plan.size_bytes;
        const auto header = DOPPEL_TRY(sparse_header(plan, size));
        metadata += header.overhead_bytes;
        full += base::align_up(size, header.grain_bytes);
        if (plan.stream()) // a sector more for each grain; tables, directory, markers, footer
            full += header.grains() * kSector;
        at += std::max<std::uint64_t>(size, 1);
    }
    const Header usual;
    auto data = use.data_bytes;
    if (plan.stream()) {
        const auto header = DOPPEL_TRY(sparse_header(plan, plan.size_bytes));
        data += data / usual.grain_bytes * kSector;
        metadata += header.directory_bytes() + header.tables() * (header.table_bytes() + kSector) +
                    4 * kSector;
    }
    return SpaceNeed{metadata + data, metadata + full};
}

Result<std::uint64_t> measure_unit(std::uint64_t, const OptionValues&) {
    return Header{}.grain_bytes;
}

constexpr Format kFormat{"vmdk",      "VMware's image: thin, flat, in parts or as a stream",
                         probe,       open,
                         create,      kOptions,
                         measure,     {},
                         measure_unit};

} // namespace

std::uint32_t random_cid() {
    std::uint32_t cid = 0;
    if (::getrandom(&cid, sizeof cid, 0) != sizeof cid || cid >= kNoParent - 1)
        cid = 1; // ffffffff is no parent, fffffffe is reserved
    return cid;
}

DiskGeometry geometry_of(std::uint64_t size_bytes, std::string_view adapter) {
    DiskGeometry geometry;
    geometry.heads = adapter == "ide" ? 16 : 255;
    geometry.cylinders = size_bytes / kSector / geometry.heads / geometry.sectors;
    if (adapter == "ide")
        geometry.cylinders = std::min<std::uint64_t>(geometry.cylinders, 16383);
    return geometry;
}

const Format& format() { return kFormat; }

} // namespace doppel::block::vmdk
