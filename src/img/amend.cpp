// SPDX-License-Identifier: Apache-2.0
#include <array>

#include <fmt/core.h>

#include "block/option_reader.hpp"
#include "img/images.hpp"

namespace doppel::img {

namespace {

constexpr std::array kAmendFlags{
    Flag{"o", "NAME=VALUE,…", "what to change"},
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"t", "MODE", "cache mode [writeback]"},
    Flag{"p", "", "accepted: no change takes long enough to show progress"},
    Flag{"force", "", "replace a passphrase, or remove the last one"},
    Flag{"q", "", "say nothing"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

Result<int> amend(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    auto options = DOPPEL_TRY(parse_options(arguments.all("o")));
    if (options.empty())
        return base::fail(Errc::InvalidArgument, "nothing to change", "Give -o NAME=VALUE.");
    auto flags = open_flags(arguments, block::Access::ReadWrite);
    flags.unlock = false; // a new passphrase wants it, an old one to be removed does not
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    Closing closing{session, *image.node};
    if (arguments.has("force"))
        options[image.format->name == "luks" ? "force" : "encrypt.force"] = "on";
    DOPPEL_TRY_VOID(session.context.wait(image.node->amend(options)));
    DOPPEL_TRY_VOID(closing.close());
    return 0;
}

constexpr std::array kBitmapFlags{
    Flag{"add", "", "make a bitmap"},
    Flag{"remove", "", "delete it"},
    Flag{"clear", "", "unmark everything"},
    Flag{"enable", "", "record writes from now on"},
    Flag{"disable", "", "record no more"},
    Flag{"merge", "SOURCE", "mark what bitmap SOURCE marks"},
    Flag{"b", "FILE", "with --merge: the image that has SOURCE"},
    Flag{"F", "FORMAT", "its format [found out]"},
    Flag{"g", "SIZE", "with --add: bytes per bit [64k]"},
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

Result<void> merge(Session& session, block::BitmapStore& store, const std::string& name,
                   const std::string& source) {
    const auto& arguments = session.arguments;
    if (!arguments.has("b"))
        return store.merge(name, store, source);
    OpenFlags flags;
    flags.format = arguments.get("F");
    flags.backing = false;
    auto other = DOPPEL_TRY(open_named(session, arguments.get("b"), flags));
    auto* bitmaps = other.node->bitmaps();
    if (bitmaps == nullptr)
        return base::fail(Errc::Unsupported,
                          fmt::format("format {} has no bitmaps", other.format->name));
    return store.merge(name, *bitmaps, source);
}

/// The actions in the order in which they were given: "--disable --enable" ends enabled.
Result<void> change(Session& session, block::BitmapStore& store, const std::string& name) {
    const auto& arguments = session.arguments;
    const auto sources = arguments.all("merge");
    auto source = sources.begin();
    for (const auto& action : arguments.order()) {
        if (action == "add") {
            const auto granularity = DOPPEL_TRY(block::parse_size(arguments.get("g", "64k")));
            DOPPEL_TRY_VOID(store.add(name, granularity));
        } else if (action == "clear") {
            DOPPEL_TRY_VOID(store.clear(name));
        } else if (action == "enable" || action == "disable") {
            DOPPEL_TRY_VOID(store.set_recording(name, action == "enable"));
        } else if (action == "merge") {
            DOPPEL_TRY_VOID(merge(session, store, name, *source++));
        } else if (action == "remove") {
            DOPPEL_TRY_VOID(store.remove(name));
        }
    }
    return {};
}

Result<int> bitmap(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(2, 2, "FILE BITMAP"));
    bool any = false;
    for (const auto* action : {"add", "remove", "clear", "enable", "disable", "merge"})
        any = any || arguments.has(action);
    if (!any)
        return base::fail(Errc::InvalidArgument,
                          "give --add, --remove, --clear, --enable, --disable or --merge");
    if (arguments.has("g") && !arguments.has("add"))
        return base::fail(Errc::InvalidArgument, "-g wants --add");
    auto flags = open_flags(arguments, block::Access::ReadWrite);
    flags.unlock = false; // its data is not looked at
    flags.backing = false;
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    Closing closing{session, *image.node};
    auto* store = image.node->bitmaps();
    if (store == nullptr)
        return base::fail(Errc::Unsupported,
                          fmt::format("format {} has no bitmaps", image.format->name));
    DOPPEL_TRY_VOID(change(session, *store, arguments.positional()[1]));
    DOPPEL_TRY_VOID(closing.close());
    return 0;
}

constexpr Command kAmend{
    "amend", "-o NAME=VALUE,… FILE", "change options of an image that exists", {}, kAmendFlags,
    amend};
constexpr Command kBitmap{
    "bitmap", "ACTION… FILE BITMAP", "work on the dirty bitmaps that an image keeps",
    {},       kBitmapFlags,          bitmap};

} // namespace

const Command& amend_command() { return kAmend; }
const Command& bitmap_command() { return kBitmap; }

} // namespace doppel::img
