// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/pit8254.hpp"

#include <algorithm>

namespace doppel::devices {

namespace {

using Channel = Pit8254::Channel;

constexpr std::uint64_t kRefreshNs = 15'085;       // half period of port 61h bit 4
constexpr std::uint64_t kShortestTimerNs = 10'000; // a count of 1 must not occupy the host

std::uint16_t to_bcd(std::uint64_t value) {
    std::uint64_t out = 0;
    for (unsigned shift = 0; shift < 16; shift += 4, value /= 10)
        out |= value % 10 << shift;
    return static_cast<std::uint16_t>(out);
}

std::uint64_t from_bcd(std::uint16_t value) {
    return (value & 0xfu) + (value >> 4 & 0xfu) * 10 + (value >> 8 & 0xfu) * 100 +
           (value >> 12 & 0xfu) * 1000;
}

bool is_periodic(const Channel& c) { return c.mode == 2 || c.mode == 3; }
bool is_hardware_triggered(const Channel& c) { return c.mode == 1 || c.mode == 5; }

/// Counts per period: 1 to 65536 (BCD: 10000).
std::uint64_t period(const Channel& c) {
    const auto value = c.bcd ? from_bcd(c.reload) : c.reload;
    return value == 0 ? (c.bcd ? 10'000 : 65'536) : value;
}

std::uint64_t elapsed(const Channel& c, std::uint64_t tick) {
    if (!c.counting)
        return 0;
    return c.frozen ? c.start_tick : tick - c.start_tick;
}

/// Level of OUT (data sheet, "Mode definitions").
bool output(const Channel& c, std::uint64_t tick) {
    if (!c.counting)
        return c.mode != 0;
    const auto n = period(c);
    const auto e = elapsed(c, tick);
    switch (c.mode) {
    case 0:
    case 1: return e >= n;
    case 2: return c.frozen || e % n != n - 1;
    case 3: return c.frozen || e % n < (n + 1) / 2;
    default: return e != n; // the strobe is one CLK long
    }
}

/// Rising edges of OUT since the count was loaded.
std::uint64_t rises(const Channel& c, std::uint64_t tick) {
    if (!c.counting)
        return 0;
    const auto n = period(c);
    const auto e = elapsed(c, tick);
    if (is_periodic(c))
        return c.frozen ? c.rises_seen : e / n;
    return e >= (c.mode >= 4 ? n + 1 : n) ? 1 : 0;
}

/// Tick of the next rising edge, or UINT64_MAX.
std::uint64_t next_rise(const Channel& c, std::uint64_t tick) {
    if (!c.counting || c.frozen)
        return UINT64_MAX;
    const auto n = period(c);
    const auto e = elapsed(c, tick);
    const auto wait = is_periodic(c) ? n - e % n : (c.mode >= 4 ? n + 1 : n) - e;
    const bool is_past = !is_periodic(c) && e >= (c.mode >= 4 ? n + 1 : n);
    return is_past ? UINT64_MAX : add_saturated(tick, wait);
}

std::uint16_t count(const Channel& c, std::uint64_t tick) {
    if (!c.counting)
        return c.reload;
    const auto n = period(c);
    const auto e = elapsed(c, tick);
    const std::uint64_t modulus = c.bcd ? 10'000 : 65'536;
    std::uint64_t value = 0;
    if (c.mode == 2) {
        value = n - e % n;
    } else if (c.mode == 3) { // counts by two, once per half period
        const auto half = (n + 1) / 2;
        const auto in_period = e % n;
        value = (n & ~1ull) - 2 * (in_period < half ? in_period : in_period - half);
    } else {
        value = n + modulus - e % modulus; // goes on below zero
    }
    value %= modulus;
    return c.bcd ? to_bcd(value) : static_cast<std::uint16_t>(value);
}

void start(Channel& c, std::uint64_t tick) {
    c.counting = true;
    c.frozen = !c.gate && !is_hardware_triggered(c);
    c.start_tick = c.frozen ? 0 : tick;
    c.rises_seen = 0;
    c.has_next_reload = false;
}

/// A count that was written during a period of mode 2 or 3 holds from the period's end on.
void apply_next_reload(Channel& c, std::uint64_t tick) {
    if (!c.has_next_reload || !c.counting || c.frozen)
        return;
    const auto n = period(c);
    if (c.rises_seen >= elapsed(c, tick) / n)
        return;
    const auto boundary = c.start_tick + (c.rises_seen + 1) * n;
    c.reload = c.next_reload;
    c.has_next_reload = false;
    c.start_tick = boundary - std::min(boundary, period(c)); // so that the edge there still counts
    c.rises_seen = 0;
}

void write_count(Channel& c, std::uint16_t value, std::uint64_t tick) {
    c.has_count = true;
    if (is_periodic(c) && c.counting) {
        c.next_reload = value;
        c.has_next_reload = true;
        c.rises_seen = rises(c, tick);
        return;
    }
    if (is_hardware_triggered(c) && c.counting) { // the next trigger loads it
        c.next_reload = value;
        c.has_next_reload = true;
        return;
    }
    c.reload = value;
    if (!is_hardware_triggered(c))
        start(c, tick);
}

void write_byte(Channel& c, std::uint8_t value, std::uint64_t tick) {
    switch (c.access) {
    case 1: write_count(c, value, tick); return;
    case 2: write_count(c, static_cast<std::uint16_t>(value << 8), tick); return;
    default: break;
    }
    if (!c.write_high_next) {
        c.write_low = value;
        c.write_high_next = true;
        if (c.mode == 0)
            c.counting = false; // the first byte stops the count (data sheet, mode 0)
        return;
    }
    c.write_high_next = false;
    write_count(c, static_cast<std::uint16_t>(value << 8 | c.write_low), tick);
}

std::uint8_t read_byte(Channel& c, std::uint64_t tick) {
    if (c.has_latched_status) {
        c.has_latched_status = false;
        return c.latched_status;
    }
    if (c.latched_bytes == 0) {
        const auto value = count(c, tick);
        if (c.access == 3)
            c.read_high_next = !c.read_high_next;
        const bool high = c.access == 2 || (c.access == 3 && !c.read_high_next);
        return static_cast<std::uint8_t>(high ? value >> 8 : value);
    }
    const bool high = c.access == 2 || (c.access == 3 && c.latched_bytes == 1);
    --c.latched_bytes;
    return static_cast<std::uint8_t>(high ? c.latched_count >> 8 : c.latched_count);
}

void latch_count(Channel& c, std::uint64_t tick) {
    if (c.latched_bytes != 0)
        return; // held until it is read
    c.latched_count = count(c, tick);
    c.latched_bytes = c.access == 3 ? 2 : 1;
    c.read_high_next = false;
}

void latch_status(Channel& c, std::uint64_t tick) {
    if (c.has_latched_status)
        return;
    const bool null_count = !c.counting || c.has_next_reload;
    c.has_latched_status = true;
    c.latched_status =
        static_cast<std::uint8_t>((output(c, tick) ? 0x80 : 0) | (null_count ? 0x40 : 0) |
                                  c.access << 4 | c.mode << 1 | (c.bcd ? 1 : 0));
}

/// Effects of the gate by mode (data sheet, figure 21, "Gate pin operations summary").
void set_gate(Channel& c, bool level, std::uint64_t tick) {
    const bool rose = level && !c.gate;
    const bool fell = !level && c.gate;
    c.gate = level;
    if (rose && is_hardware_triggered(c) && c.has_count) {
        if (c.has_next_reload)
            c.reload = c.next_reload;
        start(c, tick);
    } else if (rose && is_periodic(c) && c.counting) {
        if (c.has_next_reload)
            c.reload = c.next_reload;
        start(c, tick);
    } else if (rose && c.frozen) {
        c.frozen = false;
        c.start_tick = tick - c.start_tick;
    } else if (fell && c.counting && !c.frozen && !is_hardware_triggered(c)) {
        c.start_tick = elapsed(c, tick);
        c.frozen = true;
    }
}

} // namespace

base::Result<void> Pit8254::Channel::validate() const {
    if (mode > 5 || access < 1 || access > 3 || latched_bytes > 2)
        return base::fail(base::Errc::Corrupt, "8254: no such mode, access or latch");
    return {};
}

Pit8254::Pit8254(bus::IrqLine irq0, base::TimerQueue& timers)
    : irq0_{irq0}, clock_{timers.clock()}, timer_{timers.create_timer([this] { on_timer(); })} {
    reset();
}

void Pit8254::reset() {
    const base::MutexLock lock{mutex_};
    timer_->cancel();
    state_ = {};
    state_.channels[2].gate = false; // port 61h bit 0
}

void Pit8254::on_timer() {
    const base::MutexLock lock{mutex_};
    update_irq(now_tick(), clock_.now_ns() + kShortestTimerNs);
}

/// Delivers what channel 0's OUT did since the last call and arms the timer for its next
/// rise, but not before `earliest_ns`.
void Pit8254::update_irq(std::uint64_t tick, std::uint64_t earliest_ns) {
    auto& c = state_.channels[0];
    apply_next_reload(c, tick);
    const auto seen = rises(c, tick);
    if (seen > c.rises_seen) {
        c.rises_seen = seen;
        irq0_.set_level(false);
        irq0_.set_level(true);
    }
    irq0_.set_level(output(c, tick));
    const auto next = next_rise(c, tick);
    if (next == UINT64_MAX)
        timer_->cancel();
    else
        timer_->arm(std::max(kFrequency.ns_at(next), earliest_ns));
}

std::uint64_t Pit8254::read_counter(bus::IoAccess io) {
    if (io.offset >= 3)
        return 0xff; // the control word register is write-only
    const base::MutexLock lock{mutex_};
    auto& c = state_.channels[io.offset];
    const auto tick = now_tick();
    apply_next_reload(c, tick);
    return read_byte(c, tick);
}

void Pit8254::write_counter(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    const auto tick = now_tick();
    const auto byte = static_cast<std::uint8_t>(value);
    if (io.offset >= 3) {
        write_control(byte, tick);
    } else {
        apply_next_reload(state_.channels[io.offset], tick);
        write_byte(state_.channels[io.offset], byte, tick);
    }
    update_irq(tick);
}

void Pit8254::write_control(std::uint8_t value, std::uint64_t tick) {
    const auto select = value >> 6;
    if (select == 3) {
        read_back(value, tick);
        return;
    }
    auto& c = state_.channels[static_cast<std::size_t>(select)];
    apply_next_reload(c, tick);
    const auto access = static_cast<std::uint8_t>(value >> 4 & 3);
    if (access == 0) {
        latch_count(c, tick);
        return;
    }
    const bool gate = c.gate;
    const auto mode = value >> 1 & 7;
    c = {};
    c.gate = gate;
    c.access = access;
    c.mode = static_cast<std::uint8_t>(mode > 5 ? mode - 4 : mode); // 6, 7 are 2, 3
    c.bcd = (value & 1) != 0;
}

void Pit8254::read_back(std::uint8_t command, std::uint64_t tick) {
    for (unsigned i = 0; i < 3; ++i) {
        if ((command >> 1 & 1u << i) == 0)
            continue;
        auto& c = state_.channels[i];
        apply_next_reload(c, tick);
        if ((command & 0x20) == 0)
            latch_count(c, tick);
        if ((command & 0x10) == 0)
            latch_status(c, tick);
    }
}

/// Bit 0 gate of channel 2, 1 speaker, 2 and 3 error enables, 4 refresh, 5 OUT2.
std::uint64_t Pit8254::read_port61(bus::IoAccess) {
    const base::MutexLock lock{mutex_};
    auto& c = state_.channels[2];
    const auto tick = now_tick();
    apply_next_reload(c, tick);
    const auto refresh = clock_.now_ns() / kRefreshNs & 1;
    return state_.port61 | refresh << 4 | (output(c, tick) ? 0x20u : 0u);
}

void Pit8254::write_port61(bus::IoAccess, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    auto& c = state_.channels[2];
    const auto tick = now_tick();
    apply_next_reload(c, tick);
    state_.port61 = value & 0x0f;
    set_gate(c, (value & 1) != 0, tick);
}

} // namespace doppel::devices
