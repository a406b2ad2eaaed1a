// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <charconv>
#include <cstdio>

#include <fmt/core.h>

#include "block/copy/copier.hpp"
#include "block/filter/joined_node.hpp"
#include "block/option_reader.hpp"
#include "img/images.hpp"
#include "img/signals.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the source [found out]"},
    Flag{"O", "FORMAT", "format of the target [raw]"},
    Flag{"o", "NAME=VALUE,…", "options of the target's format; '-o help' lists them"},
    Flag{"c", "", "compress the target"},
    Flag{"best", "", "with -c: as small as can be, slowly"},
    Flag{"B", "FILE", "backing file of the target: what is equal to it is left out"},
    Flag{"F", "FORMAT", "format of that backing file"},
    Flag{"l", "NAME", "convert this internal snapshot of the source"},
    Flag{"bitmaps", "", "copy the source's dirty bitmaps, too"},
    Flag{"skip-broken-bitmaps", "", "with --bitmaps: leave out those that are inconsistent"},
    Flag{"n", "", "write into a target that exists"},
    Flag{"target-image-opts", "", "with -n: the target's name is a list like that of --image-opts"},
    Flag{"target-is-zero", "", "with -n: the target reads as zeroes"},
    Flag{"S", "SIZE",
         "runs of zeroes this long become holes; 0: write everything [4k, by samples where the "
         "source "
         "has holes]"},
    Flag{"m", "N", "pieces under way at once, 1 to 64"},
    Flag{"r", "SIZE", "bytes per second, at most"},
    Flag{"W", "", "pieces may be written out of order (they always may)"},
    Flag{"C", "", "never share extents nor offload: copy", "copy"},
    Flag{"t", "MODE", "cache mode of the target [unsafe]"},
    Flag{"T", "MODE", "cache mode of the source [writeback]"},
    Flag{"p", "", "show progress even when stderr is no terminal"},
    Flag{"q", "", "say nothing"},
    Flag{"U", "", "do not lock the source", "force-share"},
    Flag{"salvage", "", "replace what cannot be read by zeroes"},
    Flag{"disk", "NAME", "of a package with several disks: which"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the source's name is a list: driver=qcow2,file.filename=FILE"},
};

constexpr std::uint64_t kMostSparse = 16u << 20;

struct Plan {
    const block::Format* format = nullptr;
    block::OptionValues options;
    block::CopyOptions copy;
    std::vector<block::BitmapInfo> bitmaps; // to be copied
};

Result<unsigned> parse_count(const std::string& text) {
    unsigned count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc{} || end != text.data() + text.size() || count < 1 || count > 64)
        return base::fail(Errc::InvalidArgument, fmt::format("-m is '{}', allowed 1 to 64", text));
    return count;
}

/// What excludes each other, or makes no sense alone.
Result<void> check_flags(const Arguments& arguments) {
    constexpr std::array<std::pair<const char*, const char*>, 4> kWants{{
        {"target-image-opts", "n"},
        {"target-is-zero", "n"},
        {"skip-broken-bitmaps", "bitmaps"},
        {"F", "B"},
    }};
    for (const auto& [flag, wanted] : kWants)
        if (arguments.has(flag) && !arguments.has(wanted))
            return base::fail(Errc::InvalidArgument,
                              fmt::format("{}{} wants {}{}", flag[1] == 0 ? "-" : "--", flag,
                                          wanted[1] == 0 ? "-" : "--", wanted));
    if (arguments.positional().size() > 2)
        for (const auto* flag : {"B", "l", "bitmaps"})
            if (arguments.has(flag))
                return base::fail(Errc::InvalidArgument,
                                  fmt::format("{}{} wants one source, here are {}",
                                              flag[1] == 0 ? "-" : "--", flag,
                                              arguments.positional().size() - 1));
    return {};
}

Result<Plan> plan_of(Session& session, block::OptionValues options) {
    const auto& arguments = session.arguments;
    Plan plan;
    plan.format = DOPPEL_TRY(block::find_format(arguments.get("O", "raw")));
    plan.options = std::move(options);
    if (arguments.has("B")) {
        plan.options["backing_file"] = arguments.get("B");
        if (!arguments.has("F"))
            return base::fail(Errc::InvalidArgument, "-B wants the backing file's format",
                              "Add -F FORMAT.");
        plan.options["backing_fmt"] = arguments.get("F");
    }
    DOPPEL_TRY_VOID(check_options(*plan.format, plan.options));
    plan.copy.compress = arguments.has("c");
    plan.copy.effort =
        arguments.has("best") ? block::codec::Effort::Best : block::codec::Effort::Fast;
    plan.copy.sparse_bytes = DOPPEL_TRY(block::parse_size(arguments.get("S", "4k")));
    if (plan.copy.sparse_bytes % 512 != 0 || plan.copy.sparse_bytes > kMostSparse)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("-S is {}, allowed are multiples of 512 up to 16M",
                                      plan.copy.sparse_bytes));
    plan.copy.bytes_per_second = DOPPEL_TRY(parse_rate(arguments));
    plan.copy.unseen = !arguments.has("C") && !arguments.has("S") && !arguments.has("r");
    plan.copy.parallel = arguments.has("m") ? DOPPEL_TRY(parse_count(arguments.get("m"))) : 0;
    plan.copy.salvage = arguments.has("salvage");
    if (plan.copy.salvage)
        plan.copy.warn = [](const std::string& text) { fmt::print(stderr, "{}\n", text); };
    return plan;
}

/// Those of the source that are to be copied. Error: one cannot be.
Result<std::vector<block::BitmapInfo>> bitmaps_of(const Arguments& arguments,
                                                  const block::OpenedImage& source) {
    if (!arguments.has("bitmaps"))
        return std::vector<block::BitmapInfo>{};
    const auto* store = source.node->bitmaps();
    if (store == nullptr)
        return base::fail(Errc::Unsupported,
                          fmt::format("format {} has no bitmaps", source.format->name));
    auto bitmaps = store->list();
    const auto broken = std::ranges::find_if(bitmaps, &block::BitmapInfo::inconsistent);
    if (broken != bitmaps.end() && !arguments.has("skip-broken-bitmaps"))
        return base::fail(
            Errc::Corrupt,
            fmt::format("bitmap '{}' is inconsistent: it cannot be copied", broken->name),
            "Use --skip-broken-bitmaps, or 'bitmap --remove' it.");
    std::erase_if(bitmaps, &block::BitmapInfo::inconsistent);
    return bitmaps;
}

/// After the data: what is copied here is no change of the disk.
Result<void> copy_bitmaps(block::BitmapStore& from, block::BitmapStore& to,
                          const std::vector<block::BitmapInfo>& bitmaps) {
    for (const auto& bitmap : bitmaps) {
        DOPPEL_TRY_VOID(to.add(bitmap.name, bitmap.granularity_bytes));
        DOPPEL_TRY_VOID(to.merge(bitmap.name, from, bitmap.name));
        DOPPEL_TRY_VOID(to.set_recording(bitmap.name, bitmap.recording));
    }
    return {};
}

/// What is read: an image, or several in a row.
struct Source {
    block::OpenedImage image; // the only one, or the first
    std::unique_ptr<block::Node> row;
    block::Node& node() { return row ? *row : *image.node; }
};

Result<Source> open_source(Session& session) {
    const auto& arguments = session.arguments;
    auto flags = open_flags(arguments, block::Access::ReadOnly);
    flags.cache = arguments.get("T", "writeback");
    const std::span names{arguments.positional()};
    Source source;
    source.image = DOPPEL_TRY(open_named(session, names[0], flags));
    if (names.size() == 2)
        return source;
    std::vector<std::unique_ptr<block::Node>> parts;
    parts.push_back(std::move(source.image.node));
    for (const auto& name : names.subspan(1, names.size() - 2))
        parts.push_back(DOPPEL_TRY(open_named(session, name, flags)).node);
    source.row = std::make_unique<block::filter::JoinedNode>(std::move(parts));
    return source;
}

/// Copies into an image that is there, and closes it.
Result<void> fill(Session& session, Source& from, const ImageName& name,
                  const std::string& part_suffix, Plan& plan) {
    auto& source = from.node();
    OpenFlags flags;
    flags.access = block::Access::ReadWrite;
    flags.cache = session.arguments.get("t", "unsafe");
    flags.part_suffix = part_suffix;
    auto target = DOPPEL_TRY(open_named(session, name, flags));
    Closing closing{session, *target.node};
    plan.copy.target_is_zero = plan.copy.target_is_zero && target.node->starts_as_zeroes();
    if (target.node->size() < source.size())
        return base::fail(Errc::NoSpace, fmt::format("the target has {} bytes, the source {}",
                                                     target.node->size(), source.size()));
    if (target.node->is_stream()) // by nature
        plan.copy.compress = true;
    if (session.arguments.has("best") && !plan.copy.compress)
        return base::fail(Errc::InvalidArgument, "--best wants -c");
    if (plan.copy.compress && target.node->compression() == block::CompressionKind::None)
        return base::fail(Errc::Unsupported,
                          fmt::format("{} cannot be compressed", target.node->name()));
    auto* bitmaps = target.node->bitmaps();
    if (session.arguments.has("bitmaps") && bitmaps == nullptr)
        return base::fail(Errc::Unsupported,
                          fmt::format("format {} has no bitmaps", target.format->name));
    Progress progress{progress_of(session.arguments), source.size()};
    plan.copy.progress = [&](std::uint64_t bytes) { progress.add(bytes); };
    plan.copy.stop = interrupted();
    block::Copier copier{session.context, source, *target.node, plan.copy};
    DOPPEL_TRY_VOID(session.context.wait(copier.run()));
    if (!plan.bitmaps.empty())
        DOPPEL_TRY_VOID(copy_bitmaps(*from.image.node->bitmaps(), *bitmaps, plan.bitmaps));
    DOPPEL_TRY_VOID(session.context.wait(target.node->flush()));
    return closing.close();
}

/// It is the source's: another one is said to be wrong rather than ignored.
Result<void> check_size(block::OptionValues& options, std::uint64_t source_bytes) {
    const auto given = options.extract("size");
    if (given.empty() || DOPPEL_TRY(block::parse_size(given.mapped())) == source_bytes)
        return {};
    return base::fail(Errc::InvalidArgument,
                      fmt::format("-o size={}: the new image is as large as its source, {} bytes",
                                  given.mapped(), source_bytes),
                      "Resize it afterwards.");
}

Result<void> convert_to_new(Session& session, Source& source, const std::string& path, Plan& plan) {
    DOPPEL_TRY_VOID(check_size(plan.options, source.node().size()));
    auto file = DOPPEL_TRY(NewFile::prepare(session, path));
    DOPPEL_TRY_VOID(create_image(session, *plan.format, file, source.node().size(), plan.options));
    // A backing file decides what the target shows before it is written.
    const bool preallocated =
        plan.options.contains("preallocation") && plan.options["preallocation"] != "off";
    plan.copy.target_is_zero = !plan.options.contains("backing_file") && !file.is_device();
    plan.copy.skip_unallocated = plan.options.contains("backing_file");
    plan.copy.bulk = !preallocated;
    ImageName name{file.path(), std::string{plan.format->name}, {}, {}};
    for (const auto& option : plan.format->open_options) // what it was encrypted with
        if (const auto given = plan.options.find(option.name); given != plan.options.end())
            name.options.insert(*given);
    DOPPEL_TRY_VOID(fill(session, source, name, file.part_suffix(), plan));
    return file.publish();
}

Result<void> convert_into(Session& session, Source& source, const std::string& path, Plan& plan) {
    if (!plan.options.empty())
        return base::fail(Errc::InvalidArgument, "-n writes into an image as it is: no -o, -B");
    plan.copy.target_is_zero = session.arguments.has("target-is-zero");
    plan.copy.bulk = false;
    const auto name = DOPPEL_TRY(parse_image_name(path, session.arguments.has("target-image-opts"),
                                                  std::string{plan.format->name}));
    return fill(session, source, name, {}, plan);
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    auto options = DOPPEL_TRY(parse_options(arguments.all("o")));
    if (wants_list(options))
        return list_options(
            creation_options(*DOPPEL_TRY(block::find_format(arguments.get("O", "raw")))));
    constexpr std::size_t kMostSources = 1000;
    DOPPEL_TRY_VOID(arguments.expect(2, kMostSources + 1, "SOURCE… TARGET"));
    DOPPEL_TRY_VOID(check_flags(arguments));
    auto plan = DOPPEL_TRY(plan_of(session, std::move(options)));
    auto source = DOPPEL_TRY(open_source(session));
    plan.bitmaps = DOPPEL_TRY(bitmaps_of(arguments, source.image));
    if (arguments.has("l"))
        DOPPEL_TRY_VOID(view_snapshot(session, *source.image.node, arguments.get("l")));
    const auto& target = arguments.positional().back();
    if (arguments.has("n"))
        DOPPEL_TRY_VOID(convert_into(session, source, target, plan));
    else
        DOPPEL_TRY_VOID(convert_to_new(session, source, target, plan));
    return 0;
}

constexpr Command kCommand{
    "convert",
    "[-f FORMAT] [-O FORMAT] [-c] [-o …] SOURCE… TARGET",
    "copy an image into another format, compressed or smaller",
    "Several sources become one disk, each behind the one before it. The target "
    "appears\nunder its name when it is complete.",
    kFlags,
    run};

} // namespace

const Command& convert_command() { return kCommand; }

} // namespace doppel::img
