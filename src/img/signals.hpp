// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Ctrl-C, SIGTERM and SIGHUP: nothing that is half done stays under the name it should have had,
/// and no temporary file stays at all.
#include <string>
#include <string_view>

namespace doppel::img {

/// From now on such a signal ends the process with one sentence that begins with `name` and the
/// shell's code for it (128 + its number), after the files of remove_on_signal() are gone. Images
/// that are changed in place are then as after a power cut.
void end_cleanly_on_signals(std::string_view name);

/// The exit code of a command that a signal has stopped.
int interrupted_code();

/// Set by the first signal from this call on: whoever asks for it looks at it and ends in order. A
/// second signal ends the process at once.
const bool* interrupted();

/// An unfinished file: a name that this process alone uses, and never for a finished one.
void remove_on_signal(const std::string& path);

/// What unfinished files have behind the names that they will have.
std::string part_suffix();

} // namespace doppel::img
