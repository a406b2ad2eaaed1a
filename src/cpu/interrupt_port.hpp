// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The door between one vCPU and its local interrupt controller (with the PIC behind it). The
/// controller implements it, engines call it.
///
/// Handshake: when something becomes pending, the controller stores its state first and then calls
/// Wakeup::notify() of the vCPU; the vCPU clears its own flag first and then looks here. So no
/// event is lost, and has_event() may be polled without a lock.
#include <cstdint>
#include <optional>

namespace doppel::cpu {

/// Implemented by the vCPU: "look at the InterruptPort again". Any thread, lock-free, never blocks.
class Wakeup {
public:
    virtual ~Wakeup() = default;
    virtual void notify() noexcept = 0;
};

/// What arrived besides maskable interrupts, in order of priority.
enum class CpuEvent : std::uint8_t { None, Init, Nmi, Sipi };

/// vCPU thread only, except where noted.
class InterruptPort {
public:
    virtual ~InterruptPort() = default;

    /// Anything at all that could change what the vCPU does next: INTR, NMI, INIT, SIPI. Any
    /// thread, lock-free. May be true spuriously.
    virtual bool has_event() const noexcept = 0;
    /// A maskable interrupt of sufficient priority (above TPR/PPR) is waiting.
    virtual bool intr_pending() noexcept = 0;
    /// Acknowledges it (INTA cycle: the local APIC first, then the PIC through LINT0/ExtINT) and
    /// returns the vector; nothing when it went away meanwhile.
    virtual std::optional<std::uint8_t> acknowledge_intr() noexcept = 0;
    /// Takes the pending event of highest priority that `nmi_blocked` and `wait_for_sipi` allow; a
    /// SIPI's vector goes to `sipi_vector`. SIPI is dropped unless the CPU waits for it.
    virtual CpuEvent take_event(bool nmi_blocked, bool wait_for_sipi,
                                std::uint8_t& sipi_vector) noexcept = 0;

    /// CR8 = TPR[7:4].
    virtual std::uint8_t cr8() const noexcept = 0;
    virtual void set_cr8(std::uint8_t value) noexcept = 0;

    /// MSRs that live here: IA32_APIC_BASE, IA32_TSC_DEADLINE, 0x800..0x8ff. An empty or false
    /// answer is #GP(0) in the guest.
    virtual std::optional<std::uint64_t> read_msr(std::uint32_t index) noexcept = 0;
    virtual bool write_msr(std::uint32_t index, std::uint64_t value) noexcept = 0;

    /// Physical page of this CPU's xAPIC registers, or UINT64_MAX when disabled or in x2APIC mode.
    /// Each CPU sees its own registers there, so engines come here and not to the AddressSpace.
    virtual std::uint64_t mmio_page() const noexcept = 0;
    virtual std::uint32_t mmio_read(std::uint32_t offset) noexcept = 0;
    virtual void mmio_write(std::uint32_t offset, std::uint32_t value) noexcept = 0;

    /// INIT arrived at the CPU: reset the controller as the manual says (Intel SDM Vol. 3A
    /// §11.4.7.3).
    virtual void init_reset() noexcept = 0;
};

} // namespace doppel::cpu
