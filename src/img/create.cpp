// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdio>

#include <fmt/core.h>

#include "block/option_reader.hpp"
#include "img/images.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the new image [raw]"},
    Flag{"b", "FILE", "backing file: shows where the new image is empty", "backing"},
    Flag{"F", "FORMAT", "format of the backing file", "backing-format"},
    Flag{"o", "NAME=VALUE,…", "the format's options, see below; '-o help' lists them"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"q", "", "say nothing"},
    Flag{"u", "", "do not look at the backing file; a size must be given"},
};

/// The size of the backing file, which must be what it is said to be.
Result<std::uint64_t> backing_size(Session& session, const std::string& written,
                                   const std::string& format, const std::string& image) {
    block::ImageOptions options;
    options.format = format;
    options.unlock = false; // its size is wanted
    auto opened = session.context.wait(
        block::open_image(session.context, backing_path(written, image), options));
    if (!opened)
        return std::unexpected(std::move(opened).error().with_context("backing file"));
    return opened->node->size();
}

Result<std::uint64_t> wanted_size(Session& session, const block::OptionValues& options,
                                  const std::string& path) {
    const auto& arguments = session.arguments;
    const auto backing = options.find("backing_file");
    if (arguments.positional().size() > 1 && options.contains("size"))
        return base::fail(Errc::InvalidArgument, "the image's size is given twice");
    std::uint64_t size = 0;
    const bool look = backing != options.end() && !arguments.has("u");
    if (look) {
        const auto format = options.find("backing_fmt");
        if (format == options.end())
            return base::fail(Errc::InvalidArgument, "the backing file's format is not named",
                              "Add -F FORMAT.");
        size = DOPPEL_TRY(backing_size(session, backing->second, format->second, path));
    }
    if (arguments.positional().size() > 1)
        return block::parse_size(arguments.positional()[1]);
    if (const auto given = options.find("size"); given != options.end())
        return block::parse_size(given->second);
    if (!look)
        return base::fail(Errc::InvalidArgument, "the image's size is missing",
                          "Give it behind the name: create disk.qcow2 20G.");
    return size;
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    const auto* format = DOPPEL_TRY(block::find_format(arguments.get("f", "raw")));
    auto options = DOPPEL_TRY(parse_options(arguments.all("o")));
    if (wants_list(options))
        return list_options(creation_options(*format));
    DOPPEL_TRY_VOID(arguments.expect(1, 2, "FILE [SIZE]"));
    if (arguments.has("b"))
        options["backing_file"] = arguments.get("b");
    if (arguments.has("F"))
        options["backing_fmt"] = arguments.get("F");
    DOPPEL_TRY_VOID(check_options(*format, options));
    const auto& path = arguments.positional()[0];
    const auto size = DOPPEL_TRY(wanted_size(session, options, path));
    options.erase("size");
    auto file = DOPPEL_TRY(NewFile::prepare(session, path));
    DOPPEL_TRY_VOID(create_image(session, *format, file, size, options));
    DOPPEL_TRY_VOID(file.publish());
    if (!arguments.has("q")) {
        fmt::print("Formatting '{}', fmt={} size={}", path, format->name, size);
        for (const auto& [name, value] : options)
            fmt::print(" {}={}", name, value);
        fmt::print("\n");
    }
    return 0;
}

constexpr Command kCommand{"create",
                           "[-f FORMAT] [-b FILE -F FORMAT] [-o …] FILE [SIZE]",
                           "make an empty image",
                           {},
                           kFlags,
                           run};

} // namespace

const Command& create_command() { return kCommand; }

} // namespace doppel::img
