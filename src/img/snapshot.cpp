// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdio>
#include <ctime>

#include <fmt/core.h>

#include "base/printable.hpp"
#include "img/images.hpp"
#include "img/snapshot_list.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"l", "", "list the snapshots"},
    Flag{"c", "NAME", "create one"},
    Flag{"a", "NAME", "return to one: the disk becomes what it was"},
    Flag{"d", "NAME", "delete one"},
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"q", "", "say nothing"},
    Flag{"U", "", "do not lock (with -l)", "force-share"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

std::string date_text(std::int64_t time_ns) {
    const std::time_t seconds = time_ns / 1'000'000'000;
    std::tm local{};
    ::localtime_r(&seconds, &local);
    std::array<char, 32> text{};
    std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &local);
    return text.data();
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    const int actions =
        arguments.has("l") + arguments.has("c") + arguments.has("a") + arguments.has("d");
    if (actions > 1)
        return base::fail(Errc::InvalidArgument, "-l, -c, -a and -d exclude each other");
    const bool list = arguments.has("l") || actions == 0;
    auto flags = open_flags(arguments, list ? block::Access::ReadOnly : block::Access::ReadWrite);
    flags.backing = false;
    flags.unlock = false; // its data is not looked at
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    auto& node = *image.node;
    if (list) {
        const auto snapshots = DOPPEL_TRY(session.context.wait(node.list_snapshots()));
        if (!snapshots.empty())
            fmt::print("{}", snapshots_text(snapshots));
        return 0;
    }
    Closing closing{session, node};
    Result<void> done;
    if (arguments.has("c")) {
        timespec now{};
        ::clock_gettime(CLOCK_REALTIME, &now);
        done = session.context.wait(node.create_snapshot(
            arguments.get("c"), std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec));
    } else if (arguments.has("a")) {
        done = session.context.wait(node.apply_snapshot(arguments.get("a")));
    } else {
        done = session.context.wait(node.delete_snapshot(arguments.get("d")));
    }
    DOPPEL_TRY_VOID(done);
    DOPPEL_TRY_VOID(closing.close());
    return 0;
}

constexpr Command kCommand{"snapshot",
                           "[-l | -c NAME | -a NAME | -d NAME] FILE",
                           "list, create, return to or delete internal snapshots",
                           {},
                           kFlags,
                           run};

} // namespace

std::string snapshots_text(const std::vector<block::SnapshotInfo>& snapshots) {
    auto text = fmt::format("Snapshot list:\n{:<8}  {:<16}  {:>10}  {:<19}  {}\n", "ID", "TAG",
                            "VM SIZE", "DATE", "VM CLOCK");
    for (const auto& snapshot : snapshots) {
        const auto ms = snapshot.vm_clock_ns / 1'000'000;
        text += fmt::format("{:<8}  {:<16}  {:>10}  {:<19}  {:02}:{:02}:{:02}.{:03}\n",
                            base::printable(snapshot.id), base::printable(snapshot.name),
                            human_size(snapshot.vm_state_bytes), date_text(snapshot.time_ns),
                            ms / 3'600'000, ms / 60'000 % 60, ms / 1000 % 60, ms % 1000);
    }
    return text;
}

void snapshots_json(Json& json, const std::vector<block::SnapshotInfo>& snapshots) {
    json.begin_array("snapshots");
    for (const auto& snapshot : snapshots) {
        json.begin_object();
        json.text("id", snapshot.id);
        json.text("name", snapshot.name);
        json.number("vm-state-size", snapshot.vm_state_bytes);
        json.number("date-sec", static_cast<std::uint64_t>(snapshot.time_ns / 1'000'000'000));
        json.number("date-nsec", static_cast<std::uint64_t>(snapshot.time_ns % 1'000'000'000));
        json.number("vm-clock-sec", snapshot.vm_clock_ns / 1'000'000'000);
        json.number("vm-clock-nsec", snapshot.vm_clock_ns % 1'000'000'000);
        if (snapshot.icount != ~std::uint64_t{0})
            json.number("icount", snapshot.icount);
        json.end_object();
    }
    json.end_array();
}

const Command& snapshot_command() { return kCommand; }

} // namespace doppel::img
