// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <charconv>
#include <cstdio>

#include <fmt/core.h>

#include "block/copy/copier.hpp"
#include "block/option_reader.hpp"
#include "img/images.hpp"
#include "img/signals.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the source [found out]"},
    Flag{"O", "FORMAT", "format of the target [raw]"},
    Flag{"o", "NAME=VALUE,…", "options of the target's format"},
    Flag{"c", "", "compress the target"},
    Flag{"best", "", "with -c: as small as can be, slowly"},
    Flag{"B", "FILE", "backing file of the target: what is equal to it is left out"},
    Flag{"F", "FORMAT", "format of that backing file"},
    Flag{"l", "NAME", "convert this internal snapshot of the source"},
    Flag{"n", "", "write into a target that exists"},
    Flag{"target-image-opts", "", "with -n: the target's name is a list like that of --image-opts"},
    Flag{"target-is-zero", "", "with -n: the target reads as zeroes"},
    Flag{"S", "SIZE", "runs of zeroes this long become holes; 0: write everything [4k]"},
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
    std::uint64_t size = 0;
};

Result<unsigned> parse_count(const std::string& text) {
    unsigned count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc{} || end != text.data() + text.size() || count < 1 || count > 64)
        return base::fail(Errc::InvalidArgument, fmt::format("-m is '{}', allowed 1 to 64", text));
    return count;
}

Result<Plan> plan_of(Session& session) {
    const auto& arguments = session.arguments;
    Plan plan;
    plan.format = DOPPEL_TRY(block::find_format(arguments.get("O", "raw")));
    plan.options = DOPPEL_TRY(parse_options(arguments.all("o")));
    if (arguments.has("B")) {
        plan.options["backing_file"] = arguments.get("B");
        if (!arguments.has("F"))
            return base::fail(Errc::InvalidArgument, "-B wants the backing file's format",
                              "Add -F FORMAT.");
        plan.options["backing_fmt"] = arguments.get("F");
    }
    DOPPEL_TRY_VOID(
        block::OptionReader(plan.format->options, plan.options).check_names(plan.format->name));
    if (arguments.has("target-image-opts") && !arguments.has("n"))
        return base::fail(Errc::InvalidArgument, "--target-image-opts wants -n");
    if (arguments.has("target-is-zero") && !arguments.has("n"))
        return base::fail(Errc::InvalidArgument, "--target-is-zero wants -n");
    plan.copy.compress = arguments.has("c");
    plan.copy.effort =
        arguments.has("best") ? block::codec::Effort::Best : block::codec::Effort::Fast;
    plan.copy.sparse_bytes = DOPPEL_TRY(block::parse_size(arguments.get("S", "4k")));
    if (plan.copy.sparse_bytes % 512 != 0 || plan.copy.sparse_bytes > kMostSparse)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("-S is {}, allowed are multiples of 512 up to 16M",
                                      plan.copy.sparse_bytes));
    if (arguments.has("r")) {
        plan.copy.bytes_per_second = DOPPEL_TRY(block::parse_size(arguments.get("r")));
        if (plan.copy.bytes_per_second == 0)
            return base::fail(Errc::InvalidArgument, "-r is 0", "Leave it out for no limit.");
    }
    plan.copy.unseen = !arguments.has("C") && !arguments.has("S") && !arguments.has("r");
    plan.copy.parallel = arguments.has("m") ? DOPPEL_TRY(parse_count(arguments.get("m"))) : 0;
    plan.copy.salvage = arguments.has("salvage");
    if (plan.copy.salvage)
        plan.copy.warn = [](const std::string& text) { fmt::print(stderr, "{}\n", text); };
    return plan;
}

/// Copies into an image that is there, and closes it.
Result<void> fill(Session& session, block::Node& source, const ImageName& name,
                  const std::string& part_suffix, Plan& plan) {
    OpenFlags flags;
    flags.access = block::Access::ReadWrite;
    flags.cache = session.arguments.get("t", "unsafe");
    flags.part_suffix = part_suffix;
    auto target = DOPPEL_TRY(open_named(session, name, flags));
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
    Progress progress{progress_of(session.arguments), source.size()};
    plan.copy.progress = [&](std::uint64_t bytes) { progress.add(bytes); };
    plan.copy.stop = interrupted();
    block::Copier copier{session.context, source, *target.node, plan.copy};
    DOPPEL_TRY_VOID(session.context.wait(copier.run()));
    DOPPEL_TRY_VOID(session.context.wait(target.node->flush()));
    return close_image(session, *target.node);
}

Result<void> convert_to_new(Session& session, block::Node& source, const std::string& path,
                            Plan& plan) {
    auto file = DOPPEL_TRY(NewFile::prepare(session, path));
    DOPPEL_TRY_VOID(create_image(session, *plan.format, file, source.size(), plan.options));
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

Result<void> convert_into(Session& session, block::Node& source, const std::string& path,
                          Plan& plan) {
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
    DOPPEL_TRY_VOID(arguments.expect(2, 2, "SOURCE TARGET"));
    auto plan = DOPPEL_TRY(plan_of(session));
    auto flags = open_flags(arguments, block::Access::ReadOnly);
    flags.cache = arguments.get("T", "writeback");
    auto source = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    if (arguments.has("l"))
        DOPPEL_TRY_VOID(session.context.wait(source.node->view_snapshot(arguments.get("l"))));
    const auto& target = arguments.positional()[1];
    if (arguments.has("n"))
        DOPPEL_TRY_VOID(convert_into(session, *source.node, target, plan));
    else
        DOPPEL_TRY_VOID(convert_to_new(session, *source.node, target, plan));
    return 0;
}

constexpr Command kCommand{"convert",
                           "[-f FORMAT] [-O FORMAT] [-c] [-o …] SOURCE TARGET",
                           "copy an image into another format, compressed or smaller",
                           "The target appears under its name when it is complete.",
                           kFlags,
                           run};

} // namespace

const Command& convert_command() { return kCommand; }

} // namespace doppel::img
