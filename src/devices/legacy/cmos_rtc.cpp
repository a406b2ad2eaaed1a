// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/cmos_rtc.hpp"

#include <algorithm>

#include "devices/frequency.hpp"

namespace doppel::devices {

namespace {

enum Index : std::uint8_t {
    SECONDS = 0x00,
    SECONDS_ALARM = 0x01,
    MINUTES = 0x02,
    MINUTES_ALARM = 0x03,
    HOURS = 0x04,
    HOURS_ALARM = 0x05,
    DAY_OF_WEEK = 0x06,
    DAY_OF_MONTH = 0x07,
    MONTH = 0x08,
    YEAR = 0x09,
    REG_A = 0x0a,
    REG_B = 0x0b,
    REG_C = 0x0c,
    REG_D = 0x0d,
    CENTURY = 0x32,
};

constexpr std::uint8_t A_UIP = 0x80;
constexpr std::uint8_t B_SET = 0x80;
constexpr std::uint8_t B_PIE = 0x40;
constexpr std::uint8_t B_AIE = 0x20;
constexpr std::uint8_t B_UIE = 0x10;
constexpr std::uint8_t B_SQWE = 0x08;
constexpr std::uint8_t B_DM = 0x04; // binary
constexpr std::uint8_t B_24H = 0x02;
constexpr std::uint8_t C_IRQF = 0x80;
constexpr std::uint8_t C_PF = 0x40;
constexpr std::uint8_t C_AF = 0x20;
constexpr std::uint8_t C_UF = 0x10;
constexpr std::uint8_t D_VRT = 0x80; // the battery is good
constexpr std::uint8_t kPm = 0x80;
constexpr std::uint8_t kAnyValue = 0xc0; // in an alarm register

constexpr std::uint32_t kSecondNs = 1'000'000'000;
constexpr std::uint32_t kUipNs = 244'000 + 1'984'000; // data sheet, table 6
constexpr std::uint64_t kDaySeconds = 86'400;
constexpr std::uint64_t kNever = UINT64_MAX;
constexpr std::uint64_t kFarSeconds = 1ull << 39; // more than four-digit years need
constexpr Frequency kTimeBase{32'768};

struct Date {
    std::int64_t year;
    unsigned month; // 1..12
    unsigned day;   // 1..31
};

constexpr std::int64_t floor_div(std::int64_t a, std::int64_t b) {
    return a / b - (a % b < 0 ? 1 : 0);
}

/// Days since 1970-01-01 in the Gregorian calendar; a year begins in March here, so that the leap
/// day is its last.
constexpr std::int64_t days_from(Date date) {
    const std::int64_t year = date.year - (date.month <= 2 ? 1 : 0);
    const std::int64_t era = floor_div(year, 400);
    const std::int64_t year_of_era = year - era * 400;
    const std::int64_t month = (date.month + 9) % 12;
    const std::int64_t day_of_year = (153 * month + 2) / 5 + date.day - 1;
    return era * 146'097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
           719'468;
}

constexpr Date date_from(std::int64_t days) {
    days += 719'468;
    const std::int64_t era = floor_div(days, 146'097);
    const std::int64_t day_of_era = days - era * 146'097;
    const std::int64_t year_of_era =
        (day_of_era - day_of_era / 1'460 + day_of_era / 36'524 - day_of_era / 146'096) / 365;
    const std::int64_t day_of_year =
        day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    const std::int64_t month = (5 * day_of_year + 2) / 153;
    const auto day = static_cast<unsigned>(day_of_year - (153 * month + 2) / 5 + 1);
    const auto civil = static_cast<unsigned>(month < 10 ? month + 3 : month - 9);
    return {era * 400 + year_of_era + (civil <= 2 ? 1 : 0), civil, day};
}
static_assert(days_from({1970, 1, 1}) == 0 && days_from({2000, 2, 29}) == 11'016);
static_assert(date_from(11'016).month == 2 && date_from(11'016).day == 29);

bool is_time(std::uint8_t index) {
    return index == CENTURY || (index <= YEAR && index != SECONDS_ALARM && index != MINUTES_ALARM &&
                                index != HOURS_ALARM);
}

} // namespace

base::Result<void> CmosRtc::State::validate() const {
    const bool near = offset_seconds < kFarSeconds || offset_seconds > ~kFarSeconds;
    if (index > 127 || offset_ns >= kSecondNs || weekday_shift > 6 || !near)
        return base::fail(base::Errc::Corrupt, "RTC: index, offset or weekday out of range");
    return {};
}

CmosRtc::CmosRtc(bus::IrqLine irq8, const base::WallClock& wall, base::TimerQueue& timers)
    : irq8_{irq8}, wall_{wall}, clock_{timers.clock()},
      timer_{timers.create_timer([this] { on_timer(); })} {
    const base::MutexLock lock{mutex_};
    state_.ram[REG_A] = 0x26; // 32.768 kHz, 1024 Hz
    state_.ram[REG_B] = B_24H;
    state_.ram[REG_D] = D_VRT;
    state_.seen_second = static_cast<std::uint64_t>(now().second);
}

void CmosRtc::reset() {
    const base::MutexLock lock{mutex_};
    sync();
    state_.index = 0;
    state_.ram[REG_B] &= static_cast<std::uint8_t>(~(B_PIE | B_AIE | B_UIE | B_SQWE));
    state_.ram[REG_C] = 0;
    timer_->cancel();
}

void CmosRtc::set_ram(std::uint8_t index, std::uint8_t value) {
    const base::MutexLock lock{mutex_};
    if (index > REG_D && index < state_.ram.size())
        state_.ram[index] = value;
}

// --- time -------------------------------------------------------------------------------------

CmosRtc::Moment CmosRtc::now() const {
    const auto host = wall_.now();
    const auto ns = host.nanoseconds % kSecondNs + state_.offset_ns;
    const auto seconds = static_cast<std::uint64_t>(host.seconds) + state_.offset_seconds;
    return {static_cast<std::int64_t>(seconds + ns / kSecondNs), ns % kSecondNs};
}

bool CmosRtc::has_divider_reset() const { return (state_.ram[REG_A] & 0x60) == 0x60; }

bool CmosRtc::is_counting() const {
    return (state_.ram[REG_B] & B_SET) == 0 && !has_divider_reset();
}

/// Rate select (data sheet, table 5): 1 and 2 are 256 and 128 Hz, n is 65536 Hz / 2^n.
std::uint64_t CmosRtc::period_ticks() const {
    const unsigned rate = state_.ram[REG_A] & 0x0fu;
    if (rate == 0 || has_divider_reset())
        return 0;
    return 1ull << ((rate <= 2 ? rate + 7 : rate) - 1);
}

std::uint8_t CmosRtc::to_register(unsigned value) const {
    const bool binary = (state_.ram[REG_B] & B_DM) != 0;
    return static_cast<std::uint8_t>(binary ? value : value / 10 % 10 << 4 | value % 10);
}

unsigned CmosRtc::from_register(std::uint8_t value) const {
    const bool binary = (state_.ram[REG_B] & B_DM) != 0;
    return binary ? value : (value >> 4) * 10u + (value & 0x0f);
}

std::uint8_t CmosRtc::hour_to_register(unsigned hour) const {
    if ((state_.ram[REG_B] & B_24H) != 0)
        return to_register(hour);
    const unsigned hour12 = hour % 12 == 0 ? 12 : hour % 12;
    return static_cast<std::uint8_t>(to_register(hour12) | (hour >= 12 ? kPm : 0));
}

unsigned CmosRtc::hour_from_register(std::uint8_t value) const {
    if ((state_.ram[REG_B] & B_24H) != 0)
        return from_register(value);
    const unsigned hour12 = from_register(value & 0x7f) % 12;
    return hour12 + ((value & kPm) != 0 ? 12 : 0);
}

void CmosRtc::store_time() {
    const auto second = now().second;
    const auto days = floor_div(second, kDaySeconds);
    const auto of_day =
        static_cast<unsigned>(second - days * static_cast<std::int64_t>(kDaySeconds));
    const auto date = date_from(days);
    const auto weekday = static_cast<unsigned>((days % 7 + 4 + 7 + state_.weekday_shift) % 7);
    auto& ram = state_.ram;
    ram[SECONDS] = to_register(of_day % 60);
    ram[MINUTES] = to_register(of_day / 60 % 60);
    ram[HOURS] = hour_to_register(of_day / 3600);
    ram[DAY_OF_WEEK] = to_register(weekday + 1); // Sunday is 1
    ram[DAY_OF_MONTH] = to_register(date.day);
    ram[MONTH] = to_register(date.month);
    const auto year = static_cast<unsigned>(std::max<std::int64_t>(date.year, 0));
    ram[YEAR] = to_register(year % 100);
    ram[CENTURY] = to_register(year / 100 % 100);
}

/// Values that no calendar has are carried over (minute 61 is the next hour's first).
void CmosRtc::adopt_time(std::uint32_t ns) {
    const auto& ram = state_.ram;
    const std::int64_t year =
        static_cast<std::int64_t>(from_register(ram[CENTURY])) * 100 + from_register(ram[YEAR]);
    const unsigned month0 = from_register(ram[MONTH]) + 11; // month - 1 + 12, so never below zero
    const Date first{year - 1 + month0 / 12, month0 % 12 + 1, 1};
    const auto days = days_from(first) + from_register(ram[DAY_OF_MONTH]) - 1;
    const auto guest = days * static_cast<std::int64_t>(kDaySeconds) +
                       std::int64_t{hour_from_register(ram[HOURS])} * 3600 +
                       std::int64_t{from_register(ram[MINUTES])} * 60 + from_register(ram[SECONDS]);
    const auto weekday = from_register(ram[DAY_OF_WEEK]) + 6; // Sunday = 0, never below zero
    const auto of_date = (days % 7 + 4 + 7) % 7;
    state_.weekday_shift = static_cast<std::uint8_t>((weekday % 7 + 7 - of_date) % 7);
    const auto host = wall_.now();
    const auto host_ns = host.nanoseconds % kSecondNs;
    const bool borrow = ns < host_ns;
    state_.offset_ns = ns + (borrow ? kSecondNs : 0) - host_ns;
    state_.offset_seconds =
        static_cast<std::uint64_t>(guest) - static_cast<std::uint64_t>(host.seconds) - borrow;
    state_.seen_second = static_cast<std::uint64_t>(now().second);
}

// --- registers --------------------------------------------------------------------------------

std::uint64_t CmosRtc::io_read(bus::IoAccess io) {
    if ((io.offset & 1) == 0)
        return 0xff; // port 70h is write-only
    const base::MutexLock lock{mutex_};
    return read_register(state_.index);
}

void CmosRtc::io_write(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    const auto byte = static_cast<std::uint8_t>(value);
    if ((io.offset & 1) == 0)
        state_.index = byte & 0x7f; // bit 7 masks NMI: the board looks at it, not this chip
    else
        write_register(state_.index, byte);
}

std::uint8_t CmosRtc::read_register(std::uint8_t index) {
    sync();
    if (is_time(index)) {
        if (is_counting())
            store_time();
        return state_.ram[index];
    }
    if (index == REG_A) {
        const bool updating = is_counting() && now().ns >= kSecondNs - kUipNs;
        return static_cast<std::uint8_t>((state_.ram[REG_A] & ~A_UIP) | (updating ? A_UIP : 0));
    }
    if (index != REG_C)
        return state_.ram[index];
    const auto flags = std::exchange(state_.ram[REG_C], std::uint8_t{0}); // reading acknowledges
    update_irq();
    arm();
    return flags;
}

void CmosRtc::write_register(std::uint8_t index, std::uint8_t value) {
    sync();
    if (index == REG_A) {
        write_a(value);
    } else if (index == REG_B) {
        write_b(value);
    } else if (is_time(index)) {
        if (is_counting())
            store_time();
        state_.ram[index] = value;
        if (is_counting())
            adopt_time(now().ns);
    } else if (index != REG_C && index != REG_D) { // these two are read-only
        state_.ram[index] = value;
    }
    update_irq();
    arm();
}

/// After the divider leaves reset the first update comes half a second later (data sheet, "Divider
/// control").
void CmosRtc::write_a(std::uint8_t value) {
    const bool was_counting = is_counting();
    const bool was_reset = has_divider_reset();
    if (was_counting)
        store_time();
    state_.ram[REG_A] = value & 0x7f;
    if (is_counting() && !was_counting)
        adopt_time(was_reset ? kSecondNs / 2 : now().ns);
    const auto period = period_ticks();
    state_.seen_period = period == 0 ? 0 : kTimeBase.ticks_at(clock_.now_ns()) / period;
}

void CmosRtc::write_b(std::uint8_t value) {
    const bool was_counting = is_counting();
    if (was_counting)
        store_time();
    const auto changed = static_cast<std::uint8_t>(state_.ram[REG_B] ^ value);
    state_.ram[REG_B] = (value & B_SET) != 0 ? value & ~B_UIE & 0xff : value; // SET clears UIE
    if (is_counting() && !was_counting)
        adopt_time(now().ns);
    else if (was_counting && !is_counting() && (changed & (B_DM | B_24H)) != 0)
        store_time(); // SET and a new format at once: show the time in it
}

// --- interrupts -------------------------------------------------------------------------------

/// Seconds from `second_of_day` to the next alarm, 1 to 86400; kNever when no time matches.
std::uint64_t CmosRtc::seconds_to_alarm(std::uint64_t second_of_day) const {
    const auto& ram = state_.ram;
    const auto any = [](std::uint8_t value) { return (value & kAnyValue) == kAnyValue; };
    const auto hour = hour_from_register(ram[HOURS_ALARM]);
    for (std::uint64_t wait = 1; wait <= kDaySeconds;) {
        const auto at = second_of_day + wait;
        if (!any(ram[HOURS_ALARM]) && at / 3600 % 24 != hour)
            wait += 3600 - at % 3600;
        else if (!any(ram[MINUTES_ALARM]) && at / 60 % 60 != from_register(ram[MINUTES_ALARM]))
            wait += 60 - at % 60;
        else if (!any(ram[SECONDS_ALARM]) && at % 60 != from_register(ram[SECONDS_ALARM]))
            ++wait;
        else
            return wait;
    }
    return kNever;
}

void CmosRtc::sync() {
    auto& flags = state_.ram[REG_C];
    const auto second = static_cast<std::uint64_t>(now().second);
    const auto passed = second - state_.seen_second;
    if (is_counting() && passed != 0 && passed < kFarSeconds) { // the calendar may step backwards
        flags |= C_UF;
        if (seconds_to_alarm(state_.seen_second % kDaySeconds) <= passed)
            flags |= C_AF;
    }
    state_.seen_second = second;
    if (const auto period = period_ticks(); period != 0) {
        const auto current = kTimeBase.ticks_at(clock_.now_ns()) / period;
        if (current > state_.seen_period)
            flags |= C_PF;
        state_.seen_period = current;
    }
    update_irq();
}

void CmosRtc::update_irq() {
    auto& flags = state_.ram[REG_C];
    const bool active = (flags & state_.ram[REG_B] & (C_PF | C_AF | C_UF)) != 0;
    flags = static_cast<std::uint8_t>((flags & ~C_IRQF) | (active ? C_IRQF : 0));
    irq8_.set_level(active);
}

/// For the next event that would interrupt; while the line is up there is nothing to wait for.
void CmosRtc::arm() {
    const auto enabled = state_.ram[REG_B];
    auto deadline = kNever;
    if ((state_.ram[REG_C] & C_IRQF) == 0) {
        const auto vm_now = clock_.now_ns();
        const auto period = period_ticks();
        if ((enabled & B_PIE) != 0 && period != 0)
            deadline = kTimeBase.ns_at((kTimeBase.ticks_at(vm_now) / period + 1) * period);
        const auto guest = now();
        auto wait = (enabled & B_UIE) != 0 ? 1 : kNever;
        if ((enabled & B_AIE) != 0)
            wait = std::min(
                wait, seconds_to_alarm(static_cast<std::uint64_t>(guest.second) % kDaySeconds));
        if (is_counting() && wait != kNever)
            deadline = std::min(deadline, vm_now + wait * kSecondNs - guest.ns);
    }
    if (deadline == kNever)
        timer_->cancel();
    else
        timer_->arm(deadline);
}

void CmosRtc::on_timer() {
    const base::MutexLock lock{mutex_};
    sync();
    arm();
}

} // namespace doppel::devices
