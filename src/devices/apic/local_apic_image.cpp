// SPDX-License-Identifier: Apache-2.0
/// A local APIC whose registers are an engine's (cpu/apic_host.hpp): from and to State.
#include <utility>

#include "devices/apic/local_apic.hpp"
#include "devices/apic/local_apic_bits.hpp"

namespace doppel::devices {

using namespace local_apic;

void LocalApic::host_in(cpu::HostedApic& engine) {
    const base::MutexLock lock{mutex_};
    capture(state_);
    timer_.reset(); // it must not fire here as well
    hosted_ = &engine;
    hand_over();
}

void LocalApic::fetch() noexcept {
    if (hosted_ == nullptr)
        return;
    capture(state_);
    spread();
}

/// The atomics are as of the last load or reset, which is what is handed over.
void LocalApic::hand_over() noexcept {
    if (hosted_ == nullptr)
        return;
    auto* const engine = std::exchange(hosted_, nullptr); // capture() reads what stands here
    auto copy = state_;
    const auto timer = state_.timer;
    capture(copy);
    copy.timer = timer;
    hosted_ = engine;
    hosted_->set_apic(image_of(copy));
}

cpu::ApicImage LocalApic::image_of(const State& state) const noexcept {
    const bool is_x2 = (state.base & kBaseX2apic) != 0;
    cpu::ApicImage image;
    auto& registers = image.registers;
    registers[ID] = is_x2 ? state.id : state.id << 24;
    registers[VERSION] = kVersion;
    registers[TPR] = state.tpr;
    registers[LDR] = is_x2 ? x2apic_ldr() : state.ldr;
    registers[DFR] = state.dfr;
    registers[SVR] = state.svr;
    for (std::size_t i = 0; i < state.irr.size(); ++i) {
        registers[ISR0 + i] = state.isr[i];
        registers[TMR0 + i] = state.tmr[i];
        registers[IRR0 + i] = state.irr[i];
    }
    registers[ESR] = state.esr;
    registers[ICR_LOW] = static_cast<std::uint32_t>(state.icr);
    registers[ICR_HIGH] = static_cast<std::uint32_t>(state.icr >> 32);
    for (std::size_t i = 0; i < kLvtCount; ++i)
        registers[LVT_THERMAL + i] = state.lvt[i];
    registers[LVT_TIMER] = state.timer.lvt;
    registers[INITIAL_COUNT] = state.timer.initial_count;
    registers[CURRENT_COUNT] = timer_.current_count(state.timer);
    registers[DIVIDE] = state.timer.divide;
    image.base = state.base;
    image.tsc_deadline = state.timer.tsc_deadline;
    return image;
}

/// What the page does not show stays: in x2APIC mode the LDR of xAPIC mode, errors that the guest
/// has not asked for, wires, INIT and SIPI.
void LocalApic::take_image(const cpu::ApicImage& image, State& state) const noexcept {
    const auto& registers = image.registers;
    state.base = image.base;
    const bool is_x2 = (state.base & kBaseX2apic) != 0;
    state.id = is_x2 ? registers[ID] : registers[ID] >> 24;
    if (!is_x2)
        state.ldr = registers[LDR] & 0xff00'0000;
    state.dfr = registers[DFR] | 0x0fff'ffff;
    state.svr = registers[SVR] & kSvrBits;
    state.tpr = static_cast<std::uint8_t>(registers[TPR]);
    for (std::size_t i = 0; i < state.irr.size(); ++i) {
        state.isr[i] = registers[ISR0 + i];
        state.tmr[i] = registers[TMR0 + i];
        state.irr[i] = registers[IRR0 + i];
    }
    state.esr = registers[ESR];
    state.icr = registers[ICR_LOW] | std::uint64_t{registers[ICR_HIGH]} << 32;
    for (std::size_t i = 0; i < kLvtCount; ++i)
        state.lvt[i] = registers[LVT_THERMAL + i] & kLvtBits[i];
    state.timer = {};
    state.timer.lvt = registers[LVT_TIMER] & timer_.lvt_mask();
    state.timer.initial_count = registers[INITIAL_COUNT];
    state.timer.divide = static_cast<std::uint8_t>(registers[DIVIDE] & 0x0b);
    state.timer.tsc_deadline = image.tsc_deadline;
    state.timer = timer_.counting_from(state.timer, registers[CURRENT_COUNT]);
    if (image.nmi_pending)
        state.events |= kEventNmi;
}

} // namespace doppel::devices
