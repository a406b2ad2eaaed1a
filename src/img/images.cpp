// SPDX-License-Identifier: Apache-2.0
#include "img/images.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <utility>

#include <fmt/core.h>

#include "block/filter/copy_on_read_node.hpp"
#include "block/filter/dirty_bitmap_node.hpp"
#include "block/filter/throttle_node.hpp"
#include "block/option_reader.hpp"
#include "img/signals.hpp"

namespace doppel::img {

OpenFlags open_flags(const Arguments& arguments, block::Access access) {
    OpenFlags flags;
    flags.format = arguments.get("f");
    flags.access = access;
    flags.shared = arguments.has("U");
    flags.disk = arguments.get("disk");
    flags.cache = arguments.get("t", arguments.get("T", "writeback"));
    return flags;
}

namespace {

Result<std::unique_ptr<block::ImageNode>> put_in_front(Session& session, const FilterName& filter,
                                                       std::unique_ptr<block::ImageNode> below) {
    constexpr std::array kThrottle{
        block::OptionSpec{"throttle-group", block::OptionKind::Text, "", ""}};
    constexpr std::array kBitmap{
        block::OptionSpec{"bitmap", block::OptionKind::Text, "changes", ""},
        block::OptionSpec{"granularity", block::OptionKind::Size, "64k", ""}};
    const std::span<const block::OptionSpec> specs =
        filter.driver == "throttle"       ? std::span<const block::OptionSpec>{kThrottle}
        : filter.driver == "dirty-bitmap" ? std::span<const block::OptionSpec>{kBitmap}
                                          : std::span<const block::OptionSpec>{};
    const block::OptionReader options{specs, filter.options};
    DOPPEL_TRY_VOID(options.check_names(filter.driver));
    if (filter.driver == "throttle") {
        auto* group = DOPPEL_TRY(session.objects.throttle_group(options.text("throttle-group")));
        return std::make_unique<block::filter::ThrottleNode>(session.context, std::move(below),
                                                             *group);
    }
    if (filter.driver == "dirty-bitmap")
        return block::filter::DirtyBitmapNode::create(std::move(below), options.text("bitmap"),
                                                      DOPPEL_TRY(options.size("granularity")));
    return block::filter::CopyOnReadNode::create(session.context, std::move(below));
}

} // namespace

Result<block::OpenedImage> open_named(Session& session, const std::string& text,
                                      const OpenFlags& flags) {
    const auto name =
        DOPPEL_TRY(parse_image_name(text, session.arguments.has("image-opts"), flags.format));
    return open_named(session, name, flags);
}

Result<block::OpenedImage> open_named(Session& session, const ImageName& name,
                                      const OpenFlags& flags) {
    block::ImageOptions options;
    options.driver = name.options;
    options.secrets = &session.objects;
    options.unlock = flags.unlock;
    options.part_suffix = flags.part_suffix;
    options.format = name.format;
    options.disk = flags.disk;
    if (const auto disk = options.driver.extract("disk"); !disk.empty())
        options.disk = disk.mapped();
    options.access = flags.access;
    options.cache = DOPPEL_TRY(block::parse_cache_mode(flags.cache));
    options.sharing = flags.shared ? block::Sharing::Forced : block::Sharing::Locked;
    options.backing = flags.backing;
    if (!flags.backing_cache.empty())
        options.backing_cache = DOPPEL_TRY(block::parse_cache_mode(flags.backing_cache));
    if (flags.backing_shared)
        options.backing_sharing = block::Sharing::Forced;
    options.repair_later = flags.repair_later;
    // A name that says raw and a content that says otherwise: a guest may have written it.
    options.trust_probe = !name.path.ends_with(".raw");
    auto image =
        DOPPEL_TRY(session.context.wait(block::open_image(session.context, name.path, options)));
    if (!options.disk.empty() && image.format->name != "ova")
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' is no package of disks: --disk {} says nothing",
                                      name.path, options.disk));
    for (auto filter = name.filters.rbegin(); filter != name.filters.rend(); ++filter)
        image.node = DOPPEL_TRY(put_in_front(session, *filter, std::move(image.node)));
    return image;
}

Closing::~Closing() {
    if (node_ != nullptr)
        (void)close();
}

Result<void> Closing::close() {
    return session_.context.wait(std::exchange(node_, nullptr)->close());
}

namespace {

class Opener final : public block::ImageOpener {
public:
    Opener(Session& session, NewFile& file, const block::FileHints& hints)
        : session_{session}, file_{file}, hints_{hints} {}
    block::Task<std::unique_ptr<block::Node>>
    open_backing(std::string written, std::string, std::string, block::ImageOptions) override {
        return block::ready<std::unique_ptr<block::Node>>(
            base::fail(Errc::Internal, "a new image opens no backing file: " + written));
    }
    Result<std::unique_ptr<block::Node>> open_part(const std::string& written,
                                                   const std::string& image,
                                                   const block::ImageOptions&) override {
        // The user has named this file himself, a moment ago.
        return block::FileNode::open(
            session_.context, file_.part_path(backing_path(written, image)),
            {block::Access::ReadWrite, block::CacheMode::Unsafe, block::Sharing::Locked});
    }
    Result<std::unique_ptr<block::Node>> create_part(const std::string& name) override {
        return file_.create_part(session_, name, hints_);
    }

private:
    Session& session_;
    NewFile& file_;
    block::FileHints hints_;
};

constexpr std::array kFileOptions{
    block::OptionSpec{"extent_size_hint", block::OptionKind::Size, "0",
                      "XFS: allocate the file in pieces of this size"},
    block::OptionSpec{"nocow", block::OptionKind::Switch, "off",
                      "btrfs: write the file in place, without copy-on-write"},
};

constexpr block::OptionSpec kSize{"size", block::OptionKind::Size, "", "size of the virtual disk"};

/// Of those options, which `options` loses.
Result<block::FileHints> take_hints(block::OptionValues& options, const NewFile& target) {
    const block::OptionReader reader{kFileOptions, options};
    const block::FileHints hints{DOPPEL_TRY(reader.flag("nocow")),
                                 DOPPEL_TRY(reader.size("extent_size_hint"))};
    if (hints.extent_bytes > std::numeric_limits<std::uint32_t>::max())
        return base::fail(Errc::OutOfRange,
                          fmt::format("option extent_size_hint is {}, at most 4G - 1 is allowed",
                                      hints.extent_bytes));
    for (const auto& option : kFileOptions)
        if (const auto found = options.find(std::string{option.name}); found != options.end()) {
            if (target.is_device())
                return base::fail(Errc::InvalidArgument,
                                  fmt::format("option {} is for new files, '{}' is none",
                                              option.name, target.final_name()));
            options.erase(found);
        }
    return hints;
}

} // namespace

std::span<const block::OptionSpec> file_options() { return kFileOptions; }

std::vector<block::OptionSpec> creation_options(const block::Format& format) {
    std::vector<block::OptionSpec> all{format.options.begin(), format.options.end()};
    all.insert(all.end(), kFileOptions.begin(), kFileOptions.end());
    if (std::ranges::find(all, kSize.name, &block::OptionSpec::name) == all.end())
        all.push_back(kSize);
    std::ranges::sort(all, {}, &block::OptionSpec::name);
    return all;
}

Result<void> check_options(const block::Format& format, const block::OptionValues& options) {
    const auto all = creation_options(format);
    return block::OptionReader(all, options).check_names(format.name);
}

Result<void> create_image(Session& session, const block::Format& format, NewFile& target,
                          std::uint64_t size_bytes, block::OptionValues options) {
    const auto& path = target.path();
    if (format.create == nullptr)
        return base::fail(Errc::Unsupported,
                          fmt::format("format {} can be read, not created", format.name));
    const auto hints = DOPPEL_TRY(take_hints(options, target));
    std::unique_ptr<block::Node> file;
    if (block::is_network_name(path)) // what is there is written over
        file = DOPPEL_TRY(session.context.wait(block::open_protocol(
            session.context, path, {block::Access::ReadWrite, {}, block::Sharing::Locked})));
    else
        file = DOPPEL_TRY(
            block::FileNode::create(session.context, path, block::CacheMode::Unsafe, hints));
    Opener opener{session, target, hints};
    return session.context.wait(
        format.create({&session.context, std::move(file), size_bytes, std::move(options), &opener,
                       target.final_name(), &session.objects}));
}

NewFile::NewFile(std::string temporary, std::string final_name)
    : temporary_{std::move(temporary)}, final_{std::move(final_name)} {}

NewFile::NewFile(NewFile&& other) noexcept
    : temporary_{std::exchange(other.temporary_, {})}, final_{std::exchange(other.final_, {})},
      parts_{std::exchange(other.parts_, {})} {}

NewFile::~NewFile() {
    if (!temporary_.empty() && !is_device()) {
        ::unlink(temporary_.c_str());
        for (const auto& part : parts_)
            ::unlink((part + part_suffix()).c_str());
    }
}

Result<NewFile> NewFile::prepare(Session& session, const std::string& path) {
    if (block::is_network_name(path))
        return NewFile{path, path};
    std::string real = path;
    if (char* resolved = ::realpath(path.c_str(), nullptr)) { // through links, to the file itself
        real = resolved;
        std::free(resolved);
    }
    struct stat info{};
    const bool exists = ::stat(real.c_str(), &info) == 0;
    if (exists) // refuses directories and images in use
        DOPPEL_TRY(block::FileNode::open(
            session.context, real,
            {block::Access::ReadWrite, block::CacheMode::WriteBack, block::Sharing::Locked}));
    if (exists && S_ISBLK(info.st_mode))
        return NewFile{real, real};
    const auto temporary = real + img::part_suffix();
    remove_on_signal(temporary);
    return NewFile{temporary, real};
}

Result<std::unique_ptr<block::Node>> NewFile::create_part(Session& session, const std::string& name,
                                                          const block::FileHints& hints) {
    if (is_device())
        return base::fail(Errc::Unsupported,
                          fmt::format("'{}' cannot hold an image of several files", final_));
    const auto path = backing_path(name, final_);
    if (::access(path.c_str(), F_OK) == 0) { // refuses one in use
        auto old = DOPPEL_TRY(block::FileNode::open(
            session.context, path,
            {block::Access::ReadWrite, block::CacheMode::WriteBack, block::Sharing::Locked}));
        if (old->fixed_size()) // a device has no other name
            return std::unique_ptr<block::Node>{std::move(old)};
    }
    remove_on_signal(path + part_suffix());
    parts_.push_back(path);
    return DOPPEL_TRY(block::FileNode::create(session.context, path + part_suffix(),
                                              block::CacheMode::Unsafe, hints));
}

std::string NewFile::part_path(const std::string& path) const {
    return std::ranges::count(parts_, path) > 0 ? path + img::part_suffix() : path;
}

Result<void> NewFile::publish() {
    if (*interrupted())
        return base::fail(Errc::Interrupted, "interrupted");
    if (!parts_.empty() && ::unlink(final_.c_str()) != 0 && errno != ENOENT)
        return base::fail_errno(errno, fmt::format("remove '{}'", final_));
    for (const auto& part : parts_)
        if (::rename((part + part_suffix()).c_str(), part.c_str()) != 0)
            return base::fail_errno(errno, fmt::format("rename a part to '{}'", part));
    if (!is_device() && ::rename(temporary_.c_str(), final_.c_str()) != 0)
        return base::fail_errno(errno, fmt::format("rename '{}' to '{}'", temporary_, final_));
    temporary_.clear();
    parts_.clear();
    return {};
}

Result<std::uint64_t> parse_rate(const Arguments& arguments) {
    if (!arguments.has("r"))
        return 0;
    const auto rate = DOPPEL_TRY(block::parse_size(arguments.get("r")));
    if (rate == 0)
        return base::fail(Errc::InvalidArgument, "-r is 0", "Leave it out for no limit.");
    return rate;
}

bool wants_list(const block::OptionValues& options) {
    return options.contains("help") || options.contains("?");
}

int list_options(std::span<const block::OptionSpec> options) {
    fmt::print("Supported options:\n");
    for (const auto& option : options)
        fmt::print("  {}={} - {}{}\n", option.name,
                   option.kind == block::OptionKind::Size     ? "<size>"
                   : option.kind == block::OptionKind::Switch ? "<on|off>"
                   : option.kind == block::OptionKind::Number ? "<num>"
                                                              : "<str>",
                   option.help,
                   option.standard.empty() ? "" : fmt::format(" [{}]", option.standard));
    return 0;
}

Result<void> view_snapshot(Session& session, block::ImageNode& node, const std::string& text) {
    auto wanted = text;
    if (text.starts_with("snapshot.")) {
        auto fields = DOPPEL_TRY(parse_options({text}));
        const auto id = fields.extract("snapshot.id");
        const auto name = fields.extract("snapshot.name");
        if (!fields.empty())
            return base::fail(Errc::InvalidArgument,
                              fmt::format("a snapshot has no '{}'", fields.begin()->first),
                              "Known are snapshot.id and snapshot.name.");
        const auto all = DOPPEL_TRY(session.context.wait(node.list_snapshots()));
        const auto found = std::ranges::find_if(all, [&](const block::SnapshotInfo& one) {
            return (id.empty() || one.id == id.mapped()) &&
                   (name.empty() || one.name == name.mapped());
        });
        if (found == all.end())
            return base::fail(Errc::NotFound,
                              fmt::format("'{}' has no snapshot '{}'", node.name(), text));
        const bool ambiguous = std::ranges::count(all, found->id, &block::SnapshotInfo::name) > 0;
        wanted = ambiguous ? found->name : found->id;
    }
    return session.context.wait(node.view_snapshot(wanted));
}

std::string human_size(std::uint64_t bytes) {
    constexpr std::array<const char*, 7> kUnits{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit)
        value /= 1024;
    return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.3g} {}", value, kUnits[unit]);
}

std::string backing_path(const std::string& written, const std::string& image) {
    const auto slash = image.rfind('/');
    if (written.starts_with('/') || slash == std::string::npos)
        return written;
    return image.substr(0, slash + 1) + written;
}

} // namespace doppel::img
