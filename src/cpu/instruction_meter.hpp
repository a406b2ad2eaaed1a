// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Counts what the vCPUs of a VM execute, and says how far they may go before somebody must look
/// at the clocks: the base of virtual time. One vCPU runs at a time; every engine stops at exactly
/// the same instruction.
#include <atomic>
#include <cstdint>

namespace doppel::cpu {

/// Written by the vCPU that runs, or while none does; executed() from any thread.
class InstructionMeter {
public:
    /// Instructions since the VM was created. One that faults counts as well, so that a guest that
    /// does nothing but fault sees time pass; a REP string instruction counts once, at its end.
    /// During an access to a device the instruction that makes it has not been counted yet.
    std::uint64_t executed() const { return executed_.load(std::memory_order_relaxed); }
    /// How many more may be executed: at 0, Vcpu::run() returns LimitExit.
    std::uint64_t left() const { return executed() < limit_ ? limit_ - executed() : 0; }

    void count(std::uint64_t instructions) {
        executed_.store(executed() + instructions, std::memory_order_relaxed);
    }
    std::uint64_t limit() const { return limit_; }
    /// `at` is an executed(); one in the past means now.
    void set_limit(std::uint64_t at) { limit_ = at < executed() ? executed() : at; }

private:
    std::atomic<std::uint64_t> executed_{0};
    std::uint64_t limit_ = 0;
};

} // namespace doppel::cpu
