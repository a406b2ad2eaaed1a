// SPDX-License-Identifier: Apache-2.0
#include "block/ova/ova_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "block/ova/digest.hpp"
#include "block/ova/manifest.hpp"
#include "block/ova/tar.hpp"

namespace doppel::block::ova {

namespace {

constexpr std::uint64_t kMaxManifestBytes = 1u << 20;

std::string_view text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Task<std::string> read_text(Node& file, std::uint64_t most) {
    if (file.size() > most)
        co_return base::fail(Errc::Corrupt, fmt::format("'{}' has {} bytes, allowed are {}",
                                                        file.name(), file.size(), most));
    std::string text(file.size(), '\0');
    const IoBuffer into{text.data(), text.size()};
    DOPPEL_AWAIT_VOID(file.read(0, into));
    co_return text;
}

/// "vmdk (stream-optimized)" out of a URI.
std::string short_format(const std::string& uri) {
    if (uri.find("streamOptimized") != std::string::npos)
        return "vmdk, streamOptimized";
    for (const std::string_view known : {"vmdk", "vhdx", "vhd", "qcow2", "vdi"})
        if (uri.find(known) != std::string::npos)
            return std::string{known};
    return uri;
}

} // namespace

bool is_package(std::span<const std::byte> head) {
    return first_name(head).ends_with(".ovf") || is_ovf(text_of(head));
}

OvaNode::OvaNode(OpenRequest& request, OpenInside inside)
    : context_{*request.context}, options_{request.options}, inside_{inside},
      package_{std::move(request.file)} {}

std::unexpected<Error> OvaNode::wrong(Errc code, std::string text, std::string hint) const {
    return base::fail(code, fmt::format("'{}' {}", name(), text), std::move(hint));
}

Task<void> OvaNode::refuse() const {
    return ready<void>(wrong(Errc::Unsupported, "can be read, not written", "Convert it."));
}

Node* OvaNode::item(std::string_view name) const {
    const auto found = std::ranges::find(items_, name, &Item::name);
    return found == items_.end() ? nullptr : found->file.get();
}

Task<std::unique_ptr<OvaNode>> OvaNode::open(OpenRequest request, OpenInside inside) {
    auto& opener = *request.opener;
    std::unique_ptr<OvaNode> node{new OvaNode{request, inside}};
    if (node->options_.access == Access::ReadWrite)
        co_return node->wrong(Errc::Unsupported, "can be read, not written", "Convert it.");
    DOPPEL_AWAIT_VOID(node->find_items());
    DOPPEL_AWAIT_VOID(node->read_descriptor());
    if (!node->archive_)
        DOPPEL_AWAIT_VOID(node->open_items(opener));
    const auto base = node->descriptor_.substr(0, node->descriptor_.rfind('.'));
    if (auto* manifest = node->item(base + ".mf")) {
        DOPPEL_AWAIT(text, read_text(*manifest, kMaxManifestBytes));
        node->manifest_ = std::move(text);
        node->has_manifest_ = true;
    }
    DOPPEL_AWAIT_VOID(node->choose());
    co_return node;
}

/// The files of an archive; of a descriptor itself alone.
Task<void> OvaNode::find_items() {
    std::vector<std::byte> head(std::min<std::uint64_t>(kTarBlock, package_->size()));
    DOPPEL_AWAIT_VOID(package_->read(0, IoBuffer{head}));
    archive_ = is_tar(head);
    if (!archive_) {
        descriptor_ = name().substr(name().rfind('/') + 1);
        items_.push_back({descriptor_, std::make_unique<MemberNode>(
                                           *package_, Member{descriptor_, 0, package_->size()})});
        co_return {};
    }
    DOPPEL_AWAIT(members, list_members(*package_));
    for (const auto& member : members) {
        if (descriptor_.empty() && member.name.ends_with(".ovf"))
            descriptor_ = member.name;
        items_.push_back({member.name, std::make_unique<MemberNode>(*package_, member)});
    }
    if (descriptor_.empty())
        co_return wrong(Errc::Corrupt, "holds no OVF descriptor");
    co_return {};
}

Task<void> OvaNode::read_descriptor() {
    DOPPEL_AWAIT(text, read_text(*item(descriptor_), kMaxOvfBytes));
    auto disks = parse_ovf(text);
    if (!disks)
        co_return std::unexpected(
            std::move(disks).error().with_context(fmt::format("'{}'", name())));
    for (auto& disk : *disks)
        if (!disk.file.empty())
            disks_.push_back(std::move(disk));
    co_return {};
}

/// What stands beside a descriptor.
Task<void> OvaNode::open_items(ImageOpener& opener) {
    for (const auto& disk : disks_) {
        if (item(disk.file) != nullptr)
            continue;
        DOPPEL_CO_TRY(file, opener.open_part(disk.file, name(), options_));
        items_.push_back({disk.file, std::move(file)});
    }
    const auto manifest = descriptor_.substr(0, descriptor_.rfind('.')) + ".mf";
    auto file = opener.open_part(manifest, name(), options_);
    if (file)
        items_.push_back({manifest, std::move(*file)});
    else if (file.error().code != Errc::NotFound)
        co_return std::unexpected(std::move(file).error());
    co_return {};
}

std::string OvaNode::disk_names() const {
    std::string names;
    for (const auto& disk : disks_)
        names += (names.empty() ? "" : ", ") + disk.file;
    return names;
}

Task<void> OvaNode::choose() {
    const Disk* chosen = disks_.size() == 1 ? &disks_.front() : nullptr;
    if (!options_.disk.empty()) {
        const auto found = std::ranges::find_if(disks_, [&](const Disk& disk) {
            return disk.file == options_.disk || disk.id == options_.disk;
        });
        if (found == disks_.end())
            co_return wrong(Errc::InvalidArgument, fmt::format("holds no disk '{}'", options_.disk),
                            fmt::format("It holds {}.", disk_names()));
        chosen = &*found;
    }
    if (chosen == nullptr && !options_.backing)
        co_return {};
    if (chosen == nullptr && disks_.empty())
        co_return wrong(Errc::InvalidArgument, "holds no disk with content");
    if (chosen == nullptr)
        co_return wrong(Errc::InvalidArgument,
                        fmt::format("holds {} disks: {}", disks_.size(), disk_names()),
                        "Name one with --disk.");
    DOPPEL_AWAIT(disk, open_disk(chosen->file));
    disk_ = std::move(disk);
    co_return {};
}

Task<std::unique_ptr<ImageNode>> OvaNode::open_disk(std::string file) {
    const auto disk = std::ranges::find(disks_, file, &Disk::file);
    if (!disk->compression.empty() && disk->compression != "identity")
        co_return wrong(Errc::Unsupported,
                        fmt::format("holds '{}' compressed by {}, which is not read in place", file,
                                    disk->compression),
                        "Unpack it first.");
    if (!disk->parent.empty())
        co_return wrong(Errc::Unsupported,
                        fmt::format("holds '{}' as changes to the disk '{}'", file, disk->parent));
    auto* content = item(file);
    if (content == nullptr)
        co_return wrong(Errc::Corrupt, fmt::format("lacks the file '{}'", file));
    auto like = options_;
    like.format.clear();
    DOPPEL_AWAIT(inner,
                 inside_(context_,
                         std::make_unique<MemberNode>(*content, Member{file, 0, content->size()}),
                         like));
    co_return inner;
}

std::uint64_t OvaNode::size() const {
    if (disk_)
        return disk_->size();
    std::uint64_t sum = 0;
    for (const auto& disk : disks_)
        sum += disk.size_bytes;
    return sum;
}

Task<void> OvaNode::read(std::uint64_t offset, IoBuffer into) {
    if (!disk_)
        return ready<void>(wrong(Errc::InvalidArgument, "holds several disks"));
    return disk_->read(offset, into);
}

Task<Extent> OvaNode::status(std::uint64_t offset, std::uint64_t length) {
    if (!disk_)
        return ready<Extent>(wrong(Errc::InvalidArgument, "holds several disks"));
    return disk_->status(offset, length);
}

ImageInfo OvaNode::info() const {
    ImageInfo info;
    if (disk_)
        info.cluster_bytes = disk_->info().cluster_bytes;
    std::vector<ExtentInfo> disks;
    for (const auto& disk : disks_)
        disks.push_back({disk.size_bytes, disk.file, 0, short_format(disk.format),
                         disk.format.find("streamOptimized") != std::string::npos});
    info.facts.emplace_back("descriptor", descriptor_);
    info.facts.emplace_back("manifest", has_manifest_);
    info.facts.emplace_back("disks", std::move(disks));
    return info;
}

Task<void> OvaNode::check_digest(std::string file, std::string algorithm, std::string digest,
                                 CheckResult& result) {
    auto* content = item(file);
    if (content == nullptr) {
        if (archive_) // beside a descriptor only its disks are looked at
            result.found_corruption(fmt::format("the manifest names '{}', which is missing", file));
        co_return {};
    }
    DOPPEL_AWAIT(found, digest_of(*content, algorithm));
    if (found != digest)
        result.found_corruption(fmt::format("'{}' was changed: its {} is {}, the manifest says {}",
                                            file, algorithm, found, digest));
    co_return {};
}

Task<void> OvaNode::check_manifest(CheckResult& result) {
    if (!has_manifest_)
        co_return {};
    DOPPEL_CO_TRY(lines, parse_manifest(manifest_));
    for (const auto& line : lines)
        DOPPEL_AWAIT_VOID(check_digest(line.file, line.algorithm, line.digest, result));
    co_return {};
}

Task<CheckResult> OvaNode::check(Repair) {
    CheckResult result;
    DOPPEL_AWAIT_VOID(check_manifest(result));
    for (const auto& disk : disks_) {
        DOPPEL_AWAIT(inner, open_disk(disk.file));
        auto task = inner->check(Repair::None);
        auto checked = co_await task;
        if (!checked && checked.error().code == Errc::Unsupported)
            continue; // its format has no check
        if (!checked)
            co_return std::unexpected(std::move(checked).error());
        result.corruptions += checked->corruptions;
        result.leaks += checked->leaks;
        result.total_clusters += checked->total_clusters;
        result.allocated_clusters += checked->allocated_clusters;
        result.compressed_clusters += checked->compressed_clusters;
        for (const auto& finding : checked->findings)
            result.findings.push_back(fmt::format("{}: {}", disk.file, finding));
    }
    co_return result;
}

} // namespace doppel::block::ova
