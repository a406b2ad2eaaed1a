// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Debug-exit port: bare-metal test kernels write a value and the VM ends with a status.
/// Behaves like the `isa-debug-exit` device people know: value V ends the process with
/// (V << 1) | 1, so success of a test kernel is a non-zero odd number of its own choice.
/// Modelled: one register of 1, 2 or 4 bytes. Not modelled: anything to read (all ones).
#include <functional>

#include "bus/io_handler.hpp"
#include "devices/device.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex.
class DebugExit final : public StatefulDevice<DebugExit>, public bus::IoHandler {
public:
    struct State {
        bool has_exited = false; // the first write counts
    };
    static constexpr auto kSchema =
        state::schema("debug-exit", 1, state::field(1, "has_exited", &State::has_exited));

    /// `on_exit` gets the process's exit code; called on the writing vCPU's thread, once.
    explicit DebugExit(std::function<void(int exit_code)> on_exit);

    void reset() override;
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

    /// What a shell sees: the low eight bits of (value << 1) | 1 in the end.
    static constexpr int exit_code(std::uint64_t value) {
        return static_cast<int>((static_cast<std::uint32_t>(value) << 1) | 1u);
    }

private:
    friend StatefulDevice<DebugExit>;
    const std::function<void(int)> on_exit_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::devices
