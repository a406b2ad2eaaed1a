// SPDX-License-Identifier: Apache-2.0
/// doppel: the one command a person types. Exit codes: 0 success or the guest powered off, 2 the
/// input was wrong, 70 the host or Doppel failed; `doppel run` also passes on the guest's own.
#include <cstdio>
#include <functional>
#include <span>
#include <string_view>

#include <CLI/CLI.hpp>

#include "api/machine_json.hpp"
#include "apps/doppel/launch.hpp"
#include "apps/doppel/run_options.hpp"
#include "apps/doppel/vm_commands.hpp"
#include "img/command.hpp"

namespace {

constexpr int kBadInput = 2;
constexpr int kFailure = 70;

int complain(const doppel::base::Error& error, int code) {
    std::fprintf(stderr, "doppel: %s\n", error.message().c_str());
    return code;
}

int run(const doppel::cli::RunOptions& options) {
    const auto how = doppel::cli::launch_options_of(options);
    if (!how)
        return complain(how.error(), kBadInput);
    const auto machine = doppel::cli::machine_of(options);
    if (!machine)
        return complain(machine.error(), kBadInput);
    if (options.dry_run) {
        std::fputs(doppel::api::machine_to_json(*machine).c_str(), stdout);
        return 0;
    }
    const auto code = doppel::cli::launch(*machine, *how);
    return code ? *code : complain(code.error(), kFailure);
}

constexpr const char* kRunFooter =
    "While the console is on a terminal: Ctrl-A x ends the VM, Ctrl-A p pauses it, Ctrl-A s\n"
    "saves it, Ctrl-A h shows help.\n"
    "\n"
    "Exit codes: 0 the guest powered off, (V << 1) | 1 it wrote V to the debug-exit port,\n"
    "2 wrong input, 4 the guest crashed (triple fault), 70 the host or Doppel failed.\n"
    "\n"
    "Example:\n"
    "  doppel run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0' --memory 1G\n";

} // namespace

int main(int argc, char** argv) {
    // Images have qemu-img's command line, not ours: scripts rely on it.
    const std::span<const char* const> words{argv, static_cast<std::size_t>(argc)};
    if (argc > 1 && std::string_view{argv[1]} == "img")
        return doppel::img::run("doppel img", words.subspan(2));
    CLI::App app{"Doppel: virtual machines on any Linux host.", "doppel"};
    app.set_version_flag("--version", std::string{"doppel "} + DOPPEL_VERSION);
    app.require_subcommand(0, 1);
    doppel::cli::RunOptions run_options;
    auto* run_command = app.add_subcommand("run", "run a VM in the foreground");
    run_command->footer(kRunFooter);
    doppel::cli::add_run_options(*run_command, run_options);
    app.add_subcommand("img", "disk images: create, convert, check …");
    std::function<int()> vm_command;
    doppel::cli::add_vm_commands(app, vm_command);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0)
            return app.exit(error); // --help, --version
        const auto parsed = app.get_subcommands();
        std::fprintf(stderr, "doppel: %s; see 'doppel%s --help'\n", error.what(),
                     parsed.empty() ? "" : (" " + parsed.front()->get_name()).c_str());
        return kBadInput;
    }
    if (run_command->parsed())
        return run(run_options);
    if (vm_command)
        return vm_command();
    std::fputs(app.help().c_str(), stderr);
    return kBadInput;
}
