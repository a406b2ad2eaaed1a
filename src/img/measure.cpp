// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdio>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/option_reader.hpp"
#include "img/images.hpp"
#include "img/json.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"O", "FORMAT", "format of the image to be [raw]"},
    Flag{"o", "NAME=VALUE,…", "its options"},
    Flag{"size", "SIZE", "of a new, empty disk instead of a FILE"},
    Flag{"f", "FORMAT", "format of FILE [found out]"},
    Flag{"l", "NAME", "measure this internal snapshot of FILE"},
    Flag{"U", "", "do not lock", "force-share"},
    Flag{"output", "human|json", "form of the output"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

/// Bytes of the target's clusters that hold data.
block::Task<std::uint64_t> data_bytes(block::Node& node, std::uint64_t cluster) {
    std::uint64_t bytes = 0;
    std::uint64_t counted_to = 0;
    for (std::uint64_t at = 0; at < node.size();) {
        DOPPEL_AWAIT(extent, node.status(at, node.size() - at));
        const auto begin = std::max(counted_to, base::align_down(at, cluster));
        const auto end = base::align_up(at + extent.length, cluster);
        if (extent.content != block::Content::Zero && end > begin) {
            bytes += end - begin;
            counted_to = end;
        }
        at += extent.length;
    }
    co_return bytes;
}

Result<block::SpaceNeed> measure(Session& session, const block::Format& format,
                                 const block::OptionValues& options) {
    const auto& arguments = session.arguments;
    if (arguments.has("size")) {
        if (!arguments.positional().empty())
            return base::fail(Errc::InvalidArgument, "--size and FILE exclude each other");
        const auto size = DOPPEL_TRY(block::parse_size(arguments.get("size")));
        return format.measure({size, 0}, options);
    }
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE, or --size SIZE"));
    auto flags = open_flags(arguments, block::Access::ReadOnly);
    flags.unlock = false; // its data is not looked at
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    if (arguments.has("l"))
        DOPPEL_TRY_VOID(view_snapshot(session, *image.node, arguments.get("l")));
    std::uint64_t cluster = 1;
    if (format.measure_unit != nullptr)
        cluster = DOPPEL_TRY(format.measure_unit(image.node->size(), options));
    const auto data = DOPPEL_TRY(session.context.wait(data_bytes(*image.node, cluster)));
    block::DiskUse use{image.node->size(), data};
    if (const auto* bitmaps = image.node->bitmaps())
        use.bitmaps = bitmaps->list();
    return format.measure(use, options);
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    const auto* format = DOPPEL_TRY(block::find_format(arguments.get("O", "raw")));
    if (format->measure == nullptr)
        return base::fail(
            Errc::Unsupported,
            fmt::format("the size of {} images cannot be told beforehand", format->name));
    auto options = DOPPEL_TRY(parse_options(arguments.all("o")));
    DOPPEL_TRY_VOID(check_options(*format, options));
    for (const auto& option : file_options()) // they take no space
        options.erase(std::string{option.name});
    options.erase("size"); // --size says it, or the source
    const auto need = DOPPEL_TRY(measure(session, *format, options));
    if (arguments.get("output", "human") == "json") {
        Json json;
        json.begin_object();
        if (need.bitmaps)
            json.number("bitmaps", *need.bitmaps);
        json.number("required", need.required);
        json.number("fully-allocated", need.fully_allocated);
        json.end_object();
        std::fputs(json.take().c_str(), stdout);
    } else {
        fmt::print("required size: {}\nfully allocated size: {}\n", need.required,
                   need.fully_allocated);
        if (need.bitmaps)
            fmt::print("bitmaps size: {}\n", *need.bitmaps);
    }
    return 0;
}

constexpr Command kCommand{"measure",
                           "[-O FORMAT] [-o …] {FILE | --size SIZE}",
                           "tell how much space an image would take in another format",
                           {},
                           kFlags,
                           run};

} // namespace

const Command& measure_command() { return kCommand; }

} // namespace doppel::img
