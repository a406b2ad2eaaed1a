// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Debug console port: every byte written is one character of output. Port 0xe9 as Bochs has it
/// (a read gives 0xe9, which says "here I am"), port 0x402 as SeaBIOS and OVMF expect it.
/// Modelled: all of it.
#include "bus/io_handler.hpp"
#include "chardev/backend.hpp"
#include "devices/device.hpp"

namespace doppel::devices {

/// Any thread; holds nothing that changes.
class DebugConsole final : public StatefulDevice<DebugConsole>, public bus::IoHandler {
public:
    struct State {};
    static constexpr auto kSchema = state::schema<State>("debug-console", 1);
    static constexpr std::uint8_t kIdentification = 0xe9;

    explicit DebugConsole(chardev::ByteSink& sink) : sink_{sink} {}

    void reset() override {}
    std::uint64_t io_read(bus::IoAccess) override { return kIdentification; }
    void io_write(bus::IoAccess io, std::uint64_t value) override;

private:
    friend StatefulDevice<DebugConsole>;
    chardev::ByteSink& sink_; // owned by the Machine, outlives the device
    State state_;
};

} // namespace doppel::devices
