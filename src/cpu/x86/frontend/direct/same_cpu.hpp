// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A thread and a process that take turns, on one CPU.
///
/// Whoever is woken is woken where the scheduler finds a CPU idle, which is another one each time:
/// its caches are cold, and to wake a CPU of a virtual machine from its sleep may take 40 µs, where
/// the switch on one CPU takes two. So the process is bound to the CPU on which the caller is, and
/// the caller too, until it says that it will be elsewhere for long: binding takes 4 µs each time.
/// What is bound cannot be moved to where there is room: hence neither is after a turn during which
/// the CPU was others' as well, nor where another pair is bound already.
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
    /// The caller has been woken.
    void after(pid_t other);
    /// The calling thread may be moved again. What somebody else has bound it to meanwhile stays,
    /// unless that is the very CPU.
    static void let_go() noexcept;

private:
    using Clock = std::chrono::steady_clock;
    /// A thread that takes turns.
    struct Caller {
        cpu_set_t allowed{}; // where it may be
        int cpu = -1;        // which nobody else is bound to meanwhile
        bool bound = false;

        ~Caller() { let_go(); }
        bool take();
    };

    void bind(pid_t other);
    void release(pid_t other);

    static std::array<std::atomic<bool>, CPU_SETSIZE> taken_;
    static thread_local Caller caller_;

    int others_cpu_ = -1; // to which it is bound
    bool long_ = false;   // was the last turn, …
    bool shared_ = false; // … and others used the CPU
    Clock::time_point begun_;
    std::chrono::nanoseconds used_before_{0}; // by the process
};

} // namespace doppel::cpu::x86::frontend
