// SPDX-License-Identifier: Apache-2.0
#include "block/image/open_image.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <memory>
#include <string_view>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"
#include "block/nbd/client_node.hpp"
#include "block/option_reader.hpp"
#include "block/raw/raw_node.hpp"

namespace doppel::block {

namespace {

/// A name out of an image, seen from the image's folder.
std::string resolve(const std::string& written, const std::string& image) {
    if (written.starts_with('/'))
        return written;
    const auto slash = image.rfind('/');
    return slash == std::string::npos ? written : image.substr(0, slash + 1) + written;
}

/// "json:…" and "nbd://…" in an image would be orders to us, not names of files.
bool is_plain_name(std::string_view written) {
    const auto colon = written.find(':');
    const auto slash = written.find('/');
    return colon == std::string_view::npos || (slash != std::string_view::npos && slash < colon);
}

/// Whether a path, all links followed, lies in the image's folder or below.
bool stays_inside(const std::string& path, const std::string& image) {
    const auto slash = image.rfind('/');
    const auto folder = slash == std::string::npos ? "." : image.substr(0, slash + 1);
    const std::unique_ptr<char, decltype(&std::free)> base{::realpath(folder.c_str(), nullptr),
                                                           &std::free};
    const std::unique_ptr<char, decltype(&std::free)> real{::realpath(path.c_str(), nullptr),
                                                           &std::free};
    if (!real)
        return true; // missing: opening it will say so
    return base && std::string_view{real.get()}.starts_with(std::string{base.get()} + "/");
}

constexpr std::string_view kBehind = "backing file of ";

/// Says whose backing file it is: of the image right above only, not of all of a long chain.
base::Error in_chain(base::Error error, const std::string& image) {
    if (error.message().starts_with(kBehind))
        return error;
    return std::move(error).with_context(fmt::format("{}'{}'", kBehind, image));
}

class Opener final : public ImageOpener {
public:
    explicit Opener(IoContext& context) : context_{context} {}

    Task<std::unique_ptr<Node>> open_backing(std::string written, std::string format,
                                             std::string image, ImageOptions like) override {
        if (!is_plain_name(written))
            co_return base::fail(Errc::Unsupported,
                                 fmt::format("'{}' names its backing file '{}', which is not a "
                                             "path",
                                             image, written),
                                 "Only files are followed from inside an image.");
        if (like.depth + 1 >= kMaxChainDepth)
            co_return base::fail(Errc::Unsupported,
                                 fmt::format("the chain of backing files is longer than {}, or a "
                                             "loop: see '{}'",
                                             kMaxChainDepth, image));
        ImageOptions options = like;
        options.access = Access::ReadOnly;
        options.cache = like.backing_cache.value_or(like.cache);
        options.sharing = like.backing_sharing.value_or(like.sharing);
        options.format = std::move(format);
        options.trust_probe = false;
        options.repair_later = false;
        ++options.depth;
        options.driver = options_behind(like.driver, "backing.");
        if (const auto driver = options.driver.extract("driver"); !driver.empty())
            options.format = driver.mapped();
        auto task = open_image(context_, resolve(written, image), options);
        auto opened = co_await task;
        if (!opened)
            co_return std::unexpected(in_chain(std::move(opened).error(), image));
        co_return std::unique_ptr<Node>{std::move(opened->node)};
    }

    Result<std::unique_ptr<Node>> open_part(const std::string& written, const std::string& image,
                                            const ImageOptions& like) override {
        if (written.size() >= PATH_MAX)
            return base::fail(Errc::Corrupt,
                              fmt::format("'{}' names a part by {} bytes, a path has fewer than {}",
                                          image, written.size(), PATH_MAX));
        if (!is_plain_name(written) || !stays_inside(resolve(written, image), image))
            return base::fail(
                Errc::PermissionDenied,
                fmt::format("'{}' names its part '{}', which is not in its folder", image, written),
                "Only names inside the image's folder are followed.");
        return FileNode::open(context_, resolve(written, image),
                              {like.access, like.cache, like.sharing});
    }

private:
    IoContext& context_;
};

Task<const Format*> settle_format(Node& file, ImageOptions options) {
    if (!options.format.empty())
        co_return find_format(options.format);
    AlignedMemory head{std::min<std::uint64_t>(kProbeBytes, file.size())};
    DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{head.span()}));
    co_return &probe_format(head.span(), file.size());
}

/// What is for the backing file is checked there.
Result<void> check_open_options(const Format& format, const ImageOptions& options) {
    auto own = options.driver;
    std::erase_if(own, [](const auto& one) { return one.first.starts_with("backing."); });
    return OptionReader{format.open_options, own}.check_names(format.name);
}

bool looks_like_format(std::span<const std::byte> sector) {
    return probe_format(sector, 1u << 30).name != "raw";
}

} // namespace

OptionValues options_behind(const OptionValues& values, std::string_view prefix) {
    OptionValues behind;
    for (const auto& [name, value] : values)
        if (name.starts_with(prefix))
            behind.emplace(name.substr(prefix.size()), value);
    return behind;
}

bool is_network_name(const std::string& name) { return nbd::is_url(name); }

Task<std::unique_ptr<Node>> open_protocol(IoContext& context, std::string name,
                                          FileOptions options) {
    if (is_network_name(name)) {
        DOPPEL_AWAIT(client, nbd::ClientNode::open(context, std::move(name), options.access));
        co_return std::unique_ptr<Node>{std::move(client)};
    }
    DOPPEL_CO_TRY(file, FileNode::open(context, name, options));
    co_return std::unique_ptr<Node>{std::move(file)};
}

Task<OpenedImage> open_image(IoContext& context, std::string path, ImageOptions options) {
    DOPPEL_AWAIT(file,
                 open_protocol(context, path, {options.access, options.cache, options.sharing}));
    DOPPEL_AWAIT(format, settle_format(*file, options));
    DOPPEL_CO_TRY_VOID(check_open_options(*format, options));
    OpenedImage image;
    image.format = format;
    image.probed = options.format.empty();
    if (image.probed && format->name == "raw") {
        image.node = std::make_unique<raw::RawNode>(std::move(file), looks_like_format);
        co_return image;
    }
    Opener opener{context};
    OpenRequest request{&context, std::move(file), options, &opener};
    DOPPEL_AWAIT(node, format->open(std::move(request)));
    const bool refers = node->names_files();
    if (image.probed && !options.trust_probe && refers)
        co_return base::fail(
            Errc::PermissionDenied,
            fmt::format("'{}' was taken for {} and names files of its own", path, format->name),
            "Its format must be named where it is referred to: a guest could have written that "
            "header.");
    image.node = std::move(node);
    co_return image;
}

Result<std::unique_ptr<ImageNode>> open_for_guest(IoContext& context, const std::string& path,
                                                  const ImageOptions& options) {
    auto careful = options;
    careful.trust_probe = false;
    auto image = DOPPEL_TRY(context.wait(open_image(context, path, careful)));
    if (image.probed && image.format->name != "raw" && options.access == Access::ReadWrite)
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("'{}' looks like {}, but its format was not named", path,
                        image.format->name),
            fmt::format("Say format {}, or raw if a guest wrote it.", image.format->name));
    return std::move(image.node);
}

Result<std::unique_ptr<Drive>> open_drive(IoContext& context, const std::string& path,
                                          const ImageOptions& options) {
    return std::make_unique<Drive>(DOPPEL_TRY(open_for_guest(context, path, options)));
}

} // namespace doppel::block
