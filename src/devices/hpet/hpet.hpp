// SPDX-License-Identifier: Apache-2.0
#pragma once
/// High precision event timers (IA-PC HPET Specification 1.0a, October 2004): one 64-bit counter of
/// 100 MHz, three comparators.
/// Modelled: one-shot and periodic mode, 32- and 64-bit comparators, edge, level and message (FSB)
/// interrupts, routing, legacy replacement of PIT and RTC interrupts.
/// Not modelled: a comparator that is written with the counter's very value does not match before
/// the counter comes around. Matches that follow faster than they can be delivered are merged.
#include <array>
#include <atomic>
#include <memory>

#include "base/clock.hpp"
#include "bus/interrupt.hpp"
#include "bus/io_handler.hpp"
#include "devices/device.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex.
class Hpet final : public StatefulDevice<Hpet>, public bus::IoHandler {
public:
    static constexpr std::size_t kTimers = 3;
    static constexpr std::uint64_t kTickNs = 10;
    static constexpr std::uint64_t kMappingBytes = 0x400;            // sizes 4 and 8
    static constexpr std::uint32_t kEventTimerBlockId = 0x8086'a201; // for the ACPI table

    struct Comparator {
        std::uint64_t configuration = 0; // bits the guest can write
        std::uint64_t value = ~0ull;
        std::uint64_t period = 0;
        std::uint64_t message = 0; // FSB route: data 31:0, address 63:32
        static constexpr auto kSchema = state::schema(
            "hpet-comparator", 1, state::field(1, "configuration", &Comparator::configuration),
            state::field(2, "value", &Comparator::value),
            state::field(3, "period", &Comparator::period),
            state::field(4, "message", &Comparator::message));
    };
    struct State {
        std::uint64_t configuration = 0; // bit 0 enable, bit 1 legacy replacement
        std::uint64_t status = 0;        // level-triggered comparators that interrupt
        std::uint64_t counter = 0;       // when halted, else at start_ns
        std::uint64_t start_ns = 0;
        std::uint64_t seen_counter = 0; // matches up to here have been acted upon
        std::array<Comparator, kTimers> comparators{};
    };
    static constexpr auto kSchema = state::schema(
        "hpet", 1, state::field(1, "configuration", &State::configuration),
        state::field(2, "status", &State::status), state::field(3, "counter", &State::counter),
        state::field(4, "start_ns", &State::start_ns),
        state::field(5, "seen_counter", &State::seen_counter),
        state::field(6, "comparators", &State::comparators));

    /// Where interrupts go. `irq0` and `irq8` are the ISA wires that 8254 and RTC would drive.
    struct Wires {
        bus::IrqSink* io_apic = nullptr;    // inputs by number; outlives us
        std::uint32_t routes = 0x00f0'0000; // Tn_INT_ROUTE_CAP: inputs the board lets us use
        bus::IrqLine irq0{};
        bus::IrqLine irq8{};
        bus::MsiSink* msi = nullptr; // null: FSB delivery is not offered
    };
    Hpet(const Wires& wires, base::TimerQueue& timers);

    /// PIT and RTC drive these instead of irq0 and irq8: legacy replacement cuts them off.
    bus::IrqLine from_pit() { return {gate_, 0}; }
    bus::IrqLine from_rtc() { return {gate_, 1}; }

    void reset() override;
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

private:
    friend StatefulDevice<Hpet>;
    /// Lock-free: PIT and RTC drive it with their own locks held.
    class LegacyGate final : public bus::IrqSink {
    public:
        explicit LegacyGate(const Wires& wires) : outputs_{wires.irq0, wires.irq8} {}
        void set_irq_level(std::uint32_t input, bool level) noexcept override;
        void set_open(bool open) noexcept;

    private:
        const std::array<bus::IrqLine, 2> outputs_;
        std::array<std::atomic<bool>, 2> levels_{};
        std::atomic<bool> is_open_{true};
    };

    std::uint64_t read_register(std::uint64_t offset) const DOPPEL_REQUIRES(mutex_);
    void write_register(std::uint64_t offset, std::uint64_t value, std::uint64_t mask)
        DOPPEL_REQUIRES(mutex_);
    void write_configuration(std::uint64_t value) DOPPEL_REQUIRES(mutex_);
    void write_comparator(std::size_t index, std::uint64_t value, std::uint64_t mask)
        DOPPEL_REQUIRES(mutex_);

    std::uint64_t counter() const DOPPEL_REQUIRES(mutex_);
    bool is_enabled() const DOPPEL_REQUIRES(mutex_) { return (state_.configuration & 1) != 0; }
    bool is_legacy(std::size_t index) const DOPPEL_REQUIRES(mutex_) {
        return (state_.configuration & 2) != 0 && index < 2;
    }
    /// Ticks from `from` to the next match, 1 to 2^32 or 2^64 - 1.
    std::uint64_t distance(std::size_t index, std::uint64_t from) const DOPPEL_REQUIRES(mutex_);
    void sync() DOPPEL_REQUIRES(mutex_);
    void fire(std::size_t index) DOPPEL_REQUIRES(mutex_);
    void drive(std::size_t index, bool level) DOPPEL_REQUIRES(mutex_);
    void arm(std::uint64_t earliest_ns) DOPPEL_REQUIRES(mutex_);
    void on_timer();
    void state_loaded() DOPPEL_REQUIRES(mutex_);

    const Wires wires_;
    const base::Clock& clock_;
    LegacyGate gate_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    std::unique_ptr<base::Timer> timer_; // last: its callback uses all of the above
};

} // namespace doppel::devices
