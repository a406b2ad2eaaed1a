// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A command that goes on in the background once it is ready, as qemu-nbd --fork does. One thread:
/// before there is any other, and before there is an io_uring, which a child does not inherit.
#include <optional>

#include "base/result.hpp"

namespace doppel::img {

/// Splits the process. The child gets nothing, in a session of its own. The parent waits here until
/// the child is ready, or has failed and said why, and gets its exit code.
base::Result<std::optional<int>> go_to_background();

/// The child of go_to_background() lets the parent go, and the terminal too; elsewhere nothing
/// happens.
void say_ready();

} // namespace doppel::img
