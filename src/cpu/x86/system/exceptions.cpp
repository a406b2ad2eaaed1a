// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/exceptions.hpp"

#include "cpu/x86/system/gates.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kDr6SingleStep = 1u << 14;
constexpr std::uint64_t kDr7Gd = 1u << 13;

/// Vol. 3A table 7-4.
enum class Class : std::uint8_t { Benign, Contributory, PageFault };

Class class_of(Vector vector) {
    switch (vector) {
    case Vector::DE:
    case Vector::TS:
    case Vector::NP:
    case Vector::SS:
    case Vector::GP: return Class::Contributory;
    case Vector::PF: return Class::PageFault;
    default: return Class::Benign;
    }
}

/// Vol. 3A table 7-5: does `second`, raised while `first` was delivered, make a double fault?
bool is_double_fault(Vector first, Vector second) {
    if (class_of(first) == Class::Contributory)
        return class_of(second) == Class::Contributory;
    return class_of(first) == Class::PageFault && class_of(second) != Class::Benign;
}

/// Fault-class exceptions push RF = 1, so that an instruction breakpoint does not strike again.
bool pushes_resume_flag(Vector vector) {
    switch (vector) {
    case Vector::DB:
    case Vector::NMI:
    case Vector::BP:
    case Vector::OF:
    case Vector::DF:
    case Vector::MC: return false;
    default: return true;
    }
}

/// What the exception leaves in registers before it is delivered (and whatever becomes of it).
void note_fault(SystemContext& cx, const Fault& fault) {
    CpuState& state = cx.state;
    cx.events.add({.kind = TakenEvent::Kind::Exception,
                   .vector = static_cast<std::uint8_t>(fault.vector),
                   .has_error_code = fault.has_error_code && cx.protected_mode(),
                   .error_code = fault.error_code,
                   .rip = state.rip,
                   .cr2 = fault.cr2});
    if (fault.vector == Vector::PF)
        state.cr2 = fault.cr2;
    if (fault.vector == Vector::DB) {
        state.dr6 = (state.dr6 & ~std::uint64_t{0xf}) | fault.debug_bits;
        state.dr7 &= ~kDr7Gd;
        state.debugctl &= ~DEBUGCTL_BTF; // Vol. 3B §18.4.3
        cx.changes |= change::kDebug;
    }
}

bool deliver_once(SystemContext& cx, const Fault& fault) {
    note_fault(cx, fault);
    return deliver_event(
        cx, {.vector = static_cast<std::uint8_t>(fault.vector),
             .source = Event::Source::Exception,
             .has_error_code = fault.has_error_code && cx.protected_mode(),
             .error_code = fault.error_code,
             .return_rip = cx.state.rip,
             .resume_flag = pushes_resume_flag(fault.vector) || (cx.state.rflags & FLAG_RF) != 0});
}

/// After any delivery the handler's first instruction runs without the shadows of what it broke.
void delivered(SystemContext& cx) {
    cx.state.sti_shadow = false;
    cx.state.mov_ss_shadow = false;
    cx.state.activity = Activity::Running;
    cx.changes |= change::kEvents;
}

void note(SystemContext& cx, TakenEvent::Kind kind, std::uint8_t vector) {
    cx.events.add({.kind = kind, .vector = vector, .rip = cx.state.rip});
}

bool shut_down(SystemContext& cx) {
    cx.state.activity = Activity::Shutdown;
    cx.changes |= change::kActivity;
    return false;
}

bool interrupts_open(const SystemContext& cx) {
    return (cx.state.rflags & FLAG_IF) != 0 && !cx.state.sti_shadow && !cx.state.mov_ss_shadow;
}

/// Takes INIT, NMI and SIPI; false: triple fault.
bool take_signals(SystemContext& cx, bool nmi_held) {
    CpuState& state = cx.state;
    std::uint8_t vector = 0;
    const bool waits = state.activity == Activity::WaitForSipi;
    switch (cx.board.take_event(nmi_held || waits, waits, vector)) {
    case CpuEvent::None: return true;
    case CpuEvent::Init:
        note(cx, TakenEvent::Kind::Init, 0);
        cx.board.init_interrupts();
        init(cx, cx.vcpu_index == 0 ? Bootstrap::Yes : Bootstrap::No);
        return take_signals(cx, nmi_held); // the SIPI may be there, and nobody says so again
    case CpuEvent::Sipi:
        note(cx, TakenEvent::Kind::StartUp, vector);
        start_up(cx, vector);
        return true;
    case CpuEvent::Nmi:
        note(cx, TakenEvent::Kind::Nmi, static_cast<std::uint8_t>(Vector::NMI));
        if (!deliver_interrupt(cx, static_cast<std::uint8_t>(Vector::NMI)))
            return false;
        state.nmi_blocked = true;
        return true;
    }
    return true;
}

bool take_interrupt(SystemContext& cx) {
    if (!interrupts_open(cx) || !cx.board.intr_pending())
        return true;
    const int vector = cx.board.acknowledge_intr();
    if (vector < 0)
        return true;
    note(cx, TakenEvent::Kind::Interrupt, static_cast<std::uint8_t>(vector));
    return deliver_interrupt(cx, static_cast<std::uint8_t>(vector));
}

bool take_debug_trap(SystemContext& cx) {
    cx.fault = {.vector = Vector::DB, .debug_bits = cx.state.pending_debug};
    cx.state.pending_debug = 0;
    return deliver_fault(cx);
}

Next next_by_activity(const SystemContext& cx) {
    switch (cx.state.activity) {
    case Activity::Running: return Next::Execute;
    case Activity::Shutdown: return Next::Shutdown;
    default: return Next::Halted;
    }
}

} // namespace

bool deliver_fault(SystemContext& cx) {
    Fault fault = cx.fault;
    cx.state.pending_debug = 0; // traps of an instruction that did not complete
    while (!deliver_once(cx, fault)) {
        const Fault second = cx.fault;
        if (fault.vector == Vector::DF && class_of(second.vector) != Class::Benign) {
            note_fault(cx, second);
            return shut_down(cx);
        }
        if (is_double_fault(fault.vector, second.vector)) {
            note_fault(cx, second);
            fault = {.vector = Vector::DF, .has_error_code = true};
        } else {
            fault = second;
        }
    }
    delivered(cx);
    return true;
}

bool deliver_interrupt(SystemContext& cx, std::uint8_t vector) {
    const Event event{.vector = vector,
                      .source = Event::Source::Hardware,
                      .return_rip = cx.state.rip,
                      .resume_flag = (cx.state.rflags & FLAG_RF) != 0};
    if (!deliver_event(cx, event))
        return deliver_fault(cx);
    delivered(cx);
    return true;
}

Next service_events(SystemContext& cx) {
    CpuState& state = cx.state;
    cx.changes &= ~(change::kEvents | change::kActivity);
    if (state.activity == Activity::Shutdown)
        return Next::Shutdown;
    const bool trap = state.pending_debug != 0 && !state.mov_ss_shadow;
    if (!take_signals(cx, state.nmi_blocked || state.mov_ss_shadow || trap))
        return Next::Shutdown;
    if (state.activity == Activity::WaitForSipi)
        return Next::Halted;
    if (trap && state.pending_debug != 0) {
        if (!take_debug_trap(cx) || !take_signals(cx, state.nmi_blocked))
            return Next::Shutdown;
    }
    if (!take_interrupt(cx))
        return Next::Shutdown;
    return next_by_activity(cx);
}

bool begin_instruction_slow(SystemContext& cx, std::uint64_t linear) {
    CpuState& state = cx.state;
    cx.step_trap = (state.rflags & FLAG_TF) != 0;
    cx.shadowed = state.sti_shadow || state.mov_ss_shadow;
    cx.resume = (state.rflags & FLAG_RF) != 0;
    cx.debug_hits = 0;
    if (cx.resume || state.mov_ss_shadow || (state.dr7 & 0xff) == 0)
        return true;
    const std::uint64_t hits = instruction_breakpoints(cx, linear);
    if (hits == 0)
        return true;
    cx.fault = {.vector = Vector::DB, .debug_bits = hits};
    return false;
}

void end_instruction_slow(SystemContext& cx, Flow flow) {
    CpuState& state = cx.state;
    if (cx.shadowed) {
        state.sti_shadow = false;
        state.mov_ss_shadow = false;
        cx.changes |= change::kEvents;
    }
    if (cx.resume)
        state.rflags &= ~FLAG_RF;
    if (cx.step_trap && ((state.debugctl & DEBUGCTL_BTF) == 0 || flow == Flow::Branched))
        state.pending_debug |= kDr6SingleStep;
    state.pending_debug |= cx.debug_hits;
    cx.debug_hits = 0;
    if (state.pending_debug != 0)
        cx.changes |= change::kEvents;
}

bool halt(SystemContext& cx) {
    if (cx.state.cpl != 0)
        return cx.gp(0);
    cx.state.activity = Activity::Halted;
    cx.changes |= change::kActivity | change::kEvents;
    return true;
}

void set_mov_ss_shadow(SystemContext& cx) {
    cx.state.mov_ss_shadow = true;
    cx.changes |= change::kEvents;
}

} // namespace doppel::cpu::x86
