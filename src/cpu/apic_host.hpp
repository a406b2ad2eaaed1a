// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Local APICs that an engine keeps itself (in-kernel ones), in place of the board's. The board's
/// chips then are their façade: they hold the wires, and the state while it is saved and loaded.
#include <array>
#include <cstdint>
#include <optional>

#include "bus/interrupt.hpp"

namespace doppel::cpu {

/// One local APIC between two instructions, in a form that no implementation owns: the registers of
/// the xAPIC page by offset / 16 (Intel SDM Vol. 3A, Sept. 2023, table 11-1), ICR in two halves in
/// either mode; in x2APIC mode the id register has all 32 bits.
struct ApicImage {
    static constexpr std::size_t kRegisters = 64;
    std::array<std::uint32_t, kRegisters> registers{};
    std::uint64_t base = 0;         // IA32_APIC_BASE
    std::uint64_t tsc_deadline = 0; // IA32_TSC_DEADLINE; 0: not armed
    bool nmi_pending = false;
};

/// One of the engine's local APICs. Control thread, the vCPU stopped, or the vCPU's own thread.
/// What the host refuses ends the VM at its next run().
class HostedApic {
public:
    virtual ~HostedApic() = default;
    virtual ApicImage apic() noexcept = 0;
    /// `nmi_pending` is not looked at: it is delivered through InterruptPort::take_event().
    virtual void set_apic(const ApicImage& image) noexcept = 0;
};

/// Told about the end of level-triggered interrupts, on the vCPU's thread.
class EoiSink {
public:
    virtual ~EoiSink() = default;
    virtual void broadcast_eoi(std::uint8_t vector) noexcept = 0;
};

/// All of them. send_msi() from any thread; the rest from the control thread before the vCPUs run,
/// except set_level_route().
class ApicHost : public bus::MsiSink {
public:
    virtual HostedApic& apic(unsigned vcpu) = 0;
    virtual void set_eoi_sink(EoiSink& sink) noexcept = 0;
    /// What IOAPIC input `input` sends while it is level-triggered, so that the end of that
    /// interrupt is reported; nothing when it is edge-triggered. Any thread.
    virtual void set_level_route(std::uint32_t input,
                                 std::optional<bus::MsiMessage> message) noexcept = 0;
};

} // namespace doppel::cpu
