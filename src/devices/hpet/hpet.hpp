// SPDX-License-Identifier: Apache-2.0
#pragma once
/// High precision event timers (IA-PC HPET Specification 1.0a, October 2004).
/// Modelled: one block, 64-bit main counter at 100 MHz, three comparators, periodic and one-shot,
/// 32-bit mode, level and edge, interrupt routing, legacy replacement of the 8254 and the RTC.
/// Not modelled: FSB delivery (the capability is not shown). Periodic interrupts that fall due
/// faster than they can be delivered are merged.
#include <array>
#include <atomic>
#include <memory>

#include "base/clock.hpp"
#include "bus/interrupt.hpp"
#include "bus/io_handler.hpp"
#include "devices/device.hpp"
#include "devices/frequency.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex.
class Hpet final
    : public StatefulDevice<Hpet>, public bus::IoHandler {
public:
    static constexpr std::uint64_t kBytes = 0x400; // registers; the rest of the page is not ours
    static constexpr bus::AccessRules kRules{4, 8, false};
    static constexpr Frequency kFrequency{100'000'000};
    static constexpr std::size_t kTimers = 3;

    struct Comparator {
        std::uint64_t config = 0;      // writable bits of the configuration register
        std::uint64_t value = ~0ull;   // comparator
        std::uint64_t period = 0;      // last value written in periodic mode
        std::uint64_t done_until = 0;  // main counter up to which matches have been acted upon
        static constexpr auto kSchema = state::schema(
            "hpet-comparator", 1, state::field(1, "config", &Comparator::config),
            state::field(2, "value", &Comparator::value),
            state::field(3, "period", &Comparator::period),
            state::field(4, "done_until", &Comparator::done_until));
    };
    struct State {
        std::uint64_t config = 0;        // bit 0 ENABLE_CNF, bit 1 LEG_RT_CNF
        std::uint64_t status = 0;        // general interrupt status
        std::uint64_t counter = 0;       // main counter at start_tick, or as it was halted
        std::uint64_t start_tick = 0;    // of VM time
        std::uint8_t legacy_levels = 0;  // of the wires from 8254 (bit 0) and RTC (bit 1)
        std::array<Comparator, kTimers> comparators{};
        base::Result<void> validate() const;
    };
    static constexpr auto kSchema = state::schema(
        "hpet", 1, state::field(1, "config", &State::config),
        state::field(2, "status", &State::status), state::field(3, "counter", &State::counter),
        state::field(4, "start_tick", &State::start_tick),
        state::field(5, "legacy_levels", &State::legacy_levels),
        state::field(6, "comparators", &State::comparators));

    /// Where interrupts go. `irq0` and `irq8` are the ISA wires that 8254 and RTC would drive.
    struct Wires {
        bus::IrqSink* io_apic = nullptr;      // inputs by number; outlives us
        std::uint32_t routes = 0x00f0'0000;   // Tn_INT_ROUTE_CAP: inputs the board lets us use
        bus::IrqLine irq0{};
        bus::IrqLine irq8{};
    };
    Hpet(Wires wires, base::TimerQueue& timers);

    /// The 8254's and the RTC's way to irq0 and irq8: cut while LEG_RT_CNF is set. Lock-free.
    bus::IrqLine from_pit() { return {legacy_, 0}; }
    bus::IrqLine from_rtc() { return {legacy_, 1}; }

    void reset() override;
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

private:
    friend StatefulDevice<Hpet>;
    struct LegacyInputs final : bus::IrqSink {
        Hpet& hpet;
        explicit LegacyInputs(Hpet& h) : hpet{h} {}
        void set_irq_level(std::uint32_t input, bool level) noexcept override;
    };

    const Wires wires_;
    const base::Clock& clock_;
    LegacyInputs legacy_{*this};
    State state_ DOPPEL_GUARDED_BY(mutex_);
    std::unique_ptr<base::Timer> timer_; // last: its callback uses all of the above
};

} // namespace doppel::devices
