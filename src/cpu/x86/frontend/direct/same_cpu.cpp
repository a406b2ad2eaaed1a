// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/same_cpu.hpp"

#include <ctime>
#include <utility>

namespace doppel::cpu::x86::frontend {

std::array<std::atomic<bool>, CPU_SETSIZE> SameCpu::taken_{};
thread_local SameCpu::Caller SameCpu::caller_;

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

cpu_set_t set_of(int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    return one;
}

} // namespace

void SameCpu::before(pid_t other) {
    begun_ = Clock::now();
    if (long_)
        used_before_ = time_used(other);
    if (shared_ || (caller_.cpu < 0 && !caller_.take()))
        release(other);
    else
        bind(other);
}

bool SameCpu::Caller::take() {
    const int here = ::sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE || ::sched_getaffinity(0, sizeof allowed, &allowed) != 0 ||
        taken_.at(static_cast<std::size_t>(here)).exchange(true))
        return false;
    cpu = here;
    const cpu_set_t one = set_of(here);
    bound = CPU_COUNT(&allowed) > 1 && ::sched_setaffinity(0, sizeof one, &one) == 0;
    return true;
}

void SameCpu::bind(pid_t other) {
    const cpu_set_t one = set_of(caller_.cpu);
    if (others_cpu_ != caller_.cpu && ::sched_setaffinity(other, sizeof one, &one) == 0)
        others_cpu_ = caller_.cpu;
}

void SameCpu::release(pid_t other) {
    let_go();
    cpu_set_t allowed;
    if (others_cpu_ >= 0 && ::sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        ::sched_setaffinity(other, sizeof allowed, &allowed);
    others_cpu_ = -1;
}

void SameCpu::after(pid_t other) {
    const auto took = Clock::now() - begun_;
    const bool judged = long_ && took >= kLong;
    long_ = took >= kLong;
    shared_ = judged ? (time_used(other) - used_before_) * 4 < took * 3 : shared_ && long_;
}

void SameCpu::let_go() noexcept {
    Caller& caller = caller_;
    if (caller.cpu < 0)
        return;
    const cpu_set_t one = set_of(caller.cpu);
    taken_[static_cast<std::size_t>(caller.cpu)] = false;
    caller.cpu = -1;
    cpu_set_t now;
    if (caller.bound && ::sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &one))
        ::sched_setaffinity(0, sizeof caller.allowed, &caller.allowed);
    caller.bound = false;
}

} // namespace doppel::cpu::x86::frontend
