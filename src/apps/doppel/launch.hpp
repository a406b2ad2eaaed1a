// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Starts doppel-vmm for a machine description, carries bytes between the user's terminal and the
/// VM's console, and waits for its end.
#include <string>

#include "base/log.hpp"
#include "base/result.hpp"
#include "description/machine.hpp"

namespace doppel::cli {

struct LaunchOptions {
    base::LogLevel log_level = base::LogLevel::Warning;
    bool name_is_stem = false; // the VM may get a number behind its name to make it unique
    std::string state_file;    // of a saved VM, which goes on; or empty
    bool restored_clock_continues = false;
};

/// Returns the exit code for this process: that of doppel-vmm, or 128 + signal when it died of one.
/// Errors: doppel-vmm could not be started.
base::Result<int> launch(const description::Machine& machine, const LaunchOptions& options);

} // namespace doppel::cli
