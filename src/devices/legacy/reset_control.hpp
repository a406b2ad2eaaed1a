// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Reset control register, port cf9h (Intel 82371AB PIIX4 data sheet §4.2.4; ACPI's reset register
/// is this port with value 6).
/// Modelled: a hard or soft reset when bit 2 rises. Both reset the whole board here.
#include <functional>

#include "bus/io_handler.hpp"
#include "devices/device.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex, which is free when on_reset is called.
class ResetControl final : public StatefulDevice<ResetControl>, public bus::IoHandler {
public:
    static constexpr std::uint8_t kHardReset = 0x06;

    struct State {
        std::uint8_t value = 0; // bit 1: system reset (hard), bit 2: reset CPU
    };
    static constexpr auto kSchema =
        state::schema("reset-control", 1, state::field(1, "value", &State::value));

    /// `on_reset` runs on the writing vCPU's thread.
    explicit ResetControl(std::function<void()> on_reset);

    void reset() override;
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

private:
    friend StatefulDevice<ResetControl>;
    const std::function<void()> on_reset_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::devices
