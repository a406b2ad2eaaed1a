// SPDX-License-Identifier: Apache-2.0
#pragma once
/// 8254 programmable interval timer and port 61h (Intel 82C54 data sheet, 231244-006; port 61h:
/// Intel 82371AB PIIX4 data sheet §8.5).
/// Modelled: all six modes, binary and BCD, latches, read-back, gate of channel 2, refresh bit,
/// OUT2, all computed from the VM clock; channel 0 drives an interrupt line.
/// Not modelled: the one CLK between writing a count and its load; sound. Interrupts that fall due
/// faster than they can be delivered are merged.
#include <array>
#include <memory>

#include "base/clock.hpp"
#include "bus/interrupt.hpp"
#include "devices/device.hpp"
#include "devices/frequency.hpp"
#include "devices/io_range.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex.
class Pit8254 final : public StatefulDevice<Pit8254> {
public:
    static constexpr Frequency kFrequency{1'193'182};

    struct Channel {
        std::uint16_t reload = 0; // 0 = 65536, or 10000 in BCD
        std::uint16_t next_reload = 0;
        bool has_next_reload = false; // modes 2 and 3: from the end of this period on
        std::uint8_t mode = 0;        // 0..5
        std::uint8_t access = 3;      // 1 low byte, 2 high byte, 3 low then high
        bool bcd = false;
        bool gate = true;
        bool has_count = false;       // a count was written since the control word
        bool counting = false;        // the counting element moves or has moved
        bool frozen = false;          // by the gate: `start_tick` holds elapsed ticks instead
        std::uint64_t start_tick = 0; // absolute
        std::uint64_t rises_seen = 0; // rising edges of OUT since start_tick already delivered
        bool write_high_next = false; // access 3: the low byte waits in write_low
        std::uint8_t write_low = 0;
        bool read_high_next = false;
        std::uint8_t latched_bytes = 0; // of latched_count still to be read
        std::uint16_t latched_count = 0;
        bool has_latched_status = false;
        std::uint8_t latched_status = 0;
        base::Result<void> validate() const;
        static constexpr auto kSchema = state::schema(
            "channel-8254", 1, state::field(1, "reload", &Channel::reload),
            state::field(2, "next_reload", &Channel::next_reload),
            state::field(3, "has_next_reload", &Channel::has_next_reload),
            state::field(4, "mode", &Channel::mode), state::field(5, "access", &Channel::access),
            state::field(6, "bcd", &Channel::bcd), state::field(7, "gate", &Channel::gate),
            state::field(8, "has_count", &Channel::has_count),
            state::field(9, "counting", &Channel::counting),
            state::field(10, "frozen", &Channel::frozen),
            state::field(11, "start_tick", &Channel::start_tick),
            state::field(12, "rises_seen", &Channel::rises_seen),
            state::field(13, "write_high_next", &Channel::write_high_next),
            state::field(14, "write_low", &Channel::write_low),
            state::field(15, "read_high_next", &Channel::read_high_next),
            state::field(16, "latched_bytes", &Channel::latched_bytes),
            state::field(17, "latched_count", &Channel::latched_count),
            state::field(18, "has_latched_status", &Channel::has_latched_status),
            state::field(19, "latched_status", &Channel::latched_status));
    };
    struct State {
        std::array<Channel, 3> channels{};
        std::uint8_t port61 = 0; // bits 3:0 as written
    };
    static constexpr auto kSchema =
        state::schema("pit-8254", 1, state::field(1, "channels", &State::channels),
                      state::field(2, "port61", &State::port61));

    Pit8254(bus::IrqLine irq0, base::TimerQueue& timers);

    bus::IoHandler& counters() { return counters_; } // ports 40h to 43h: 4 bytes
    bus::IoHandler& port61() { return port61_; }     // 1 byte

    void reset() override;

private:
    friend StatefulDevice<Pit8254>;
    std::uint64_t read_counter(bus::IoAccess io);
    void write_counter(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_port61(bus::IoAccess io);
    void write_port61(bus::IoAccess io, std::uint64_t value);

    void write_control(std::uint8_t value, std::uint64_t tick) DOPPEL_REQUIRES(mutex_);
    void read_back(std::uint8_t command, std::uint64_t tick) DOPPEL_REQUIRES(mutex_);
    void on_timer();
    void update_irq(std::uint64_t tick, std::uint64_t earliest_ns = 0) DOPPEL_REQUIRES(mutex_);
    std::uint64_t now_tick() const { return kFrequency.ticks_at(clock_.now_ns()); }
    void state_loaded() DOPPEL_REQUIRES(mutex_) { update_irq(now_tick()); }

    const bus::IrqLine irq0_;
    const base::Clock& clock_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    IoRange<Pit8254> counters_{*this, &Pit8254::read_counter, &Pit8254::write_counter};
    IoRange<Pit8254> port61_{*this, &Pit8254::read_port61, &Pit8254::write_port61};
    std::unique_ptr<base::Timer> timer_; // last: its callback uses all of the above
};

} // namespace doppel::devices
