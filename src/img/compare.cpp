// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"
#include "block/extents.hpp"
#include "img/images.hpp"

namespace doppel::img {

namespace {

constexpr std::uint64_t kChunk = 4u << 20;
constexpr int kDiffers = 1;
constexpr int kCannotOpen = 2;
constexpr int kCannotRead = 4;

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the first image [found out]"},
    Flag{"F", "FORMAT", "format of the second [found out]"},
    Flag{"s", "", "strict: sizes and allocation count, too"},
    Flag{"T", "MODE", "cache mode [writeback]"},
    Flag{"p", "", "show progress even when stderr is no terminal"},
    Flag{"q", "", "say nothing"},
    Flag{"U", "", "do not lock", "force-share"},
    Flag{"disk", "NAME", "of a package as the first image: which of its disks"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the names are lists: driver=qcow2,file.filename=FILE"},
};

struct Outcome {
    bool equal = true;
    std::string text;
};

Outcome differs(std::string text) { return {false, std::move(text)}; }

/// Both hold data in [offset, offset + length): where they differ first, or `length`.
block::Task<std::uint64_t> first_difference(block::Node& a, block::Node& b, std::uint64_t offset,
                                            std::uint64_t length, block::AlignedMemory& left,
                                            block::AlignedMemory& right) {
    const auto of_a = left.span().first(length);
    const auto of_b = right.span().first(length);
    std::vector<block::Task<void>> reads;
    reads.push_back(a.read(offset, block::IoBuffer{of_a}));
    reads.push_back(b.read(offset, block::IoBuffer{of_b}));
    DOPPEL_AWAIT_VOID(block::all_of(std::move(reads)));
    if (std::memcmp(of_a.data(), of_b.data(), length) == 0)
        co_return length;
    co_return static_cast<std::uint64_t>(std::ranges::mismatch(of_a, of_b).in1 - of_a.begin());
}

/// From `offset` on the node must read as zeroes: where it does not first, or its size.
block::Task<std::uint64_t> first_data(block::Node& node, std::uint64_t offset,
                                      block::AlignedMemory& memory) {
    while (offset < node.size()) {
        DOPPEL_AWAIT(extent, block::deep_status(node, offset, node.size() - offset));
        if (extent.content == block::Content::Zero) {
            offset += extent.length;
            continue;
        }
        const auto bytes = memory.span().first(std::min(extent.length, kChunk));
        DOPPEL_AWAIT_VOID(node.read(offset, block::IoBuffer{bytes}));
        const auto data =
            std::ranges::find_if(bytes, [](auto byte) { return byte != std::byte{0}; });
        offset += static_cast<std::uint64_t>(data - bytes.begin());
        if (data != bytes.end())
            break;
    }
    co_return offset;
}

block::Task<Outcome> compare(block::Node& a, block::Node& b, bool strict, Progress& progress) {
    block::AlignedMemory left{kChunk};
    block::AlignedMemory right{kChunk};
    const auto common = std::min(a.size(), b.size());
    if (strict && a.size() != b.size())
        co_return differs("Strict mode: Image size mismatch!");
    for (std::uint64_t at = 0; at < common;) {
        DOPPEL_AWAIT(of_a, block::deep_status(a, at, common - at));
        DOPPEL_AWAIT(of_b, block::deep_status(b, at, common - at));
        auto length = std::min(of_a.length, of_b.length);
        if (strict && of_a.allocated != of_b.allocated)
            co_return differs(fmt::format("Strict mode: Offset {} block status mismatch!", at));
        const bool both_zero =
            of_a.content == block::Content::Zero && of_b.content == block::Content::Zero;
        if (!both_zero) {
            length = std::min(length, kChunk);
            DOPPEL_AWAIT(same, first_difference(a, b, at, length, left, right));
            if (same != length)
                co_return differs(fmt::format("Content mismatch at offset {}!", at + same));
        }
        at += length;
        progress.add(length);
    }
    auto& longer = a.size() > b.size() ? a : b;
    DOPPEL_AWAIT(data, first_data(longer, common, left));
    if (data != longer.size())
        co_return differs(fmt::format("Content mismatch at offset {}!", data));
    co_return Outcome{true, "Images are identical."};
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    // As qemu-img: a wrong call has another code than a file that is missing.
    if (const auto named = arguments.expect(2, 2, "FIRST SECOND"); !named)
        return complain(session.name, named.error(), kFailed);
    auto flags = open_flags(arguments, block::Access::ReadOnly);
    auto first = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    flags.format = arguments.get("F");
    flags.disk.clear();
    auto second = DOPPEL_TRY(open_named(session, arguments.positional()[1], flags));
    const bool quiet = arguments.has("q");
    const auto common = std::min(first.node->size(), second.node->size());
    if (!quiet && first.node->size() != second.node->size() && !arguments.has("s"))
        fmt::print("Warning: Image size mismatch!\n");
    auto outcome = [&] {
        Progress progress{progress_of(arguments), common};
        return session.context.wait(
            compare(*first.node, *second.node, arguments.has("s"), progress));
    }();
    if (!outcome)
        return complain(session.name, outcome.error(), kCannotRead);
    if (!quiet)
        fmt::print("{}\n", outcome->text);
    return outcome->equal ? 0 : kDiffers;
}

constexpr Command kCommand{"compare",
                           "[-f FORMAT] [-F FORMAT] [-s] FIRST SECOND",
                           "tell whether two images show the same disk",
                           "Exit codes: 0 equal, 1 different, 2 and above not compared.",
                           kFlags,
                           run,
                           kCannotOpen};

} // namespace

const Command& compare_command() { return kCommand; }

} // namespace doppel::img
