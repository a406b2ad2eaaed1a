// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "base/event_loop.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "chardev/backend.hpp"
#include "description/machine.hpp"

namespace doppel::vmm {

/// The host side of the first serial port, or of the virtio console. Control thread only.
struct OpenConsole {
    std::unique_ptr<chardev::Backend> backend;
    base::UniqueFd keep_open; // slave of a pseudo-terminal: readers may come and go
};

/// `inherited` is used up by ConsoleKind::Stdio. Prints the name of a pseudo-terminal to stderr, as
/// that of `name`.
base::Result<OpenConsole> open_console(const char* name, const description::Console& console,
                                       base::EventLoop& loop, base::UniqueFd inherited);

} // namespace doppel::vmm
