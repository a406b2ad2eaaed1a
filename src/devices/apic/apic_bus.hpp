// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The wires between local APICs, IOAPICs and MSI senders: finds who a message is for (Intel SDM
/// Vol. 3A, Sept. 2023, §11.6.2 and §11.11).
/// Modelled: physical and logical destinations (flat, cluster, x2APIC cluster), broadcast, lowest
/// priority by processor priority. Not modelled: interrupt remapping, SMI.
#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "bus/interrupt.hpp"
#include "cpu/apic_host.hpp"
#include "devices/apic/apic_message.hpp"

namespace doppel::devices {

class LocalApic;

/// Told about the end of level-triggered interrupts: an IOAPIC. Any thread.
class EoiListener {
public:
    virtual ~EoiListener() = default;
    virtual void end_of_interrupt(std::uint8_t vector) noexcept = 0;
};

/// Any thread, lock-free; except add(), which is for the board before any vCPU runs.
class ApicBus final : public bus::MsiSink, public cpu::EoiSink {
public:
    /// Local APICs and IOAPICs add themselves; once more does nothing.
    void add(LocalApic& apic) { add_once(apics_, apic); }
    void add(EoiListener& listener) { add_once(listeners_, listener); }

    /// The local APICs are the engine's: messages go there. Board, before any vCPU runs.
    void host_in(cpu::ApicHost& engine);
    /// What an IOAPIC input sends while it is level-triggered; nothing when it is not. Only hosted
    /// APICs want to know.
    void set_level_route(std::uint32_t input, const std::optional<ApicMessage>& message) noexcept;

    void deliver(const ApicMessage& message) noexcept;
    /// ICR shorthands 2 and 3: everybody, or everybody but `except`.
    void deliver_to_all(const ApicMessage& message, const LocalApic* except) noexcept;
    void broadcast_eoi(std::uint8_t vector) noexcept override;

    void send_msi(bus::MsiMessage message) noexcept override;

private:
    template <typename T> static void add_once(std::vector<T*>& all, T& one) {
        if (std::find(all.begin(), all.end(), &one) == all.end())
            all.push_back(&one);
    }
    void deliver_to_lowest(const ApicMessage& message) noexcept;

    cpu::ApicHost* host_ = nullptr;       // of the engine, if the local APICs are there
    std::vector<LocalApic*> apics_;       // owned by the Machine, usually in order of APIC id
    std::vector<EoiListener*> listeners_; // the same
    std::atomic<std::uint32_t> next_{0};  // breaks ties of lowest priority in turn
};

} // namespace doppel::devices
