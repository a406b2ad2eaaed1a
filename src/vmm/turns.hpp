// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Who runs in virtual time: one vCPU at a time, in order of their numbers, kSlice instructions
/// each. A halted vCPU is passed over; when all halt, time jumps to the next deadline, and without
/// one everybody waits for the console. What decides is the instruction count alone, never how
/// fast a host thread is.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>

#include "cpu/vm_exit.hpp"
#include "vmm/inputs.hpp"

namespace doppel::vmm {

class Turns {
public:
    /// Instructions: long enough that the hand-over between threads (tens of microseconds) does not
    /// show, short enough that spin locks do not wait for milliseconds.
    static constexpr std::uint64_t kSlice = 50'000;

    /// `inputs` outlives this.
    Turns(VirtualInputs& inputs, unsigned vcpus);

    // --- vCPU thread ---
    /// Waits for the turn of `vcpu`; it may run() then, up to the meter's limit. False: interrupt()
    /// was called.
    bool take(unsigned vcpu);
    /// After run(), by whom take() let run.
    void done(unsigned vcpu, const cpu::VmExit& exit);

    // --- any thread ---
    /// Something for `vcpu` is pending. Lock-free unless all wait.
    void wake(unsigned vcpu) noexcept;
    /// Ends a take() of `vcpu`, the present or the next one.
    void interrupt(unsigned vcpu);

private:
    struct Vcpu {
        std::atomic<bool> halted{false};
        std::atomic<bool> event{false}; // came since it last looked
        bool interrupted = false;       // guarded by mutex_
    };
    bool wait_for_turn(unsigned vcpu);
    void pass_on(unsigned vcpu);
    bool all_halt() const;
    bool is_interrupted(unsigned vcpu);
    void idle(unsigned vcpu);
    void ring() noexcept;

    VirtualInputs& inputs_;
    std::deque<Vcpu> vcpus_;
    std::uint64_t slice_end_ = kSlice;   // by executed(); of whoever has the turn
    std::atomic<std::uint32_t> bell_{0}; // rings for who waits for the console

    std::mutex mutex_;
    std::condition_variable changed_;
    unsigned current_ = 0; // guarded by mutex_
};

} // namespace doppel::vmm
