// SPDX-License-Identifier: Apache-2.0
#include "devices/hpet/hpet.hpp"

#include <algorithm>

#include "devices/frequency.hpp"

namespace doppel::devices {

namespace {

// Registers (HPET 1.0a §2.3.1).
constexpr std::uint64_t kCapabilities = 0x000;
constexpr std::uint64_t kConfiguration = 0x010;
constexpr std::uint64_t kStatus = 0x020;
constexpr std::uint64_t kCounter = 0x0f0;
constexpr std::uint64_t kFirstTimer = 0x100;
constexpr std::uint64_t kTimerStride = 0x20;

constexpr std::uint64_t kFemtosecondsPerNs = 1'000'000;
constexpr std::uint64_t kCapabilityBits =
    Hpet::kTickNs * kFemtosecondsPerNs << 32 | Hpet::kEventTimerBlockId;

// Comparator configuration (HPET 1.0a §2.3.8).
constexpr std::uint64_t INT_TYPE_LEVEL = 1u << 1;
constexpr std::uint64_t INT_ENB = 1u << 2;
constexpr std::uint64_t TYPE_PERIODIC = 1u << 3;
constexpr std::uint64_t PER_INT_CAP = 1u << 4;
constexpr std::uint64_t SIZE_CAP = 1u << 5;
constexpr std::uint64_t VAL_SET = 1u << 6;
constexpr std::uint64_t MODE_32 = 1u << 8;
constexpr unsigned kRouteShift = 9;
constexpr std::uint64_t kRouteBits = 0x1f << kRouteShift;
constexpr std::uint64_t FSB_EN = 1u << 14;
constexpr std::uint64_t FSB_CAP = 1u << 15;
constexpr std::uint64_t kWritable =
    INT_TYPE_LEVEL | INT_ENB | TYPE_PERIODIC | VAL_SET | MODE_32 | kRouteBits;

constexpr std::uint64_t kShortestTimerNs = 10'000; // a short period must not occupy the host thread

std::uint64_t route_of(const Hpet::Comparator& c) {
    return (c.configuration & kRouteBits) >> kRouteShift;
}

} // namespace

// --- legacy replacement -----------------------------------------------------------------------

void Hpet::LegacyGate::set_irq_level(std::uint32_t input, bool level) noexcept {
    if (input >= outputs_.size())
        return;
    levels_[input].store(level);
    if (is_open_.load())
        outputs_[input].set_level(level);
}

void Hpet::LegacyGate::set_open(bool open) noexcept {
    if (is_open_.exchange(open) == open)
        return;
    for (std::size_t i = 0; i < outputs_.size(); ++i)
        outputs_[i].set_level(open && levels_[i].load());
}

// --- life -------------------------------------------------------------------------------------

Hpet::Hpet(const Wires& wires, base::TimerQueue& timers)
    : wires_{wires}, clock_{timers.clock()}, gate_{wires},
      timer_{timers.create_timer([this] { on_timer(); })} {}

void Hpet::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
    gate_.set_open(true);
    timer_->cancel();
}

void Hpet::state_loaded() {
    gate_.set_open((state_.configuration & 2) == 0);
    arm(0);
}

// --- the counter and its comparators ----------------------------------------------------------

std::uint64_t Hpet::counter() const {
    if (!is_enabled())
        return state_.counter;
    const auto now = clock_.now_ns();
    return state_.counter + (now > state_.start_ns ? (now - state_.start_ns) / kTickNs : 0);
}

std::uint64_t Hpet::distance(std::size_t index, std::uint64_t from) const {
    const auto& c = state_.comparators[index];
    const auto difference = c.value - from;
    if ((c.configuration & MODE_32) == 0)
        return difference == 0 ? UINT64_MAX : difference;
    const auto low = difference & 0xffff'ffff;
    return low == 0 ? 1ull << 32 : low;
}

void Hpet::sync() {
    if (!is_enabled())
        return;
    const auto now = counter();
    const auto passed = now - state_.seen_counter;
    for (std::size_t i = 0; i < kTimers; ++i) {
        const auto wait = distance(i, state_.seen_counter);
        if (wait > passed)
            continue;
        auto& c = state_.comparators[i];
        if ((c.configuration & TYPE_PERIODIC) != 0 && c.period != 0)
            c.value += ((passed - wait) / c.period + 1) * c.period;
        fire(i);
    }
    state_.seen_counter = now;
}

void Hpet::drive(std::size_t index, bool level) {
    const auto& c = state_.comparators[index];
    if (is_legacy(index))
        (index == 0 ? wires_.irq0 : wires_.irq8).set_level(level);
    else if (const auto route = route_of(c);
             wires_.io_apic != nullptr && (wires_.routes >> route & 1) != 0)
        wires_.io_apic->set_irq_level(static_cast<std::uint32_t>(route), level);
}

void Hpet::fire(std::size_t index) {
    const auto& c = state_.comparators[index];
    const bool is_level = (c.configuration & INT_TYPE_LEVEL) != 0;
    if (is_level)
        state_.status |= 1ull << index; // also without INT_ENB (HPET 1.0a §2.3.6)
    if ((c.configuration & INT_ENB) == 0)
        return;
    if ((c.configuration & FSB_EN) != 0 && wires_.msi != nullptr && !is_legacy(index)) {
        wires_.msi->send_msi({c.message >> 32, static_cast<std::uint32_t>(c.message)});
        return;
    }
    drive(index, true);
    if (!is_level)
        drive(index, false);
}

/// Not before `earliest_ns`.
void Hpet::arm(std::uint64_t earliest_ns) {
    auto nearest = UINT64_MAX;
    for (std::size_t i = 0; i < kTimers && is_enabled(); ++i)
        if ((state_.comparators[i].configuration & INT_ENB) != 0)
            nearest = std::min(nearest, distance(i, state_.seen_counter));
    // Ticks since start_ns, so that the deadline is the tick's own beginning.
    const auto ticks = add_saturated(state_.seen_counter - state_.counter, nearest);
    if (nearest == UINT64_MAX || ticks > UINT64_MAX / kTickNs) {
        timer_->cancel();
        return;
    }
    timer_->arm(std::max(add_saturated(state_.start_ns, ticks * kTickNs), earliest_ns));
}

void Hpet::on_timer() {
    const base::MutexLock lock{mutex_};
    sync();
    arm(clock_.now_ns() + kShortestTimerNs);
}

// --- registers --------------------------------------------------------------------------------

std::uint64_t Hpet::io_read(bus::IoAccess io) {
    const base::MutexLock lock{mutex_};
    sync();
    return read_register(io.offset & ~7ull) >> (io.offset & 7) * 8;
}

void Hpet::io_write(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    sync();
    const auto shift = (io.offset & 7) * 8;
    const auto mask = io.size == 8 ? ~0ull : 0xffff'ffffull << shift;
    write_register(io.offset & ~7ull, value << shift, mask);
    arm(0);
}

std::uint64_t Hpet::read_register(std::uint64_t offset) const {
    switch (offset) {
    case kCapabilities: return kCapabilityBits;
    case kConfiguration: return state_.configuration;
    case kStatus: return state_.status;
    case kCounter: return counter();
    default: break;
    }
    const auto index = (offset - kFirstTimer) / kTimerStride;
    if (offset < kFirstTimer || index >= kTimers)
        return 0;
    const auto& c = state_.comparators[index];
    switch (offset % kTimerStride) {
    case 0x00:
        return c.configuration | PER_INT_CAP | SIZE_CAP | std::uint64_t{wires_.routes} << 32 |
               (wires_.msi != nullptr ? FSB_CAP : 0);
    case 0x08: return (c.configuration & MODE_32) != 0 ? c.value & 0xffff'ffff : c.value;
    case 0x10: return c.message;
    default: return 0;
    }
}

/// `value` counts where `mask` has ones; the other bits of the register stay.
void Hpet::write_register(std::uint64_t offset, std::uint64_t value, std::uint64_t mask) {
    const auto merge = [&](std::uint64_t old) { return (old & ~mask) | (value & mask); };
    switch (offset) {
    case kConfiguration: write_configuration(merge(state_.configuration)); return;
    case kStatus:
        for (std::size_t i = 0; i < kTimers; ++i)
            if ((value & mask & state_.status & 1ull << i) != 0)
                drive(i, false);
        state_.status &= ~(value & mask);
        return;
    case kCounter:
        state_.counter = merge(counter());
        state_.start_ns = clock_.now_ns();
        state_.seen_counter = state_.counter;
        return;
    default: break;
    }
    const auto index = (offset - kFirstTimer) / kTimerStride;
    if (offset < kFirstTimer || index >= kTimers)
        return;
    auto& c = state_.comparators[index];
    switch (offset % kTimerStride) {
    case 0x00: {
        if ((state_.status & 1ull << index) != 0)
            drive(index, false); // before its route may change
        const auto allowed = kWritable | (wires_.msi != nullptr ? FSB_EN : 0);
        c.configuration = merge(c.configuration) & allowed;
        if ((c.configuration & MODE_32) != 0) {
            c.value &= 0xffff'ffff;
            c.period &= 0xffff'ffff;
        }
        const auto asserted = INT_TYPE_LEVEL | INT_ENB;
        if ((state_.status & 1ull << index) != 0 && (c.configuration & asserted) == asserted)
            drive(index, true);
        break;
    }
    case 0x08: write_comparator(index, value, mask); break;
    case 0x10: c.message = merge(c.message); break;
    default: break;
    }
}

/// In periodic mode a write sets the period, and with VAL_SET the comparator as well; the next
/// write then means the period alone (HPET 1.0a §2.3.9.2.2).
void Hpet::write_comparator(std::size_t index, std::uint64_t value, std::uint64_t mask) {
    auto& c = state_.comparators[index];
    const auto merge = [&](std::uint64_t old) {
        const auto merged = (old & ~mask) | (value & mask);
        return (c.configuration & MODE_32) != 0 ? merged & 0xffff'ffff : merged;
    };
    const bool is_periodic = (c.configuration & TYPE_PERIODIC) != 0;
    if (!is_periodic || (c.configuration & VAL_SET) != 0)
        c.value = merge(c.value);
    if (is_periodic)
        c.period = merge(c.period);
    c.configuration &= ~VAL_SET;
}

void Hpet::write_configuration(std::uint64_t value) {
    value &= 3;
    const auto now = counter();
    const bool was_enabled = is_enabled();
    if ((value & 1) == 0 && was_enabled) {
        state_.counter = now;
        for (std::size_t i = 0; i < kTimers; ++i)
            if ((state_.status & 1ull << i) != 0)
                drive(i, false); // halted, no comparator interrupts
    }
    if ((value & 1) != 0 && !was_enabled)
        state_.start_ns = clock_.now_ns();
    state_.configuration = value;
    state_.seen_counter = counter();
    gate_.set_open((value & 2) == 0);
}

} // namespace doppel::devices
