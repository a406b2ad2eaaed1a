// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The whole system layer, for engines: every x86 operation that is not an ordinary user
/// instruction. Start with the conventions in context.hpp; exceptions.hpp has the loop.
///
/// | decoder Op                                  | call | |
/// ------------------------------------------- | ----------------------------------------------- |
/// | memory operands                             | read_data, write_data, compare_exchange_data |
/// | JmpFar CallFar RetFar Iret Int Int3 Int1    | far_jump, far_call, far_return, iret, … | | Into
/// Syscall Sysret Sysenter Sysexit        | into, syscall, sysret, sysenter, sysexit        | |
/// MovToSegment PopSegment LoadFarPointer      | load_segment / prepare_segment + commit_segment |
/// | Lgdt Lidt Lldt Ltr Lar Lsl Verr Verw        | segmentation.hpp | | Sgdt Sidt Sldt Str |
/// check_umip, then store from state               | | MovToControl … Clts Lmsw Smsw Xsetbv Invlpg
/// | control_registers.hpp                           | | Pushf Popf Cli Sti Clac Stac | flags.hpp |
/// | Rdmsr Wrmsr Rdtsc Rdtscp Rdpmc              | msr.hpp | | Rdpid | state.tsc_aux | | Rdfsbase …
/// Swapgs                           | read_segment_base, write_segment_base, swapgs   | | In Out
/// Ins Outs                             | check_io, read_port, write_port                 | | Hlt
/// Cpuid                                   | halt, cpuid                                     | |
/// Fxsave … Xrstors                            | xsave.hpp                                       |
#include "cpu/x86/system/control_registers.hpp"
#include "cpu/x86/system/cpuid.hpp"
#include "cpu/x86/system/exceptions.hpp"
#include "cpu/x86/system/far_transfer.hpp"
#include "cpu/x86/system/flags.hpp"
#include "cpu/x86/system/msr.hpp"
#include "cpu/x86/system/segment_access.hpp"
#include "cpu/x86/system/segmentation.hpp"
#include "cpu/x86/system/xsave.hpp"

namespace doppel::cpu::x86 {

/// Somebody else wrote to cx.state: drops every translation, sets all bits of cx.changes. There is
/// no other derived state.
void state_changed(SystemContext& cx);

/// Ready for reset() or for a loaded state. `state`, `board` and what `wiring` names outlive it.
/// Ordinary code, hence in line: not with guest registers live. Ends the process when RAM has more
/// than RamView::kMaxRegions regions.
inline SystemContext make_context(CpuState& state, BoardAccess& board, const VcpuWiring& wiring,
                                  std::uint32_t vcpu_count) {
    return {.state = state,
            .board = board,
            .ram = view_of(*wiring.memory),
            .features = features_of(*wiring.model),
            .traits = traits_of(*wiring.model),
            .cpuid_entries = wiring.model->cpuid.data(),
            .cpuid_count = wiring.model->cpuid.size(),
            .vcpu_index = wiring.index,
            .vcpu_count = vcpu_count,
            .tsc_frequency_hz = wiring.tsc->frequency_hz(),
            .own_entropy = wiring.entropy != nullptr};
}

} // namespace doppel::cpu::x86
