// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/debug_exit.hpp"

namespace doppel::devices {

DebugExit::DebugExit(std::function<void(int)> on_exit) : on_exit_{std::move(on_exit)} {}

void DebugExit::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
}

std::uint64_t DebugExit::io_read(bus::IoAccess) { return ~0ull; }

void DebugExit::io_write(bus::IoAccess, std::uint64_t value) {
    {
        const base::MutexLock lock{mutex_};
        if (std::exchange(state_.has_exited, true))
            return;
    }
    on_exit_(exit_code(value));
}

} // namespace doppel::devices
