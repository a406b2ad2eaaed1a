// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Exceptions, interrupts, debug traps, and what happens between two instructions.
/// Intel SDM (June 2025) Vol. 3A chapters 7 (delivery), 10 (INIT), Vol. 3B chapter 18 (debug).
///
/// One instruction of an engine:
///     if (needs_service(cx)) switch (service_events(cx)) { … }       // interrupts, traps, halt
///     if (!begin_instruction(cx, linear_of_rip)) goto fault;         // instruction breakpoints
///     … fetch, decode, execute; state.rip = next …
///     success:  end_instruction(cx, flow);    // shadows, RF, single step
///     fault:    if (!deliver_fault(cx)) -> ShutdownExit
/// Translated code skips begin/end as long as step_free(cx) held on entry to the block.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// Delivers cx.fault as raised by the instruction at state.rip (faults) or before it (traps), with
/// the rules of contributory and double faults. false: triple fault, state.activity = Shutdown.
[[nodiscard]] bool deliver_fault(SystemContext& cx);

/// Delivers a maskable interrupt or NMI (vector 2) before the instruction at state.rip; a fault
/// while doing so is delivered in its place. false: triple fault. Wakes from HLT.
[[nodiscard]] bool deliver_interrupt(SystemContext& cx, std::uint8_t vector);

/// What an engine does next.
enum class Next : std::uint8_t {
    Execute,  // the instruction at state.rip
    Halted,   // nothing to execute until the InterruptPort has an event
    Shutdown, // triple fault
};

/// Everything that comes between two instructions, by priority (Vol. 3A table 7-2): INIT, SIPI,
/// pending debug traps, NMI, maskable interrupts; honours shadows, IF, NMI blocking, HLT and
/// wait-for-SIPI. Asks the InterruptPort. May deliver one event.
Next service_events(SystemContext& cx);

/// service_events() has something to look at, as far as the vCPU itself knows; the engine adds its
/// own "notified" flag (Wakeup).
[[gnu::always_inline]] inline bool needs_service(const SystemContext& cx) {
    return (cx.changes & (change::kEvents | change::kActivity)) != 0;
}

/// False: the next instruction is single-stepped, shadowed, RF'd or breakpoints are armed, and an
/// engine must go instruction by instruction through begin_ and end_instruction().
[[gnu::always_inline]] inline bool step_free(const SystemContext& cx) {
    return (cx.state.rflags & (FLAG_TF | FLAG_RF)) == 0 && (cx.state.dr7 & 0xff) == 0 &&
           !cx.state.sti_shadow && !cx.state.mov_ss_shadow && cx.state.pending_debug == 0;
}

[[nodiscard]] bool begin_instruction_slow(SystemContext& cx, std::uint64_t linear);
/// Where an instruction went: with IA32_DEBUGCTL.BTF only a branch is a single step.
enum class Flow : std::uint8_t { InLine, Branched };
void end_instruction_slow(SystemContext& cx, Flow flow);

/// Notes TF and the shadows for end_instruction() and looks at instruction breakpoints; false: #DB
/// is in cx.fault.
[[gnu::always_inline, nodiscard]] inline bool begin_instruction(SystemContext& cx,
                                                                std::uint64_t linear) {
    cx.stepping = !step_free(cx);
    return !cx.stepping || begin_instruction_slow(cx, linear);
}
/// After an instruction that completed; state.rip is the next one. Also after each iteration of a
/// REP string instruction (state.rip then is the instruction itself).
[[gnu::always_inline]] inline void end_instruction(SystemContext& cx, Flow flow = Flow::InLine) {
    if (cx.stepping) [[unlikely]]
        end_instruction_slow(cx, flow);
}

/// HLT: CPL 0 is checked here. Sets Activity::Halted; the engine then advances rip and calls
/// service_events().
[[nodiscard]] bool halt(SystemContext& cx);

/// MOV SS and POP SS, at their end: blocks interrupts, NMI and debug traps for one instruction.
void set_mov_ss_shadow(SystemContext& cx);

/// Port access by IN, OUT, INS, OUTS: IOPL and the I/O permission bitmap (#GP(0)).
[[nodiscard]] bool check_io(SystemContext& cx, std::uint16_t port, std::uint32_t bytes);
/// After check_io(): the access itself, with I/O breakpoints. 1, 2 or 4 bytes.
std::uint32_t read_port(SystemContext& cx, std::uint16_t port, std::uint32_t bytes);
void write_port(SystemContext& cx, std::uint16_t port, std::uint32_t bytes, std::uint32_t value);

/// Data breakpoints: called by the memory functions when DR7 enables any.
void note_data_access(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                      AccessType access);

/// DR6 bits of the instruction breakpoints at `linear`.
std::uint64_t instruction_breakpoints(const SystemContext& cx, std::uint64_t linear);

/// RESET and INIT states (Vol. 3A §10.1.1 table 10-1). RESET leaves the CPU running at the reset
/// vector when `bootstrap`, else in wait-for-SIPI. Neither touches the InterruptPort.
enum class Bootstrap : std::uint8_t { No, Yes };
void reset(SystemContext& cx, Bootstrap bootstrap);
void init(SystemContext& cx, Bootstrap bootstrap);
void start_up(SystemContext& cx, std::uint8_t vector); // SIPI

} // namespace doppel::cpu::x86
