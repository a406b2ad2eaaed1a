// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace doppel::machine {

/// What a guest asks of its board. Called on vCPU threads inside an access, so the implementation
/// only notes the wish and kicks the vCPUs.
class PowerSink {
public:
    virtual ~PowerSink() = default;
    virtual void power_off() noexcept = 0;
    virtual void reset_requested() noexcept = 0;
    /// The debug-exit port was written; `exit_code` is (value << 1) | 1.
    virtual void debug_exit(int exit_code) noexcept = 0;
};

} // namespace doppel::machine
