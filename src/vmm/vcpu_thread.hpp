// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One host thread per vCPU: runs the engine, sleeps while the guest halts, stops for a pause.
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "cpu/x86/vcpu.hpp"
#include "vmm/profile.hpp"
#include "vmm/turns.hpp"

namespace doppel::vmm {

/// start(), pause(), resume(), stop(): control thread. notify(): any thread.
class VcpuThread final : public cpu::Wakeup {
public:
    /// What ends a VM from a vCPU's side: Shutdown, Reset, Error. Called on the vCPU's thread,
    /// which then waits as if paused.
    using OnExit = std::function<void(unsigned index, cpu::VmExit exit)>;

    /// In virtual time the vCPUs take `turns`, which outlive them; null otherwise.
    /// `profile` outlives them; may be null.
    VcpuThread(unsigned index, std::unique_ptr<cpu::x86::Vcpu> vcpu, OnExit on_exit,
               Turns* turns = nullptr, Profile* profile = nullptr);
    ~VcpuThread() override; // stops
    VcpuThread(const VcpuThread&) = delete;
    VcpuThread& operator=(const VcpuThread&) = delete;

    cpu::x86::Vcpu& vcpu() { return *vcpu_; }

    /// Begins paused.
    void start();
    /// Asks the thread to leave guest code; returns at once. wait_paused() ends the handshake:
    /// after it the thread touches neither guest memory nor any device.
    void request_pause();
    void wait_paused();
    void resume();
    void stop();

    /// Something for the vCPU is pending at its interrupt controller. Lock-free unless it sleeps.
    void notify() noexcept override;

    /// CPU time of the thread, ns; 0 before start().
    std::uint64_t cpu_time_ns() const;
    std::uint64_t halt_sleeps() const { return halt_sleeps_.load(std::memory_order_relaxed); }

private:
    enum class Wish : std::uint8_t { Run, Pause, Stop };

    void main();
    void wait_while_paused();
    void leave_guest();
    void run_once();
    void sleep_until_event();

    const unsigned index_;
    std::unique_ptr<cpu::x86::Vcpu> vcpu_;
    OnExit on_exit_;
    Turns* const turns_;
    Profile* const profile_;

    std::atomic<Wish> wish_{Wish::Pause};
    // What happened since the halted thread last looked. Pairs with the engine's own flag: notify()
    // sets both, the sleeper clears this one before the engine looks at events.
    static constexpr std::uint32_t kNothing = 0, kCame = 1, kSleeps = 2;
    std::atomic<std::uint32_t> signal_{kNothing};
    std::atomic<std::uint64_t> halt_sleeps_{0};

    std::mutex mutex_;
    std::condition_variable changed_;
    bool parked_ = false; // guarded by mutex_: the thread is in wait_while_paused()
    std::jthread thread_;
};

} // namespace doppel::vmm
