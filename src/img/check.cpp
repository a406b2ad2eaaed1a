// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdio>

#include <fmt/core.h>

#include "base/printable.hpp"
#include "img/images.hpp"
#include "img/json.hpp"

namespace doppel::img {

namespace {

constexpr int kCorrupt = 2;
constexpr int kLeaks = 3;
constexpr int kNoCheck = 63; // the format has none

constexpr std::array kFlags{
    Flag{"r", "leaks|all", "repair: what is lost space only, or everything", "repair"},
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"T", "MODE", "cache mode [writeback]"},
    Flag{"q", "", "say nothing but what is wrong"},
    Flag{"U", "", "do not lock", "force-share"},
    Flag{"output", "human|json", "form of the output"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

void print_json(const block::CheckResult& result, const block::OpenedImage& image) {
    Json json;
    json.begin_object();
    json.number("image-end-offset", result.image_end_offset);
    json.number("total-clusters", result.total_clusters);
    json.number("check-errors", result.check_errors);
    if (result.corruptions != 0)
        json.number("corruptions", result.corruptions);
    if (result.leaks != 0)
        json.number("leaks", result.leaks);
    if (result.corruptions_fixed != 0)
        json.number("corruptions-fixed", result.corruptions_fixed);
    if (result.leaks_fixed != 0)
        json.number("leaks-fixed", result.leaks_fixed);
    json.text("filename", image.node->name());
    json.text("format", image.format->name);
    if (result.allocated_clusters != 0)
        json.number("allocated-clusters", result.allocated_clusters);
    if (result.fragmented_clusters != 0)
        json.number("fragmented-clusters", result.fragmented_clusters);
    if (result.compressed_clusters != 0)
        json.number("compressed-clusters", result.compressed_clusters);
    json.end_object();
    std::fputs(json.take().c_str(), stdout);
}

double percent(std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

void print_human(const block::CheckResult& result, bool quiet) {
    if (result.corruptions + result.leaks + result.check_errors == 0 && !quiet)
        fmt::print("No errors were found on the image.\n");
    if (result.corruptions != 0)
        fmt::print("\n{} errors were found on the image.\nData may be corrupted, or further writes "
                   "to the image may corrupt it.\n",
                   result.corruptions);
    if (result.leaks != 0)
        fmt::print("\n{} leaked clusters were found on the image.\nThis means waste of disk space, "
                   "but no harm to data.\n",
                   result.leaks);
    if (result.check_errors != 0)
        fmt::print("\n{} internal errors have occurred during the check.\n", result.check_errors);
    if (quiet)
        return;
    if (result.total_clusters != 0 && result.allocated_clusters != 0)
        fmt::print("{}/{} = {:.2f}% allocated, {:.2f}% fragmented, {:.2f}% compressed clusters\n",
                   result.allocated_clusters, result.total_clusters,
                   percent(result.allocated_clusters, result.total_clusters),
                   percent(result.fragmented_clusters, result.allocated_clusters),
                   percent(result.compressed_clusters, result.allocated_clusters));
    if (result.image_end_offset > 0)
        fmt::print("Image end offset: {}\n", result.image_end_offset);
}

int code_of(const block::CheckResult& result) {
    if (result.corruptions > 0)
        return kCorrupt;
    if (result.leaks > 0)
        return kLeaks;
    return result.check_errors > 0 ? kFailed : 0;
}

/// After a repair the image is looked at again: what counts is what is left.
Result<block::CheckResult> repair(Session& session, block::ImageNode& node, block::Repair how,
                                  bool human) {
    auto first = DOPPEL_TRY(session.context.wait(node.check(how)));
    if (human) {
        for (const auto& finding : first.findings)
            fmt::print(stderr, "{}\n", base::printable(finding));
        if (first.corruptions_fixed + first.leaks_fixed != 0)
            fmt::print("The following inconsistencies were found and repaired:\n\n    {} leaked "
                       "clusters\n    {} corruptions\n\nDouble checking the fixed image now...\n",
                       first.leaks_fixed, first.corruptions_fixed);
    }
    auto second = DOPPEL_TRY(session.context.wait(node.check(block::Repair::None)));
    second.corruptions_fixed = first.corruptions_fixed;
    second.leaks_fixed = first.leaks_fixed;
    return second;
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    const auto how = arguments.get("r");
    auto flags =
        open_flags(arguments, how.empty() ? block::Access::ReadOnly : block::Access::ReadWrite);
    flags.backing = false;
    flags.repair_later = true;
    flags.unlock = false; // its data is not looked at
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    Closing closing{session, *image.node};
    const bool human = arguments.get("output", "human") == "human";
    auto checked = how.empty()
                       ? session.context.wait(image.node->check(block::Repair::None))
                       : repair(session, *image.node,
                                how == "all" ? block::Repair::All : block::Repair::Leaks, human);
    if (!checked && checked.error().code == Errc::Unsupported) {
        if (!arguments.has("q"))
            fmt::print(stderr, "{}\n", checked.error().message());
        return kNoCheck;
    }
    const auto result = DOPPEL_TRY(std::move(checked));
    DOPPEL_TRY_VOID(closing.close());
    if (human) {
        for (const auto& finding : result.findings)
            fmt::print(stderr, "{}\n", base::printable(finding));
        print_human(result, arguments.has("q"));
    } else {
        print_json(result, image);
    }
    return code_of(result);
}

constexpr Command kCommand{"check",
                           "[-r leaks|all] [-f FORMAT] [--output=json] FILE",
                           "look for errors in an image, and repair them",
                           "Exit codes: 0 nothing found, 1 not checked, 2 corrupt, 3 lost space "
                           "only, 63 the format has no check.",
                           kFlags,
                           run};

} // namespace

const Command& check_command() { return kCommand; }

} // namespace doppel::img
