// SPDX-License-Identifier: Apache-2.0
#pragma once
/// `doppel run`: its options, compiled to a machine description.
#include <string>

#include "apps/doppel/launch.hpp"
#include "base/result.hpp"
#include "description/machine.hpp"

namespace CLI {
class App;
}

namespace doppel::cli {

struct RunOptions {
    std::string kernel, initrd, append,
        memory = "512M", cpu = description::default_cpu_model(), engine = "auto", console = "stdio",
        virtio_console, name, log = "warning", debug_exit_port, time, translator, profile, restore,
        restore_clock = "catch-up";
    std::vector<std::string> modules, objects, disks, nets, profile_symbols;
    const CLI::App* command = nullptr; // which was parsed: knows what was given
    std::uint32_t cpus = 1;
    bool no_reboot = false, debug_exit = false, dry_run = false, stats = false, check = false,
         rng = false;
};

/// Adds the options to the subcommand; `options` outlives it.
void add_run_options(CLI::App& command, RunOptions& options);

/// Checks everything that can be checked before a VM exists, the files too. Errors name the flag.
base::Result<description::Machine> machine_of(const RunOptions& options);
/// The rest.
base::Result<LaunchOptions> launch_options_of(const RunOptions& options);

} // namespace doppel::cli
