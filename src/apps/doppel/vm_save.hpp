// SPDX-License-Identifier: Apache-2.0
#pragma once
/// `doppel save`, with its progress.
#include <string>

#include "base/result.hpp"

namespace doppel::cli {

/// Returns when the state is safe; with `stop`, when the VM has been told to end after that.
/// Progress goes to stderr if that is a terminal.
base::Result<void> save(const std::string& name, const std::string& file, bool stop);

} // namespace doppel::cli
