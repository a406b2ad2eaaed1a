// SPDX-License-Identifier: Apache-2.0
#include "apps/doppel/vm_commands.hpp"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <fmt/format.h> // join

#include "api/control.hpp"
#include "api/control_client.hpp"
#include "api/control_name.hpp"
#include "apps/doppel/vm_save.hpp"
#include "description/machine.hpp"

namespace doppel::cli {

using api::ControlClient;
using base::Errc;
using base::Error;
using base::Result;

namespace {

constexpr int kBadInput = 2;
constexpr int kFailure = 70;

int complain(const Error& error) {
    std::fprintf(stderr, "doppel: %s\n", error.message().c_str());
    const bool is_host = error.code == Errc::Io || error.code == Errc::Internal ||
                         error.code == Errc::NoSpace || error.code == Errc::Interrupted;
    return is_host ? kFailure : kBadInput;
}

int exit_code(const Result<void>& result) { return result ? 0 : complain(result.error()); }

Result<void> call(const std::string& name, std::string_view target) {
    auto client = DOPPEL_TRY(ControlClient::connect(name));
    DOPPEL_TRY(client.post(target));
    return {};
}

Result<api::VmStatus> status_of(const std::string& name) {
    auto client = DOPPEL_TRY(ControlClient::connect(name));
    const auto body = DOPPEL_TRY(client.get("/v1/vm"));
    return api::from_json<api::VmStatus>(body);
}

// --- ls, status -------------------------------------------------------------------------------

std::string forwards_of(const api::VmStatus& status) {
    return status.forwards.empty() ? "-" : fmt::format("{}", fmt::join(status.forwards, ","));
}

Result<void> list() {
    const auto names = DOPPEL_TRY(api::control_names());
    fmt::print("{:<20} {:<8} {:>4} {:>7} {:<12} {:>7} {}\n", "NAME", "STATE", "CPUS", "MEMORY",
               "ENGINE", "PID", "FORWARDS");
    for (const auto& name : names) {
        const auto status = status_of(name);
        if (!status) // it has ended meanwhile
            continue;
        fmt::print("{:<20} {:<8} {:>4} {:>7} {:<12} {:>7} {}\n", status->name, status->state,
                   status->cpus, description::format_size(status->memory_bytes), status->engine,
                   status->pid, forwards_of(*status));
    }
    return {};
}

Result<void> show_status(const std::string& name, bool as_json) {
    auto client = DOPPEL_TRY(ControlClient::connect(name));
    const auto body = DOPPEL_TRY(client.get("/v1/vm"));
    if (as_json) {
        fmt::print("{}", body);
        return {};
    }
    const auto status = DOPPEL_TRY(api::from_json<api::VmStatus>(body));
    const auto counters = DOPPEL_TRY(client.get("/v1/vm/stats"));
    const auto statistics = DOPPEL_TRY(api::from_json<api::VmStatistics>(counters));
    fmt::print("name: {}\nstate: {}\nboard: {}\nCPU model: {}\nmemory: {}\npid: {}\n"
               "forwards: {}\n{}",
               status.name, status.state, status.board, status.cpu_model,
               description::format_size(status.memory_bytes), status.pid, forwards_of(status),
               statistics.text);
    return {};
}

// --- stop -------------------------------------------------------------------------------------

/// Waits until nobody has the name any more.
Result<void> wait_for_end(const std::string& name, std::chrono::seconds patience,
                          const char* hint) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    for (;;) {
        const auto found = api::connect_to(name);
        if (!found && found.error().code == Errc::NotFound)
            return {};
        if (std::chrono::steady_clock::now() >= deadline)
            return base::fail(
                Errc::Busy,
                fmt::format("VM '{}' still runs after {} seconds", name, patience.count()), hint);
        std::this_thread::sleep_for(std::chrono::milliseconds{50});
    }
}

Result<void> stop(const std::string& name, bool now, unsigned patience_seconds) {
    const std::chrono::seconds patience{patience_seconds};
    if (!now) {
        DOPPEL_TRY_VOID(call(name, "/v1/vm/power-button"));
        return wait_for_end(name, patience,
                            "a guest may ignore its power button: 'doppel stop --now' does not ask "
                            "it");
    }
    auto client = DOPPEL_TRY(ControlClient::connect(name));
    // A VM that ends does not always finish its last answer.
    if (const auto asked = client.post("/v1/vm/stop"); !asked && asked.error().code != Errc::Io)
        return std::unexpected(asked.error());
    return wait_for_end(name, patience, "kill its process");
}

struct Options {
    std::string name, file;
    bool json = false, stop = false, now = false;
    unsigned patience_seconds = 60;
};

CLI::App* add(CLI::App& app, const char* command, const char* what, Options& options,
              std::function<int()>& chosen, std::function<Result<void>()> action) {
    auto* added = app.add_subcommand(command, what);
    added->callback([&chosen, action] { chosen = [action] { return exit_code(action()); }; });
    if (std::string_view{command} != "ls")
        added->add_option("name", options.name, "the VM, as 'doppel ls' shows it")
            ->type_name("NAME")
            ->required();
    return added;
}

} // namespace

void add_vm_commands(CLI::App& app, std::function<int()>& chosen) {
    const auto o = std::make_shared<Options>(); // co-owned by the actions below
    add(app, "ls", "list the VMs that run", *o, chosen, [] { return list(); });
    add(app, "status", "say what a VM is doing", *o, chosen, [o] {
        return show_status(o->name, o->json);
    })->add_flag("--json", o->json, "print JSON, for programs");
    add(app, "pause", "halt a VM where it stands; its clocks stop too", *o, chosen,
        [o] { return call(o->name, "/v1/vm/pause"); });
    add(app, "resume", "let a paused VM go on", *o, chosen,
        [o] { return call(o->name, "/v1/vm/resume"); });
    auto* save_command =
        add(app, "save", "save a VM to a file: 'doppel run --restore FILE' goes on", *o, chosen,
            [o] { return save(o->name, o->file, o->stop); });
    save_command->add_option("file", o->file, "the file; one that is there is replaced")
        ->type_name("FILE")
        ->required();
    save_command->add_flag("--stop", o->stop, "end the VM when its state is safe");
    auto* stop_command = add(app, "stop", "press a VM's power button and wait for its end", *o,
                             chosen, [o] { return stop(o->name, o->now, o->patience_seconds); });
    stop_command->add_flag("--now", o->now, "end it at once, as pulling the plug does");
    stop_command->add_option("--timeout", o->patience_seconds, "how long to wait for its end")
        ->type_name("SECONDS")
        ->capture_default_str();
}

// --- escape keys ------------------------------------------------------------------------------

std::string toggle_pause(const std::string& name) {
    const auto status = status_of(name);
    if (!status)
        return status.error().message();
    const bool is_running = status->state == "running";
    const auto done = call(name, is_running ? "/v1/vm/pause" : "/v1/vm/resume");
    if (!done)
        return done.error().message();
    return is_running ? "the VM is paused: Ctrl-A p lets it go on" : "the VM goes on";
}

std::string save_here(const std::string& name) {
    const auto file = name + ".state";
    const auto saved = save(name, file, false);
    return saved
               ? fmt::format("saved to {}: 'doppel run --restore {}' goes on from here", file, file)
               : saved.error().message();
}

} // namespace doppel::cli
