// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Fixed hardware of ACPI (ACPI 6.5 §4.8): PM1a event and control blocks, PM timer, GPE0 block.
/// Modelled: status and enable registers with the SCI wire, power button, 24- and 32-bit PM timer
/// at 3.579545 MHz with its overflow interrupt, 32 general-purpose events, soft-off.
/// Not modelled: legacy mode (SCI_EN is always set: the FADT names no SMI command port), sleep
/// states other than soft-off, PM1b, wake-up.
#include <array>
#include <functional>
#include <memory>

#include "base/clock.hpp"
#include "bus/interrupt.hpp"
#include "devices/device.hpp"
#include "devices/frequency.hpp"
#include "devices/io_range.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex, which is free when power_off is called.
class AcpiPm final : public StatefulDevice<AcpiPm> {
public:
    static constexpr Frequency kTimerFrequency{3'579'545}; // ACPI 6.5 §4.8.3.3
    static constexpr std::uint8_t kSleepTypeSoftOff = 5;   // \_S5 of the DSDT
    static constexpr unsigned kGpeCount = 32;
    enum class TimerWidth : std::uint8_t { Bits24 = 24, Bits32 = 32 }; // FADT flag TMR_VAL_EXT

    /// The PM block as the FADT describes it: offsets of the four fields, bytes.
    static constexpr std::uint64_t kPm1Event = 0, kPm1Control = 4, kTimer = 8, kBlockBytes = 12;
    static constexpr std::uint64_t kGpeBytes =
        std::uint64_t{kGpeCount} / 8 * 2; // status, then enable

    struct State {
        std::uint16_t pm1_status = 0;
        std::uint16_t pm1_enable = 0;
        std::uint16_t pm1_control = 0;
        std::array<std::uint8_t, kGpeCount / 8> gpe_status{};
        std::array<std::uint8_t, kGpeCount / 8> gpe_enable{};
        std::uint64_t seen_overflows = 0; // changes of the timer's highest bit
    };
    static constexpr auto kSchema =
        state::schema("acpi-pm", 1, state::field(1, "pm1_status", &State::pm1_status),
                      state::field(2, "pm1_enable", &State::pm1_enable),
                      state::field(3, "pm1_control", &State::pm1_control),
                      state::field(4, "gpe_status", &State::gpe_status),
                      state::field(5, "gpe_enable", &State::gpe_enable),
                      state::field(6, "seen_overflows", &State::seen_overflows));

    /// `sci` is level-triggered. `power_off` runs on the vCPU's thread that asked for soft-off.
    AcpiPm(bus::IrqLine sci, base::TimerQueue& timers, TimerWidth width,
           std::function<void()> power_off);

    bus::IoHandler& block() { return block_; } // kBlockBytes; sizes 1 to 4, any alignment
    bus::IoHandler& gpe0() { return gpe0_; }   // kGpeBytes; the same

    void reset() override;
    /// Any thread: what a person does; the guest shuts down if it cares.
    void press_power_button();
    /// Any thread: an event of the platform (hot-plug and the like), 0 to kGpeCount - 1.
    void raise_gpe(unsigned number);

private:
    friend StatefulDevice<AcpiPm>;
    std::uint64_t read_block(bus::IoAccess io);
    void write_block(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_gpe(bus::IoAccess io);
    void write_gpe(bus::IoAccess io, std::uint64_t value);

    bool write_block_byte(std::uint64_t offset, std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void sync() DOPPEL_REQUIRES(mutex_);
    void update() DOPPEL_REQUIRES(mutex_); // SCI wire and timer
    std::uint64_t ticks() const { return kTimerFrequency.ticks_at(clock_.now_ns()); }
    unsigned highest_bit() const { return static_cast<unsigned>(width_) - 1; }
    void on_timer();
    void state_loaded() DOPPEL_REQUIRES(mutex_) { update(); }

    const bus::IrqLine sci_;
    const base::Clock& clock_;
    const TimerWidth width_;
    const std::function<void()> power_off_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    IoRange<AcpiPm> block_{*this, &AcpiPm::read_block, &AcpiPm::write_block};
    IoRange<AcpiPm> gpe0_{*this, &AcpiPm::read_gpe, &AcpiPm::write_gpe};
    std::unique_ptr<base::Timer> timer_; // last: its callback uses all of the above
};

} // namespace doppel::devices
