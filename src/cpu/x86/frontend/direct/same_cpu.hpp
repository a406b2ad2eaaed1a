// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A thread and a process that take turns, on one CPU.
///
/// Whoever is woken is woken where the scheduler finds a CPU idle, which is another one each time:
/// its caches are cold, and to wake a CPU of a virtual machine from its sleep may take 40 µs, where
/// the switch on one CPU takes two. So the process is bound to the CPU on which the caller is, and
/// the caller too while it waits. What is bound cannot be moved to where there is room: hence
/// neither is after a turn during which the CPU was others' as well, nor where another pair is
/// bound already.
#include <array>
#include <atomic>
#include <chrono>

#include <sched.h>
#include <sys/types.h>

namespace doppel::cpu::x86::frontend {

class SameCpu {
public:
    /// Before `other` is let go, for which the caller waits.
    void before(pid_t other);
    /// The caller has been woken. What somebody else has bound it to meanwhile stays, unless that
    /// is the very CPU.
    void after(pid_t other);

private:
    using Clock = std::chrono::steady_clock;

    void bind(pid_t other);
    void release(pid_t other);

    /// CPUs on which one of us takes a turn.
    static std::array<std::atomic<bool>, CPU_SETSIZE> taken_;

    cpu_set_t callers_{}; // where it may be
    cpu_set_t one_{};
    int others_cpu_ = -1; // to which it is bound
    int taken_by_us_ = -1;
    bool bound_ = false;  // the caller
    bool long_ = false;   // was the last turn, …
    bool shared_ = false; // … and others used the CPU
    Clock::time_point begun_;
    std::chrono::nanoseconds used_before_{0}; // by the process
};

} // namespace doppel::cpu::x86::frontend
