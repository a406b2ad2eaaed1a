// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/acpi_pm.hpp"

#include <algorithm>

namespace doppel::devices {

namespace {

// PM1 status and enable (ACPI 6.5 §4.8.3.1).
constexpr std::uint16_t TMR = 1u << 0;
constexpr std::uint16_t GBL = 1u << 5;
constexpr std::uint16_t PWRBTN = 1u << 8;
constexpr std::uint16_t SLPBTN = 1u << 9;
constexpr std::uint16_t RTC = 1u << 10;
constexpr std::uint16_t kEvents = TMR | GBL | PWRBTN | SLPBTN | RTC;

// PM1 control (ACPI 6.5 §4.8.3.2).
constexpr std::uint16_t SCI_EN = 1u << 0;
constexpr std::uint16_t SLP_EN = 1u << 13;
constexpr unsigned kSlpTypShift = 10;
constexpr std::uint16_t kControlBits = 0x1c02; // SLP_TYP, BM_RLD

std::uint8_t byte_of(std::uint64_t value, std::uint64_t index) {
    return index < 8 ? static_cast<std::uint8_t>(value >> (index * 8)) : std::uint8_t{0};
}

/// Replaces byte `index` of a 16-bit register.
std::uint16_t with_byte(std::uint16_t old, std::uint64_t index, std::uint8_t byte) {
    return static_cast<std::uint16_t>(index == 0 ? (old & 0xff00) | byte
                                                 : (old & 0x00ff) | byte << 8);
}

} // namespace

AcpiPm::AcpiPm(bus::IrqLine sci, base::TimerQueue& timers, TimerWidth width,
               std::function<void()> power_off)
    : sci_{sci}, clock_{timers.clock()}, width_{width}, power_off_{std::move(power_off)},
      timer_{timers.create_timer([this] { on_timer(); })} {}

void AcpiPm::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
    state_.seen_overflows = ticks() >> highest_bit();
    timer_->cancel();
}

/// TMR_STS is set whenever the counter's highest bit changes.
void AcpiPm::sync() {
    const auto overflows = ticks() >> highest_bit();
    if (overflows > state_.seen_overflows)
        state_.pm1_status |= TMR;
    state_.seen_overflows = overflows;
}

void AcpiPm::update() {
    sync();
    bool active = (state_.pm1_status & state_.pm1_enable) != 0;
    for (std::size_t i = 0; i < state_.gpe_status.size(); ++i)
        active = active || (state_.gpe_status[i] & state_.gpe_enable[i]) != 0;
    sci_.set_level(active);
    if ((state_.pm1_enable & TMR) != 0)
        timer_->arm(kTimerFrequency.ns_at((state_.seen_overflows + 1) << highest_bit()));
    else
        timer_->cancel();
}

void AcpiPm::on_timer() {
    const base::MutexLock lock{mutex_};
    update();
}

void AcpiPm::press_power_button() {
    const base::MutexLock lock{mutex_};
    state_.pm1_status |= PWRBTN;
    update();
}

void AcpiPm::raise_gpe(unsigned number) {
    if (number >= kGpeCount)
        return;
    const base::MutexLock lock{mutex_};
    state_.gpe_status[number / 8] |= static_cast<std::uint8_t>(1u << number % 8);
    update();
}

std::uint64_t AcpiPm::read_block(bus::IoAccess io) {
    const base::MutexLock lock{mutex_};
    sync();
    const std::uint64_t timer = ticks() & ((2ull << highest_bit()) - 1);
    const std::uint64_t low = state_.pm1_status | std::uint64_t{state_.pm1_enable} << 16 |
                              std::uint64_t{state_.pm1_control} << 32 | std::uint64_t{SCI_EN} << 32;
    std::uint64_t value = 0;
    for (unsigned i = 0; i < io.size; ++i) {
        const auto at = io.offset + i;
        const auto byte = at < kTimer ? byte_of(low, at) : byte_of(timer, at - kTimer);
        value |= std::uint64_t{byte} << (i * 8);
    }
    return value;
}

void AcpiPm::write_block(bus::IoAccess io, std::uint64_t value) {
    bool soft_off = false;
    {
        const base::MutexLock lock{mutex_};
        sync();
        for (unsigned i = 0; i < io.size; ++i)
            soft_off = write_block_byte(io.offset + i, byte_of(value, i)) || soft_off;
        update();
    }
    if (soft_off && power_off_)
        power_off_();
}

/// True when the byte asked for soft-off. Status bits are cleared by writing 1.
bool AcpiPm::write_block_byte(std::uint64_t offset, std::uint8_t value) {
    switch (offset) {
    case kPm1Event:
    case kPm1Event + 1:
        state_.pm1_status &= static_cast<std::uint16_t>(~with_byte(0, offset & 1, value));
        return false;
    case kPm1Event + 2:
    case kPm1Event + 3:
        state_.pm1_enable = with_byte(state_.pm1_enable, offset & 1, value) & kEvents;
        return false;
    case kPm1Control:
    case kPm1Control + 1: {
        const auto written = with_byte(state_.pm1_control, offset & 1, value);
        state_.pm1_control = written & kControlBits; // GBL_RLS and SLP_EN read as zero
        return offset == kPm1Control + 1 && (written & SLP_EN) != 0 &&
               (written >> kSlpTypShift & 7) == kSleepTypeSoftOff;
    }
    default: return false; // the timer is read-only
    }
}

std::uint64_t AcpiPm::read_gpe(bus::IoAccess io) {
    const base::MutexLock lock{mutex_};
    std::uint64_t value = 0;
    for (unsigned i = 0; i < io.size; ++i) {
        const auto at = io.offset + i;
        const auto half = state_.gpe_status.size();
        if (at < half)
            value |= std::uint64_t{state_.gpe_status[at]} << (i * 8);
        else if (at < 2 * half)
            value |= std::uint64_t{state_.gpe_enable[at - half]} << (i * 8);
    }
    return value;
}

void AcpiPm::write_gpe(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    for (unsigned i = 0; i < io.size; ++i) {
        const auto at = io.offset + i;
        const auto half = state_.gpe_status.size();
        if (at < half)
            state_.gpe_status[at] &= static_cast<std::uint8_t>(~byte_of(value, i));
        else if (at < 2 * half)
            state_.gpe_enable[at - half] = byte_of(value, i);
    }
    update();
}

} // namespace doppel::devices
