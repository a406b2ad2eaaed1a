// SPDX-License-Identifier: Apache-2.0
#pragma once
/// May this instruction be executed at all here? What the decoder cannot know: CPUID, CPL, mode,
/// control registers. Order as on the CPU: #UD, then #GP, then #NM.
#include "cpu/x86/interpreter/execution.hpp"

namespace doppel::cpu::x86::interpreter {

/// Most instructions have nothing to check.
DOPPEL_HOT bool needs_gate(const Instruction& in) {
    return in.feature != IsaFeature::None || in.type >= InstructionClass::X87 ||
           in.has(attribute::kPrivileged | attribute::kProtectedOnly);
}
bool pass_gate(SystemContext& cx, const Instruction& in);

} // namespace doppel::cpu::x86::interpreter
