// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Virtual time: all clocks of a VM derived from the instructions that it has executed. One
/// instruction takes one nanosecond and is one tick of the time-stamp counter; while every vCPU
/// halts, time jumps to the next deadline. Nothing here asks the host.
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "base/clock.hpp"
#include "cpu/instruction_meter.hpp"
#include "cpu/x86/board_ports.hpp"

namespace doppel::machine {

/// now_ns() and read() from any thread; arming while no vCPU runs or on the thread of the one that
/// does; the rest on that thread only. Timers fire there.
class VirtualTime final : public base::Clock, public base::TimerQueue, public cpu::x86::TscSource {
public:
    /// `meter` outlives this.
    explicit VirtualTime(cpu::InstructionMeter& meter) : meter_{meter} {}

    std::uint64_t now_ns() const noexcept override;
    const base::Clock& clock() const noexcept override { return *this; }
    std::unique_ptr<base::Timer> create_timer(std::function<void()> callback) override;

    std::uint64_t read() const noexcept override { return now_ns(); }
    std::uint64_t frequency_hz() const noexcept override { return 1'000'000'000; }
    bool is_host_tsc(std::uint64_t&) const noexcept override { return false; }

    /// While no vCPU runs: the clock shows `ns`, as that of a saved VM did.
    void set_now(std::uint64_t ns) noexcept;
    /// Lets the vCPU run until the next deadline, and not beyond executed() == `at_most`.
    void grant(std::uint64_t at_most);
    /// Fires what is due, in order of deadline.
    void fire_due();
    /// Moves to the next deadline and fires what is due then. False: there is none.
    bool skip_to_next();

private:
    class VirtualTimer;

    cpu::InstructionMeter& meter_;
    std::atomic<std::uint64_t> skipped_ns_{0};
    std::mutex mutex_;
    std::multimap<std::uint64_t, VirtualTimer*> armed_; // guarded by mutex_; by deadline
};

/// A calendar that begins at the same moment in every run.
class VirtualCalendar final : public base::WallClock {
public:
    static constexpr std::int64_t kStart = 1'767'225'600; // 2026-01-01 00:00:00 UTC
    explicit VirtualCalendar(const base::Clock& clock) : clock_{clock} {}
    Time now() const noexcept override;

private:
    const base::Clock& clock_;
};

/// The same numbers in every run: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
/// number generators", OOPSLA 2014). Not for keys that must stay secret.
class RepeatableEntropy final : public cpu::x86::EntropySource {
public:
    bool next(std::uint64_t& value) noexcept override;

private:
    std::uint64_t state_ = 0;
};

} // namespace doppel::machine
