// SPDX-License-Identifier: Apache-2.0
#include <array>

#include <fmt/core.h>

#include "block/option_reader.hpp"
#include "img/images.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"shrink", "", "allow a smaller size; what lies behind the new end is lost"},
    Flag{"q", "", "say nothing"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

/// "20G", "+1G", "-512M".
Result<std::uint64_t> new_size(const std::string& text, std::uint64_t old) {
    const bool relative = text.starts_with('+') || text.starts_with('-');
    const auto size = DOPPEL_TRY(block::parse_size(text.substr(relative ? 1 : 0)));
    if (!relative)
        return size;
    if (text.starts_with('+'))
        return old + size;
    if (size > old)
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("the image has {} bytes, {} cannot be taken away", old, size));
    return old - size;
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(2, 2, "FILE [+|-]SIZE"));
    auto flags = open_flags(arguments, block::Access::ReadWrite);
    flags.unlock = false; // some formats need no more than their tables
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    auto& node = *image.node;
    const auto size = DOPPEL_TRY(new_size(arguments.positional()[1], node.size()));
    if (size < node.size() && !arguments.has("shrink"))
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("{} bytes are fewer than the image has ({})", size, node.size()),
            "Give --shrink if what lies behind the new end may be lost.");
    DOPPEL_TRY_VOID(session.context.wait(node.resize(size)));
    DOPPEL_TRY_VOID(close_image(session, node));
    if (!arguments.has("q"))
        fmt::print("Image resized.\n");
    return 0;
}

constexpr Command kCommand{
    "resize", "[-f FORMAT] [--shrink] FILE [+|-]SIZE", "make a disk larger or smaller", {}, kFlags,
    run};

} // namespace

const Command& resize_command() { return kCommand; }

} // namespace doppel::img
