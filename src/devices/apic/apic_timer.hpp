// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Timer of a local APIC (Intel SDM Vol. 3A, Sept. 2023, §11.5.4): one-shot, periodic and
/// TSC-deadline mode. Part of LocalApic.
#include <functional>
#include <memory>

#include "base/clock.hpp"
#include "base/mutex.hpp"
#include "devices/frequency.hpp"
#include "state/schema.hpp"

namespace doppel::devices {

/// Time-stamp counter of one vCPU, as the guest reads it. Implemented by the board. Any thread.
class TscPort {
public:
    virtual ~TscPort() = default;
    virtual std::uint64_t now() const noexcept = 0;
    /// VM time at which the counter reaches `tsc`; a time in the past when it has.
    virtual std::uint64_t ns_at(std::uint64_t tsc) const noexcept = 0;
};

/// Any thread; guarded by its own mutex, a leaf: `on_expired` must be lock-free.
class ApicTimer {
public:
    struct State {
        std::uint32_t lvt = 0x1'0000;
        std::uint32_t initial_count = 0;
        std::uint8_t divide = 0;        // divide configuration register
        std::uint64_t start_ns = 0;     // the count stood at initial_count
        std::uint64_t periods_seen = 0; // expiries since start_ns that were acted upon
        std::uint64_t tsc_deadline = 0; // 0: not armed
        bool is_counting = false;       // a one-shot count that has expired stays at zero
        static constexpr auto kSchema =
            state::schema("apic-timer", 1, state::field(1, "lvt", &State::lvt),
                          state::field(2, "initial_count", &State::initial_count),
                          state::field(3, "divide", &State::divide),
                          state::field(4, "start_ns", &State::start_ns),
                          state::field(5, "periods_seen", &State::periods_seen),
                          state::field(6, "tsc_deadline", &State::tsc_deadline),
                          state::field(7, "is_counting", &State::is_counting));
    };

    /// `hz` is the rate before the divider. `tsc` may be null: there is no TSC-deadline mode then.
    /// `on_expired` gets the vector and runs with the timer's mutex held.
    ApicTimer(base::TimerQueue& timers, std::uint64_t hz, const TscPort* tsc,
              std::function<void(std::uint8_t vector)> on_expired);

    /// The timer as its registers show it, for one that counts elsewhere: `state` with the count
    /// standing at `current` now.
    State counting_from(State state, std::uint32_t current) const;
    /// Registers of a state, without starting it.
    std::uint32_t current_count(const State& state) const;

    void reset();
    State state() const;
    void set_state(const State& state);

    std::uint32_t lvt() const;
    void set_lvt(std::uint32_t value);
    /// LVT entries are masked while the APIC is disabled by software.
    void mask();
    std::uint32_t initial_count() const;
    void set_initial_count(std::uint32_t count);
    std::uint32_t current_count() const;
    std::uint8_t divide() const;
    void set_divide(std::uint8_t value);
    std::uint64_t tsc_deadline() const;
    void set_tsc_deadline(std::uint64_t tsc);

    bool has_tsc_deadline() const { return tsc_ != nullptr; }
    /// Bits of the LVT entry that can be written.
    std::uint32_t lvt_mask() const { return has_tsc_deadline() ? 0x7'00ff : 0x3'00ff; }

private:
    enum class Mode : std::uint8_t { OneShot, Periodic, TscDeadline };
    static Mode mode_of(const State& state);
    static std::uint64_t divisor_of(const State& state);
    static bool is_counting(const State& state);
    Mode mode() const DOPPEL_REQUIRES(mutex_) { return mode_of(state_); }
    std::uint64_t divisor() const DOPPEL_REQUIRES(mutex_) { return divisor_of(state_); }
    std::uint64_t elapsed_ns(const State& state) const;
    std::uint64_t elapsed_ns() const DOPPEL_REQUIRES(mutex_);
    std::uint64_t elapsed_counts() const DOPPEL_REQUIRES(mutex_);
    std::uint64_t expiry_ns(std::uint64_t period) const DOPPEL_REQUIRES(mutex_);
    bool is_running() const DOPPEL_REQUIRES(mutex_);
    /// A one-shot count goes on from the running period, as if it had been written for it.
    void begin_one_shot() DOPPEL_REQUIRES(mutex_);
    void disarm() DOPPEL_REQUIRES(mutex_);
    void arm() DOPPEL_REQUIRES(mutex_);
    /// Acts on what has expired by now.
    void sync() DOPPEL_REQUIRES(mutex_);
    void on_timer();

    const base::Clock& clock_;
    const Frequency frequency_;
    const TscPort* const tsc_; // owned by the Machine
    const std::function<void(std::uint8_t)> on_expired_;
    mutable base::Mutex mutex_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    std::unique_ptr<base::Timer> timer_; // last: its callback uses all of the above
};

} // namespace doppel::devices
