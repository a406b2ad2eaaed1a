// SPDX-License-Identifier: Apache-2.0
#include "vmm/turns.hpp"

#include <algorithm>
#include <utility>

namespace doppel::vmm {

Turns::Turns(VirtualInputs& inputs, unsigned vcpus) : inputs_{inputs}, vcpus_(vcpus) {
    inputs_.held_console().set_arrived([this] { ring(); });
}

void Turns::ring() noexcept {
    bell_.store(1);
    bell_.notify_one();
}

void Turns::wake(unsigned vcpu) noexcept {
    vcpus_[vcpu].event.store(true);
    vcpus_[vcpu].halted.store(false);
    ring();
}

void Turns::interrupt(unsigned vcpu) {
    {
        const std::scoped_lock lock{mutex_};
        vcpus_[vcpu].interrupted = true;
    }
    changed_.notify_all();
    ring();
}

bool Turns::wait_for_turn(unsigned vcpu) {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [&] { return current_ == vcpu || vcpus_[vcpu].interrupted; });
    return !std::exchange(vcpus_[vcpu].interrupted, false);
}

bool Turns::all_halt() const {
    return std::ranges::all_of(vcpus_, [](const Vcpu& vcpu) { return vcpu.halted.load(); });
}

bool Turns::is_interrupted(unsigned vcpu) {
    const std::scoped_lock lock{mutex_};
    return vcpus_[vcpu].interrupted;
}

/// Until something has happened that may have woken a vCPU, or interrupts `vcpu`, whose turn it is.
void Turns::idle(unsigned vcpu) {
    bell_.store(0);
    if (inputs_.held_console().deliver() || inputs_.time().skip_to_next() || !all_halt() ||
        is_interrupted(vcpu))
        return;
    bell_.wait(0);
}

bool Turns::take(unsigned vcpu) {
    while (wait_for_turn(vcpu)) {
        if (!vcpus_[vcpu].halted) {
            inputs_.time().grant(slice_end_);
            return true;
        }
        if (all_halt())
            idle(vcpu);
        else
            pass_on(vcpu);
    }
    return false;
}

/// To the next who does not halt; it may be the same one again.
void Turns::pass_on(unsigned vcpu) {
    slice_end_ = inputs_.meter()->executed() + kSlice;
    const auto count = static_cast<unsigned>(vcpus_.size());
    unsigned next = vcpu;
    do {
        next = (next + 1) % count;
    } while (next != vcpu && vcpus_[next].halted.load());
    {
        const std::scoped_lock lock{mutex_};
        current_ = next;
    }
    if (next != vcpu)
        changed_.notify_all();
}

void Turns::done(unsigned vcpu, const cpu::VmExit& exit) {
    if (std::holds_alternative<cpu::HaltExit>(exit)) {
        // An event that came meanwhile: it looks once more, which takes no time.
        vcpus_[vcpu].halted.store(true);
        if (vcpus_[vcpu].event.exchange(false))
            vcpus_[vcpu].halted.store(false);
        return;
    }
    if (!std::holds_alternative<cpu::LimitExit>(exit))
        return;
    inputs_.time().fire_due();
    if (inputs_.meter()->executed() < slice_end_)
        return;
    inputs_.held_console().deliver();
    pass_on(vcpu);
}

} // namespace doppel::vmm
