// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The one door through which a VM learns what it does not compute itself: time, the calendar,
/// random numbers, what is typed at its console. What comes through here decides how a VM runs; in
/// virtual time all of it but the typing is the same in every run, and typing enters at an
/// instruction that is known.
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.hpp"
#include "chardev/backend.hpp"
#include "cpu/instruction_meter.hpp"
#include "cpu/x86/board_ports.hpp"
#include "description/machine.hpp"
#include "machine/virtual_time.hpp"

namespace doppel::vmm {

class VirtualInputs;

/// Outlives the board. Control thread only; what it hands out has its own rules.
class Inputs {
public:
    /// `console` is the host's side of the guest's console and outlives this.
    static std::unique_ptr<Inputs> create(description::TimeMode mode, chardev::Backend& console);
    virtual ~Inputs() = default;

    virtual base::TimerQueue& timers() = 0;
    virtual const base::WallClock& calendar() const = 0;
    virtual const cpu::x86::TscSource& tsc() const = 0;
    virtual cpu::x86::EntropySource* entropy() = 0; // null: the host CPU's own instruction
    virtual cpu::InstructionMeter* meter() = 0;     // null: instructions are not counted
    virtual chardev::Backend& console() = 0;        // for the device
    virtual VirtualInputs* in_virtual_time() { return nullptr; }
    /// All vCPUs stand still: so do the clocks.
    virtual void pause() = 0;
    virtual void resume() = 0;
    /// The guest starts over, while the clocks stand still.
    virtual void reset() = 0;
    /// Stops the clocks and sets them to those of a saved VM.
    virtual void set_clocks(std::uint64_t vm_time_ns, std::uint64_t tsc, std::uint64_t tsc_hz) = 0;
};

/// Holds what is typed until the vCPU's thread asks for it, between two instructions.
/// write() and set_receiver() as of the host's backend; deliver() on the thread of the vCPU that
/// has the turn.
class HeldConsole final : public chardev::Backend, private chardev::ByteReceiver {
public:
    explicit HeldConsole(chardev::Backend& host) : host_{host} {}
    /// `arrived` is called on the host's thread when something was typed. Before the VM runs.
    void set_arrived(std::function<void()> arrived) { arrived_ = std::move(arrived); }

    void write(std::span<const std::byte> bytes) noexcept override { host_.write(bytes); }
    void set_receiver(chardev::ByteReceiver* device) noexcept override;
    void receiver_ready() noexcept override {} // deliver() tries again anyway

    /// Hands the device as much as it takes. False: nothing waits, or the device takes nothing.
    bool deliver();

private:
    std::size_t can_receive() const noexcept override;
    void receive(std::span<const std::byte> bytes) noexcept override;

    static constexpr std::size_t kRoom = 4096;
    chardev::Backend& host_;
    std::function<void()> arrived_;
    std::atomic<bool> waiting_{false};
    mutable std::mutex mutex_;
    std::vector<std::byte> held_;             // guarded by mutex_
    chardev::ByteReceiver* device_ = nullptr; // guarded by mutex_
};

/// Virtual time and what belongs to it.
class VirtualInputs final : public Inputs {
public:
    explicit VirtualInputs(chardev::Backend& console) : console_{console} {}

    machine::VirtualTime& time() { return time_; }
    HeldConsole& held_console() { return console_; }

    base::TimerQueue& timers() override { return time_; }
    const base::WallClock& calendar() const override { return calendar_; }
    const cpu::x86::TscSource& tsc() const override { return time_; }
    cpu::x86::EntropySource* entropy() override { return &entropy_; }
    cpu::InstructionMeter* meter() override { return &meter_; }
    chardev::Backend& console() override { return console_; }
    VirtualInputs* in_virtual_time() override { return this; }
    void pause() override {} // no instruction, no time
    void resume() override {}
    void reset() override {}
    void set_clocks(std::uint64_t vm_time_ns, std::uint64_t, std::uint64_t) override {
        time_.set_now(vm_time_ns); // which the TSC counts too
    }

private:
    cpu::InstructionMeter meter_;
    machine::VirtualTime time_{meter_};
    machine::VirtualCalendar calendar_{time_};
    machine::RepeatableEntropy entropy_;
    HeldConsole console_;
};

} // namespace doppel::vmm
