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
    Flag{"preallocation", "off|metadata|falloc|full",
         "what the new part takes at once: nothing, tables, reserved space, zeroes [off]"},
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

block::Preallocation preallocation_of(const Arguments& arguments) {
    const auto name = arguments.get("preallocation", "off");
    return name == "metadata" ? block::Preallocation::Metadata
           : name == "falloc" ? block::Preallocation::Falloc
           : name == "full"   ? block::Preallocation::Full
                              : block::Preallocation::Off;
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(2, 2, "FILE [+|-]SIZE"));
    auto flags = open_flags(arguments, block::Access::ReadWrite);
    flags.unlock = false; // some formats need no more than their tables
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    auto& node = *image.node;
    Closing closing{session, node};
    const auto size = DOPPEL_TRY(new_size(arguments.positional()[1], node.size()));
    if (size == 0 && node.size() > 0)
        return base::fail(Errc::InvalidArgument, "the new size is 0 bytes, wanted at least 1");
    if (size < node.size() && !arguments.has("shrink"))
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("{} bytes are fewer than the image has ({})", size, node.size()),
            "Give --shrink if what lies behind the new end may be lost.");
    const auto preallocation = preallocation_of(arguments);
    const auto old_size = node.size();
    if (preallocation != block::Preallocation::Off && size < old_size)
        return base::fail(Errc::InvalidArgument, "--preallocation is for larger disks only");
    if (preallocation != block::Preallocation::Off && !node.can_preallocate(preallocation))
        return base::fail(Errc::Unsupported,
                          fmt::format("format {} cannot preallocate {} when it grows",
                                      image.format->name, arguments.get("preallocation")));
    DOPPEL_TRY_VOID(session.context.wait(node.resize(size)));
    if (preallocation != block::Preallocation::Off) {
        const auto taken = session.context.wait(node.preallocate(old_size, preallocation));
        if (!taken) // all or nothing
            DOPPEL_TRY_VOID(session.context.wait(node.resize(old_size)));
        DOPPEL_TRY_VOID(taken);
    }
    DOPPEL_TRY_VOID(closing.close());
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
