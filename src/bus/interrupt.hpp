// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Interrupt wires and messages. Sinks are lock-free leaves: raising a line never takes another
/// device's lock, so a device may raise one while it holds its own.
#include <cstdint>

namespace doppel::bus {

/// Receives levels of numbered inputs (an IOAPIC, a PIC, the board's fan-out to both).
class IrqSink {
public:
    virtual ~IrqSink() = default;
    /// Any thread.
    virtual void set_irq_level(std::uint32_t input, bool level) noexcept = 0;
};

/// One wire. Cheap to copy; a default-constructed one is not connected.
class IrqLine {
public:
    IrqLine() = default;
    IrqLine(IrqSink& sink, std::uint32_t input) : sink_{&sink}, input_{input} {}
    void set_level(bool level) const noexcept {
        if (sink_ != nullptr)
            sink_->set_irq_level(input_, level);
    }
    /// A pulse: what an edge-triggered input needs.
    void pulse() const noexcept {
        set_level(true);
        set_level(false);
    }

private:
    IrqSink* sink_ = nullptr; // owned by the Machine, outlives the devices
    std::uint32_t input_ = 0;
};

struct MsiMessage {
    std::uint64_t address = 0;
    std::uint32_t data = 0;
};

class MsiSink {
public:
    virtual ~MsiSink() = default;
    /// Any thread. Messages that address nobody are dropped.
    virtual void send_msi(MsiMessage message) noexcept = 0;
};

} // namespace doppel::bus
