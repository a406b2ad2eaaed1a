// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdio>

#include <fmt/core.h>

#include "block/option_reader.hpp"
#include "img/images.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"s", "OFFSET", "where to begin [0]", "start-offset"},
    Flag{"l", "SIZE", "how much to show [all]", "max-length"},
    Flag{"U", "", "do not lock", "force-share"},
    Flag{"output", "human|json", "form of the output"},
    Flag{"disk", "NAME", "of a package with several disks: which"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

/// An extent as it is printed: neighbours of one kind together.
struct Range {
    std::uint64_t start = 0;
    block::Extent extent;
    std::string file; // that holds it; where `host` counts

    bool continues(const Range& next) const {
        const auto& a = extent;
        const auto& b = next.extent;
        const bool adjacent =
            a.host.has_value() == b.host.has_value() && (!a.host || *a.host + a.length == *b.host);
        return a.content == b.content && a.depth == b.depth && a.allocated == b.allocated &&
               a.present == b.present && adjacent && file == next.file;
    }
};

class Printer {
public:
    explicit Printer(bool json) : json_{json} {
        if (json_)
            fmt::print("[");
        else
            fmt::print("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File");
    }
    Result<void> print(const Range& range) {
        const auto& extent = range.extent;
        const bool data = extent.content != block::Content::Zero;
        if (json_) {
            fmt::print("{}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, "
                       "\"zero\": {}, \"data\": {}, \"compressed\": {}",
                       first_ ? "" : ",\n", range.start, extent.length, extent.depth,
                       extent.present, !data, data, extent.content == block::Content::Compressed);
            if (extent.host)
                fmt::print(", \"offset\": {}", *extent.host);
            fmt::print("}}");
            first_ = false;
            return {};
        }
        if (!data)
            return {};
        if (!extent.host)
            return base::fail(
                Errc::Unsupported,
                fmt::format("the range at {} is compressed: it lies nowhere as such", range.start),
                "Use --output=json.");
        fmt::print("{:<#16x}{:<#16x}{:<#16x}{}\n", range.start, extent.length, *extent.host,
                   range.file);
        return {};
    }
    void end() const {
        if (json_)
            fmt::print("]\n");
    }

private:
    bool json_;
    bool first_ = true;
};

block::Task<void> map(block::Node& node, std::uint64_t begin, std::uint64_t end, Printer& printer) {
    Range current;
    for (auto at = begin; at < end;) {
        DOPPEL_AWAIT(extent, node.status(at, end - at));
        Range next{at, extent, extent.place != nullptr ? extent.place->name() : std::string{}};
        at += extent.length;
        if (current.extent.length != 0 && current.continues(next)) {
            current.extent.length += extent.length;
            continue;
        }
        if (current.extent.length != 0)
            DOPPEL_CO_TRY_VOID(printer.print(current));
        current = std::move(next);
    }
    if (current.extent.length != 0)
        DOPPEL_CO_TRY_VOID(printer.print(current));
    printer.end();
    co_return {};
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    auto flags = open_flags(arguments, block::Access::ReadOnly);
    flags.unlock = false; // its data is not looked at
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    const auto size = image.node->size();
    const auto begin = std::min(size, DOPPEL_TRY(block::parse_size(arguments.get("s", "0"))));
    auto length = size - begin;
    if (arguments.has("l"))
        length = std::min(length, DOPPEL_TRY(block::parse_size(arguments.get("l"))));
    Printer printer{arguments.get("output", "human") == "json"};
    DOPPEL_TRY_VOID(session.context.wait(map(*image.node, begin, begin + length, printer)));
    return 0;
}

constexpr Command kCommand{"map",
                           "[-f FORMAT] [--output=json] FILE",
                           "show which parts of a disk hold data, and where",
                           {},
                           kFlags,
                           run};

} // namespace

const Command& map_command() { return kCommand; }

} // namespace doppel::img
