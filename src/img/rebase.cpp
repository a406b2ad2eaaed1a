// SPDX-License-Identifier: Apache-2.0
/// rebase and commit: between an image and its backing file.
#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"
#include "block/copy/pace.hpp"
#include "img/images.hpp"

namespace doppel::img {

namespace {

constexpr std::uint64_t kChunk = 1u << 20;

constexpr std::array kRebaseFlags{
    Flag{"b", "FILE", "the new backing file; \"\" for none", "backing"},
    Flag{"F", "FORMAT", "its format", "backing-format"},
    Flag{"u", "", "only change the name: the content of both must be the same"},
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"t", "MODE", "cache mode of the image [writeback]"},
    Flag{"T", "MODE", "cache mode of the backing files [writeback]"},
    Flag{"U", "", "do not lock the backing files", "force-share"},
    Flag{"p", "", "show progress even when stderr is no terminal"},
    Flag{"q", "", "say nothing"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

constexpr std::array kCommitFlags{
    Flag{"b", "FILE", "the image of the chain to write to [the next]"},
    Flag{"d", "", "leave the image as it is: do not empty it afterwards"},
    Flag{"r", "SIZE", "bytes per second, at most"},
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"t", "MODE", "cache mode [writeback]"},
    Flag{"p", "", "show progress even when stderr is no terminal"},
    Flag{"q", "", "say nothing"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

/// What the new chain would show differently is written into the image itself.
block::Task<void> keep_content(block::Node& image, block::Node* new_base, Progress& progress) {
    block::AlignedMemory here{kChunk};
    block::AlignedMemory there{kChunk};
    for (std::uint64_t at = 0; at < image.size();) {
        DOPPEL_AWAIT(extent, image.status(at, std::min(kChunk, image.size() - at)));
        const auto length = extent.length;
        if (!extent.allocated) {
            const auto mine = here.span().first(length);
            const auto theirs = there.span().first(length);
            std::ranges::fill(theirs, std::byte{0});
            DOPPEL_AWAIT_VOID(image.read(at, block::IoBuffer{mine}));
            const auto known = new_base != nullptr && at < new_base->size()
                                   ? std::min(length, new_base->size() - at)
                                   : 0;
            if (known > 0)
                DOPPEL_AWAIT_VOID(new_base->read(at, block::IoBuffer{theirs.first(known)}));
            if (std::memcmp(mine.data(), theirs.data(), length) != 0)
                DOPPEL_AWAIT_VOID(
                    image.write(at, block::IoBuffer{mine}, block::Durability::Cached));
        }
        at += length;
        progress.add(length);
    }
    co_return {};
}

bool same_file(const std::string& left, const std::string& right) {
    std::error_code none; // what cannot be looked at is not the same
    return std::filesystem::equivalent(left, right, none);
}

Result<int> rebase(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    if (!arguments.has("b"))
        return base::fail(Errc::InvalidArgument, "the new backing file is missing",
                          "Give -b FILE, or -b \"\" for none.");
    const auto base_name = arguments.get("b");
    if (!base_name.empty() && !arguments.has("F"))
        return base::fail(Errc::InvalidArgument, "the backing file's format is not named",
                          "Add -F FORMAT.");
    if (!base_name.empty()) // what -u writes down is not opened here, but later by everybody
        DOPPEL_TRY_VOID(block::find_format(arguments.get("F")));
    const auto& path = arguments.positional()[0];
    auto flags = open_flags(arguments, block::Access::ReadWrite);
    flags.cache = arguments.get("t", "writeback");
    flags.shared = false; // -U and -T are about what is only read
    flags.backing_shared = arguments.has("U");
    flags.backing_cache = arguments.get("T", "writeback");
    flags.backing = flags.unlock = !arguments.has("u");
    auto image = DOPPEL_TRY(open_named(session, path, flags));
    Closing closing{session, *image.node};
    if (!base_name.empty() &&
        same_file(backing_path(base_name, image.node->name()), image.node->name()))
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' cannot be its own backing file", path));
    if (!arguments.has("u")) {
        block::OpenedImage base;
        if (!base_name.empty()) {
            block::ImageOptions options;
            options.format = arguments.get("F");
            options.cache = DOPPEL_TRY(block::parse_cache_mode(flags.backing_cache));
            options.sharing =
                flags.backing_shared ? block::Sharing::Forced : block::Sharing::Locked;
            base = DOPPEL_TRY(session.context.wait(block::open_image(
                session.context, backing_path(base_name, image.node->name()), options)));
        }
        Progress progress{progress_of(arguments), image.node->size()};
        DOPPEL_TRY_VOID(session.context.wait(keep_content(*image.node, base.node.get(), progress)));
        DOPPEL_TRY_VOID(session.context.wait(image.node->flush()));
    }
    DOPPEL_TRY_VOID(
        session.context.wait(image.node->change_backing(base_name, arguments.get("F"))));
    DOPPEL_TRY_VOID(closing.close());
    return 0;
}

block::Task<void> write_down(block::Node& image, block::Node& target, std::uint32_t depth,
                             block::Pace& pace, Progress& progress) {
    block::AlignedMemory bytes{kChunk};
    if (target.size() < image.size())
        DOPPEL_AWAIT_VOID(target.resize(image.size()));
    for (std::uint64_t at = 0; at < image.size();) {
        DOPPEL_AWAIT(extent, image.status(at, std::min(kChunk, image.size() - at)));
        const bool above = extent.allocated || (extent.depth > 0 && extent.depth < depth);
        if (above && extent.content == block::Content::Zero) {
            DOPPEL_AWAIT_VOID(target.write_zeroes(at, extent.length, block::Unmap::Allow,
                                                  block::Durability::Cached));
        } else if (above) {
            const auto part = bytes.span().first(extent.length);
            DOPPEL_AWAIT_VOID(pace.wait(extent.length));
            DOPPEL_AWAIT_VOID(image.read(at, block::IoBuffer{part}));
            DOPPEL_AWAIT_VOID(target.write(at, block::IoBuffer{part}, block::Durability::Cached));
        }
        at += extent.length;
        progress.add(extent.length);
    }
    DOPPEL_AWAIT_VOID(target.flush()); // before the image above is emptied
    co_return {};
}

struct Target {
    ImageName image;
    ImageName above;         // the image that stands on it
    std::uint32_t depth = 1; // images above it
};

/// The image of the chain that -b names, by its path or by how the chain writes it.
Result<Target> find_target(Session& session, const ImageName& name, const std::string& wanted) {
    OpenFlags flags;
    flags.backing = flags.unlock = false;
    Target target{name, {}, 0};
    while (target.depth < block::kMaxChainDepth) {
        auto image = DOPPEL_TRY(open_named(session, target.image, flags));
        const auto info = image.node->info();
        if (info.backing_file.empty())
            break;
        target.above = target.image;
        target.above.format = image.format->name;
        target.image = target.above.behind(backing_path(info.backing_file, image.node->name()),
                                           info.backing_format);
        ++target.depth;
        if (wanted.empty() || wanted == target.image.path || wanted == info.backing_file)
            return target;
    }
    return wanted.empty()
               ? base::fail(Errc::InvalidArgument,
                            fmt::format("'{}' has no backing file", name.path))
               : base::fail(Errc::InvalidArgument,
                            fmt::format("'{}' is not in the chain of '{}'", wanted, name.path));
}

/// The image above a target that has changed: it stays the right one to stand on.
Result<void> accept_target(Session& session, const Target& target, bool empty) {
    OpenFlags flags;
    flags.access = block::Access::ReadWrite;
    flags.cache = session.arguments.get("t", "writeback");
    flags.backing = flags.unlock = false;
    auto image = DOPPEL_TRY(open_named(session, target.above, flags));
    Closing closing{session, *image.node};
    DOPPEL_TRY_VOID(session.context.wait(image.node->accept_backing()));
    if (empty)
        DOPPEL_TRY_VOID(session.context.wait(image.node->make_empty()));
    return closing.close();
}

Result<int> commit(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    const auto name = DOPPEL_TRY(parse_image_name(arguments.positional()[0],
                                                  arguments.has("image-opts"), arguments.get("f")));
    const auto found = DOPPEL_TRY(find_target(session, name, arguments.get("b")));
    const auto rate = DOPPEL_TRY(parse_rate(arguments));
    // The chain below is open twice here: we hold the target for writing, and read the chain
    // without locks of our own.
    auto flags = open_flags(arguments, block::Access::ReadWrite);
    auto target = DOPPEL_TRY(open_named(session, found.image, flags));
    Closing closing{session, *target.node};
    flags.access = block::Access::ReadOnly;
    flags.shared = true;
    {
        auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
        Progress progress{progress_of(arguments), image.node->size()};
        block::Pace pace{session.context, rate, nullptr};
        DOPPEL_TRY_VOID(session.context.wait(
            write_down(*image.node, *target.node, found.depth, pace, progress)));
    }
    DOPPEL_TRY_VOID(closing.close());
    target.node.reset();
    DOPPEL_TRY_VOID(accept_target(session, found, !arguments.has("d") && !arguments.has("b")));
    if (!arguments.has("q"))
        fmt::print("Image committed.\n");
    return 0;
}

constexpr Command kRebase{"rebase",
                          "-b FILE -F FORMAT [-u] FILE",
                          "give an image another backing file, or none",
                          {},
                          kRebaseFlags,
                          rebase};
constexpr Command kCommit{
    "commit", "[-b FILE] [-d] FILE", "write an image's content into its backing file",
    {},       kCommitFlags,          commit};

} // namespace

const Command& rebase_command() { return kRebase; }
const Command& commit_command() { return kCommit; }

} // namespace doppel::img
