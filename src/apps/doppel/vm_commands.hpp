// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The commands for running VMs: doppel ls, status, pause, resume, save, stop.
#include <functional>
#include <string>

namespace CLI {
class App;
}

namespace doppel::cli {

/// Adds the commands; parsing one sets `chosen` to what it does, which returns the exit code. Both
/// outlive `app`.
void add_vm_commands(CLI::App& app, std::function<int()>& chosen);

/// For the console's escape keys; what came of it, for a person.
std::string toggle_pause(const std::string& name);
/// Saves to NAME.state in the current folder.
std::string save_here(const std::string& name);

} // namespace doppel::cli
