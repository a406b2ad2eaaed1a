// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/same_cpu.hpp"

#include <ctime>
#include <utility>

namespace doppel::cpu::x86::frontend {

std::array<std::atomic<bool>, CPU_SETSIZE> SameCpu::taken_{};

namespace {

/// Long enough to judge by.
constexpr std::chrono::microseconds kLong{500};

/// Of the host's CPUs; 0 when it has ended.
std::chrono::nanoseconds time_used(pid_t process) {
    clockid_t clock{};
    timespec used{};
    if (::clock_getcpuclockid(process, &clock) != 0 || ::clock_gettime(clock, &used) != 0)
        return std::chrono::nanoseconds{0};
    return std::chrono::seconds{used.tv_sec} + std::chrono::nanoseconds{used.tv_nsec};
}

} // namespace

void SameCpu::before(pid_t other) {
    begun_ = Clock::now();
    if (long_)
        used_before_ = time_used(other);
    if (shared_)
        release(other);
    else
        bind(other);
}

void SameCpu::release(pid_t other) {
    if (others_cpu_ >= 0 && ::sched_getaffinity(0, sizeof callers_, &callers_) == 0)
        ::sched_setaffinity(other, sizeof callers_, &callers_);
    others_cpu_ = -1;
}

void SameCpu::bind(pid_t other) {
    const int cpu = ::sched_getcpu();
    if (cpu < 0 || cpu >= CPU_SETSIZE || ::sched_getaffinity(0, sizeof callers_, &callers_) != 0)
        return;
    if (taken_.at(static_cast<std::size_t>(cpu)).exchange(true)) {
        release(other);
        return;
    }
    taken_by_us_ = cpu;
    CPU_ZERO(&one_);
    CPU_SET(cpu, &one_);
    if (others_cpu_ != cpu) {
        if (::sched_setaffinity(other, sizeof one_, &one_) != 0)
            return;
        others_cpu_ = cpu;
    }
    bound_ = CPU_COUNT(&callers_) > 1 && ::sched_setaffinity(0, sizeof one_, &one_) == 0;
}

void SameCpu::after(pid_t other) {
    const auto took = Clock::now() - begun_;
    const bool judged = long_ && took >= kLong;
    long_ = took >= kLong;
    shared_ = judged ? (time_used(other) - used_before_) * 4 < took * 3 : shared_ && long_;
    if (taken_by_us_ >= 0)
        taken_.at(static_cast<std::size_t>(std::exchange(taken_by_us_, -1))) = false;
    if (!bound_)
        return;
    bound_ = false;
    cpu_set_t now;
    if (::sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &one_))
        ::sched_setaffinity(0, sizeof callers_, &callers_);
}

} // namespace doppel::cpu::x86::frontend
