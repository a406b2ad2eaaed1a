// SPDX-License-Identifier: Apache-2.0
#include "devices/apic/apic_timer.hpp"

#include <algorithm>

namespace doppel::devices {

namespace {

constexpr std::uint32_t kMasked = 1u << 16;
constexpr unsigned kModeShift = 17;
constexpr std::uint8_t kDivideBits = 0x0b;
constexpr std::uint64_t kShortestPeriodNs = 10'000; // a guest must not occupy the timer thread

} // namespace

ApicTimer::ApicTimer(base::TimerQueue& timers, std::uint64_t hz, const TscPort* tsc,
                     std::function<void(std::uint8_t)> on_expired)
    : clock_{timers.clock()}, frequency_{hz}, tsc_{tsc}, on_expired_{std::move(on_expired)},
      timer_{timers.create_timer([this] { on_timer(); })} {}

void ApicTimer::reset() { set_state({}); }

ApicTimer::State ApicTimer::state() const {
    const base::MutexLock lock{mutex_};
    return state_;
}

void ApicTimer::set_state(const State& state) {
    const base::MutexLock lock{mutex_};
    state_ = state;
    state_.lvt &= lvt_mask();
    state_.divide &= kDivideBits;
    arm();
}

// --- time -------------------------------------------------------------------------------------

ApicTimer::Mode ApicTimer::mode_of(const State& state) {
    const auto mode = state.lvt >> kModeShift & 3;
    return mode == 1 ? Mode::Periodic : mode == 2 ? Mode::TscDeadline : Mode::OneShot;
}

/// Divide configuration: bits 3, 1 and 0 count 2, 4, 8 … 128, and 1 last (SDM figure 11-10).
std::uint64_t ApicTimer::divisor_of(const State& state) {
    const unsigned code = (state.divide & 3u) | (state.divide >> 1 & 4u);
    return 1ull << ((code + 1) & 7);
}

/// start_ns may lie before VM time 0 (wrapped) after a change of the divider.
std::uint64_t ApicTimer::elapsed_ns(const State& state) const {
    const auto since = clock_.now_ns() - state.start_ns;
    return since > INT64_MAX ? 0 : since;
}
std::uint64_t ApicTimer::elapsed_ns() const { return elapsed_ns(state_); }

std::uint64_t ApicTimer::elapsed_counts() const {
    return frequency_.ticks_at(elapsed_ns()) / divisor();
}

/// When the count reaches zero for the `period`-th time (1 = first).
std::uint64_t ApicTimer::expiry_ns(std::uint64_t period) const {
    const auto counts = state_.initial_count * divisor(); // below 2^39
    if (period > UINT64_MAX / counts)
        return UINT64_MAX;
    const auto after = frequency_.ns_at(counts * period);
    return add_saturated(clock_.now_ns(), after - std::min(after, elapsed_ns()));
}

bool ApicTimer::is_running() const {
    if (mode() == Mode::TscDeadline)
        return state_.tsc_deadline != 0 && tsc_ != nullptr;
    return is_counting(state_);
}

bool ApicTimer::is_counting(const State& state) {
    return state.is_counting && state.initial_count != 0;
}

void ApicTimer::disarm() {
    state_.initial_count = 0;
    state_.is_counting = false;
    state_.periods_seen = 0;
    state_.tsc_deadline = 0;
    timer_->cancel();
}

void ApicTimer::arm() {
    if (!is_running()) {
        timer_->cancel();
        return;
    }
    if (mode() == Mode::TscDeadline) {
        timer_->arm(tsc_->ns_at(state_.tsc_deadline));
        return;
    }
    const auto next = expiry_ns(add_saturated(state_.periods_seen, 1));
    if (mode() == Mode::Periodic && (state_.lvt & kMasked) != 0)
        timer_->cancel(); // counts on, and nobody hears it
    else if (mode() == Mode::Periodic)
        timer_->arm(std::max(next, clock_.now_ns() + kShortestPeriodNs));
    else
        timer_->arm(next);
}

void ApicTimer::sync() {
    if (!is_running())
        return;
    bool expired = false;
    if (mode() == Mode::TscDeadline) {
        expired = tsc_->now() >= state_.tsc_deadline;
        if (expired)
            state_.tsc_deadline = 0;
    } else {
        const auto passed = elapsed_counts() / state_.initial_count;
        expired = passed > state_.periods_seen;
        state_.periods_seen = std::max(state_.periods_seen, passed);
        if (expired && mode() == Mode::OneShot)
            state_.is_counting = false;
    }
    if (expired && (state_.lvt & kMasked) == 0)
        on_expired_(static_cast<std::uint8_t>(state_.lvt));
}

void ApicTimer::on_timer() {
    const base::MutexLock lock{mutex_};
    sync();
    arm();
}

// --- registers --------------------------------------------------------------------------------

std::uint32_t ApicTimer::lvt() const {
    const base::MutexLock lock{mutex_};
    return state_.lvt;
}

void ApicTimer::begin_one_shot() {
    if (!is_running())
        return;
    const auto passed = elapsed_counts() / state_.initial_count * state_.initial_count;
    state_.start_ns += frequency_.ns_at(passed * divisor());
    state_.periods_seen = 0;
}

/// Going to or from TSC-deadline mode disarms the timer (SDM §11.5.4.1); between the other two the
/// count goes on, and what has stopped at zero stays there.
void ApicTimer::set_lvt(std::uint32_t value) {
    const base::MutexLock lock{mutex_};
    sync();
    const auto before = mode();
    state_.lvt = value & lvt_mask();
    if ((before == Mode::TscDeadline) != (mode() == Mode::TscDeadline)) {
        disarm();
        return;
    }
    if (before == Mode::Periodic && mode() == Mode::OneShot)
        begin_one_shot();
    arm();
}

void ApicTimer::mask() {
    const base::MutexLock lock{mutex_};
    sync();
    state_.lvt |= kMasked;
    arm();
}

std::uint32_t ApicTimer::initial_count() const {
    const base::MutexLock lock{mutex_};
    return state_.initial_count;
}

void ApicTimer::set_initial_count(std::uint32_t count) {
    const base::MutexLock lock{mutex_};
    if (mode() == Mode::TscDeadline)
        return; // ignored in this mode
    state_.initial_count = count;
    state_.is_counting = count != 0;
    state_.start_ns = clock_.now_ns();
    state_.periods_seen = 0;
    arm();
}

std::uint32_t ApicTimer::current_count() const {
    const base::MutexLock lock{mutex_};
    return current_count(state_);
}

std::uint32_t ApicTimer::current_count(const State& state) const {
    if (mode_of(state) == Mode::TscDeadline || !is_counting(state))
        return 0;
    const auto elapsed = frequency_.ticks_at(elapsed_ns(state)) / divisor_of(state);
    const std::uint64_t initial = state.initial_count;
    if (mode_of(state) == Mode::Periodic)
        return static_cast<std::uint32_t>(initial - elapsed % initial);
    return elapsed >= initial ? 0 : static_cast<std::uint32_t>(initial - elapsed);
}

ApicTimer::State ApicTimer::counting_from(State state, std::uint32_t current) const {
    const auto left = std::min(current, state.initial_count);
    state.is_counting = state.initial_count != 0 && mode_of(state) != Mode::TscDeadline &&
                        (left != 0 || mode_of(state) == Mode::Periodic);
    const auto gone = (state.initial_count - left) * divisor_of(state);
    state.start_ns = clock_.now_ns() - frequency_.ns_at(gone);
    state.periods_seen = 0;
    return state;
}

std::uint8_t ApicTimer::divide() const {
    const base::MutexLock lock{mutex_};
    return state_.divide;
}

/// A running count goes on from where it stands, at the new rate.
void ApicTimer::set_divide(std::uint8_t value) {
    const base::MutexLock lock{mutex_};
    sync();
    auto counts = elapsed_counts();
    if (mode() == Mode::Periodic && is_running())
        counts %= state_.initial_count;
    state_.divide = value & kDivideBits;
    if (!is_running())
        return;
    state_.start_ns = clock_.now_ns() - frequency_.ns_at(counts * divisor());
    state_.periods_seen = 0;
    arm();
}

std::uint64_t ApicTimer::tsc_deadline() const {
    const base::MutexLock lock{mutex_};
    return mode() == Mode::TscDeadline ? state_.tsc_deadline : 0;
}

void ApicTimer::set_tsc_deadline(std::uint64_t tsc) {
    const base::MutexLock lock{mutex_};
    if (mode() != Mode::TscDeadline)
        return; // ignored in the other modes
    state_.tsc_deadline = tsc;
    sync(); // a deadline in the past expires at once, on this very instruction
    arm();
}

} // namespace doppel::devices
