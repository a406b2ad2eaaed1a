// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/debug_console.hpp"

namespace doppel::devices {

void DebugConsole::io_write(bus::IoAccess, std::uint64_t value) {
    const auto byte = static_cast<std::byte>(value);
    sink_.write({&byte, 1});
}

} // namespace doppel::devices
