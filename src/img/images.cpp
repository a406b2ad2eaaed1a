// SPDX-License-Identifier: Apache-2.0
#include "img/images.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>

#include <fmt/core.h>

namespace doppel::img {

namespace {

std::unexpected<Error> bad(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

bool stop_requested = false;    // read by the loop's thread between chunks
char unfinished[PATH_MAX] = ""; // removed by the signal handler of a second signal

void on_signal(int) {
    if (stop_requested) {
        if (unfinished[0] != '\0')
            ::unlink(unfinished);
        ::_exit(130);
    }
    stop_requested = true;
}

} // namespace

const bool* interrupted() {
    struct sigaction action{};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    for (const int signal : {SIGINT, SIGTERM, SIGHUP})
        ::sigaction(signal, &action, nullptr);
    return &stop_requested;
}

Result<ImageName> parse_image_name(const std::string& text, bool as_options,
                                   const std::string& format) {
    if (!as_options)
        return ImageName{text, format, {}};
    const auto values = DOPPEL_TRY(parse_options({text}));
    ImageName name{{}, format, {}};
    for (const auto& [key, value] : values) {
        if (key == "driver")
            name.format = value;
        else if (key == "file.filename" || key == "filename")
            name.path = value;
        else if (key == "disk")
            name.disk = value;
        else if (key != "file.driver" || (value != "file" && value != "host_device"))
            return bad(
                fmt::format("--image-opts: '{}={}' is unknown", key, value),
                "Known are driver, file.driver (file, host_device), file.filename and disk.");
    }
    if (name.path.empty())
        return bad(fmt::format("--image-opts: '{}' names no file", text), "Give file.filename.");
    if (name.format == "file" || name.format == "host_device")
        name.format = "raw";
    return name;
}

OpenFlags open_flags(const Arguments& arguments, block::Access access) {
    OpenFlags flags;
    flags.format = arguments.get("f");
    flags.access = access;
    flags.shared = arguments.has("U");
    flags.disk = arguments.get("disk");
    flags.cache = arguments.get("t", arguments.get("T", "writeback"));
    return flags;
}

Result<block::OpenedImage> open_named(Session& session, const std::string& text,
                                      const OpenFlags& flags) {
    const auto name =
        DOPPEL_TRY(parse_image_name(text, session.arguments.has("image-opts"), flags.format));
    block::ImageOptions options;
    options.format = name.format;
    options.disk = name.disk.empty() ? flags.disk : name.disk;
    options.access = flags.access;
    options.cache = DOPPEL_TRY(block::parse_cache_mode(flags.cache));
    options.sharing = flags.shared ? block::Sharing::Forced : block::Sharing::Locked;
    options.backing = flags.backing;
    options.repair_later = flags.repair_later;
    // A name that says raw and a content that says otherwise: a guest may have written it.
    options.trust_probe = !name.path.ends_with(".raw");
    auto image =
        DOPPEL_TRY(session.context.wait(block::open_image(session.context, name.path, options)));
    if (!options.disk.empty() && image.format->name != "ova")
        return bad(fmt::format("'{}' is no package of disks: --disk {} says nothing", name.path,
                               options.disk));
    return image;
}

Result<void> close_image(Session& session, block::Node& node) {
    return session.context.wait(node.close());
}

Result<block::OptionValues> parse_options(const std::vector<std::string>& texts) {
    block::OptionValues values;
    for (const auto& text : texts) {
        std::string item;
        for (std::size_t i = 0; i <= text.size(); ++i) {
            if (i < text.size() &&
                (text[i] != ',' || (i + 1 < text.size() && text[i + 1] == ','))) {
                item += text[i];
                i += text[i] == ',';
                continue;
            }
            if (item.empty())
                continue;
            const auto equals = item.find('=');
            values[item.substr(0, equals)] =
                equals == std::string::npos ? "on" : item.substr(equals + 1);
            item.clear();
        }
    }
    return values;
}

namespace {

class Opener final : public block::ImageOpener {
public:
    Opener(Session& session, NewFile& file) : session_{session}, file_{file} {}
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
            session_.context, backing_path(written, image),
            {block::Access::ReadWrite, block::CacheMode::Unsafe, block::Sharing::Locked});
    }
    Result<std::unique_ptr<block::Node>> create_part(const std::string& name) override {
        return file_.create_part(session_, name);
    }

private:
    Session& session_;
    NewFile& file_;
};

} // namespace

Result<void> create_image(Session& session, const block::Format& format, NewFile& target,
                          std::uint64_t size_bytes, const block::OptionValues& options) {
    const auto& path = target.path();
    if (format.create == nullptr)
        return base::fail(Errc::Unsupported,
                          fmt::format("format {} can be read, not created", format.name));
    std::unique_ptr<block::Node> file;
    if (block::is_network_name(path)) // what is there is written over
        file = DOPPEL_TRY(session.context.wait(block::open_protocol(
            session.context, path, {block::Access::ReadWrite, {}, block::Sharing::Locked})));
    else
        file = DOPPEL_TRY(block::FileNode::create(session.context, path, block::CacheMode::Unsafe));
    Opener opener{session, target};
    return session.context.wait(format.create(
        {&session.context, std::move(file), size_bytes, options, &opener, target.final_name()}));
}

NewFile::NewFile(std::string temporary, std::string final_name)
    : temporary_{std::move(temporary)}, final_{std::move(final_name)} {
    if (!is_device())
        unfinished[temporary_.copy(unfinished, sizeof unfinished - 1)] = '\0';
}

NewFile::NewFile(NewFile&& other) noexcept
    : temporary_{std::exchange(other.temporary_, {})}, final_{std::exchange(other.final_, {})},
      parts_{std::exchange(other.parts_, {})} {}

NewFile::~NewFile() {
    if (!temporary_.empty() && !is_device()) {
        ::unlink(temporary_.c_str());
        for (const auto& part : parts_)
            ::unlink((part + part_suffix()).c_str());
    }
    unfinished[0] = '\0';
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
    const auto temporary = fmt::format("{}.part-{}", real, ::getpid());
    DOPPEL_TRY(block::FileNode::create(session.context, temporary, block::CacheMode::Unsafe));
    return NewFile{temporary, real};
}

Result<std::unique_ptr<block::Node>> NewFile::create_part(Session& session,
                                                          const std::string& name) {
    if (is_device())
        return base::fail(Errc::Unsupported,
                          fmt::format("'{}' cannot hold an image of several files", final_));
    const auto path = backing_path(name, final_);
    if (::access(path.c_str(), F_OK) == 0) // refuses one in use
        DOPPEL_TRY(block::FileNode::open(
            session.context, path,
            {block::Access::ReadWrite, block::CacheMode::WriteBack, block::Sharing::Locked}));
    parts_.push_back(path);
    return DOPPEL_TRY(
        block::FileNode::create(session.context, path + part_suffix(), block::CacheMode::Unsafe));
}

Result<void> NewFile::publish() {
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
