// SPDX-License-Identifier: Apache-2.0
#pragma once
/// PC real-time clock and CMOS RAM, ports 70h/71h (Motorola MC146818A data sheet, 1984), with the
/// century at index 32h as ACPI's FADT says.
/// Modelled: calendar in BCD and binary, 12 and 24 hours, setting the clock, update cycle with UIP,
/// alarm, periodic and update-ended interrupts, divider reset, 128 bytes of battery-backed RAM.
/// Not modelled: daylight saving (DSE), the square-wave pin, other time bases than 32.768 kHz.
#include <array>
#include <memory>

#include "base/clock.hpp"
#include "bus/interrupt.hpp"
#include "bus/io_handler.hpp"
#include "devices/device.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex.
class CmosRtc final : public StatefulDevice<CmosRtc>, public bus::IoHandler {
public:
    struct State {
        std::uint8_t index = 0;              // last value written to port 70h, bits 6:0
        std::array<std::uint8_t, 128> ram{}; // while the clock runs, the time is not in here
        std::uint64_t offset_seconds = 0;    // guest's time - host's calendar, two's complement
        std::uint32_t offset_ns = 0;
        std::uint8_t weekday_shift = 0; // days that the guest's weekday is ahead of the date's
        std::uint64_t seen_second = 0;  // the guest's second up to which flags are set
        std::uint64_t seen_period = 0;  // the same for periodic interrupts
        base::Result<void> validate() const;
    };
    static constexpr auto kSchema = state::schema(
        "cmos-rtc", 1, state::field(1, "index", &State::index), state::field(2, "ram", &State::ram),
        state::field(3, "offset_seconds", &State::offset_seconds),
        state::field(4, "offset_ns", &State::offset_ns),
        state::field(5, "weekday_shift", &State::weekday_shift),
        state::field(6, "seen_second", &State::seen_second),
        state::field(7, "seen_period", &State::seen_period));

    CmosRtc(bus::IrqLine irq8, const base::WallClock& wall, base::TimerQueue& timers);

    void reset() override; // RAM and time survive: they have a battery
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

    /// What firmware finds in the RAM, from index 0eh on. Board only, before the VM runs.
    void set_ram(std::uint8_t index, std::uint8_t value);

private:
    friend StatefulDevice<CmosRtc>;
    struct Moment {
        std::int64_t second; // since 1970, as the guest counts
        std::uint32_t ns;
    };
    Moment now() const DOPPEL_REQUIRES(mutex_);
    bool is_counting() const DOPPEL_REQUIRES(mutex_);
    bool has_divider_reset() const DOPPEL_REQUIRES(mutex_);
    std::uint64_t period_ticks() const DOPPEL_REQUIRES(mutex_); // of 32.768 kHz, 0 = none

    std::uint8_t read_register(std::uint8_t index) DOPPEL_REQUIRES(mutex_);
    void write_register(std::uint8_t index, std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void write_a(std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void write_b(std::uint8_t value) DOPPEL_REQUIRES(mutex_);

    std::uint8_t to_register(unsigned value) const DOPPEL_REQUIRES(mutex_);
    unsigned from_register(std::uint8_t value) const DOPPEL_REQUIRES(mutex_);
    std::uint8_t hour_to_register(unsigned hour) const DOPPEL_REQUIRES(mutex_);
    unsigned hour_from_register(std::uint8_t value) const DOPPEL_REQUIRES(mutex_);
    /// Writes the running time into the RAM, or sets the running time from it.
    void store_time() DOPPEL_REQUIRES(mutex_);
    void adopt_time(std::uint32_t ns) DOPPEL_REQUIRES(mutex_);

    std::uint64_t seconds_to_alarm(std::uint64_t second_of_day) const DOPPEL_REQUIRES(mutex_);
    void sync() DOPPEL_REQUIRES(mutex_); // sets the flags that fell due since the last call
    void update_irq() DOPPEL_REQUIRES(mutex_);
    void arm() DOPPEL_REQUIRES(mutex_);
    void on_timer();
    void state_loaded() DOPPEL_REQUIRES(mutex_) { arm(); }

    const bus::IrqLine irq8_;
    const base::WallClock& wall_; // owned by the Machine
    const base::Clock& clock_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    std::unique_ptr<base::Timer> timer_; // last: its callback uses all of the above
};

} // namespace doppel::devices
