// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Time as devices see it: one monotonic nanosecond count per VM that stops while the VM is paused,
/// one calendar, and one queue of timers. Devices get these injected and never ask the host, so
/// that tests can hold every clock in hand.
#include <cstdint>
#include <functional>
#include <memory>

namespace doppel::base {

/// Nanoseconds of VM time since the VM was created. Any thread, lock-free.
class Clock {
public:
    virtual ~Clock() = default;
    virtual std::uint64_t now_ns() const noexcept = 0;
};

/// Seconds and nanoseconds since 1970-01-01 UTC, as the guest's calendar shows them. Any thread.
class WallClock {
public:
    struct Time {
        std::int64_t seconds;
        std::uint32_t nanoseconds;
    };
    virtual ~WallClock() = default;
    virtual Time now() const noexcept = 0;
};

/// One-shot timer owned by a device. Any thread may arm or cancel; the callback runs on the queue's
/// thread (real time) or on the vCPU thread (virtual time), with no lock of the queue held.
class Timer {
public:
    virtual ~Timer() = default; // cancels, and waits until a running callback has returned
    /// Fires once when the clock reaches `deadline_ns`; a deadline in the past fires at once.
    virtual void arm(std::uint64_t deadline_ns) = 0;
    /// After return a callback may still be running once; devices check their own state.
    virtual void cancel() = 0;
};

class TimerQueue {
public:
    virtual ~TimerQueue() = default;
    virtual std::unique_ptr<Timer> create_timer(std::function<void()> callback) = 0;
    virtual const Clock& clock() const noexcept = 0;
};

/// Time that moves only when told: for tests. now_ns() from any
/// thread; advancing and timers from one thread at a time.
class ManualTime final : public Clock, public TimerQueue {
public:
    ManualTime();
    ~ManualTime() override;
    std::uint64_t now_ns() const noexcept override;
    const Clock& clock() const noexcept override { return *this; }
    std::unique_ptr<Timer> create_timer(std::function<void()> callback) override;

    /// Moves to `ns`, firing every timer that falls due in order of deadline.
    void advance_to(std::uint64_t ns);
    /// Deadline of the earliest armed timer, or UINT64_MAX.
    std::uint64_t next_deadline_ns() const noexcept;

private:
    class ManualTimer;
    struct Queue;
    std::unique_ptr<Queue> queue_;
};

/// Host time: CLOCK_MONOTONIC minus the time spent paused, and one thread that fires timers.
class RealTime final : public Clock, public TimerQueue {
public:
    RealTime();
    ~RealTime() override; // all timers must be gone
    std::uint64_t now_ns() const noexcept override;
    const Clock& clock() const noexcept override { return *this; }
    std::unique_ptr<Timer> create_timer(std::function<void()> callback) override;

    /// Stops now_ns() and holds timers back; after it returns no callback runs. Control thread
    /// only.
    void pause();
    void resume();
    /// While paused: the clock shows `ns`, as that of a saved VM did. Timers keep their deadlines.
    void set_now(std::uint64_t ns);

private:
    class RealTimer;
    struct Queue;
    std::unique_ptr<Queue> queue_;
};

/// CLOCK_REALTIME of the host.
class HostWallClock final : public WallClock {
public:
    Time now() const noexcept override;
};

} // namespace doppel::base
