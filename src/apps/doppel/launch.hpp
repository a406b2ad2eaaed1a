// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Starts doppel-vmm for a machine description, carries bytes between the user's terminal and the
/// VM's console, and waits for its end.
#include "base/log.hpp"
#include "base/result.hpp"
#include "description/machine.hpp"

namespace doppel::cli {

/// Returns the exit code for this process: that of doppel-vmm, or 128 + signal when it died of one.
/// Errors: doppel-vmm could not be started.
base::Result<int> launch(const description::Machine& machine, base::LogLevel log_level);

} // namespace doppel::cli
