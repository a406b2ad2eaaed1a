// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The heart of translating a machine into itself: a guest instruction is emitted again with other
/// registers and another memory operand, everything else as it was. Intel SDM Vol. 2 chapter 2.
#include <array>

#include "cpu/x86/decoder/instruction.hpp"
#include "cpu/x86/frontend/frame.hpp"

namespace doppel::cpu::x86::frontend {

struct Rewrite {
    std::array<HostReg, 16> gpr = kHome; // slot registers: the scratch register to use instead
    Mem mem{};                           // replaces the memory operand, if there is one
    bool high_as_low = false;            // ah is in al (swapped by the caller), and so on
    bool register_is_mem = false;        // the register operand in ModRM.rm is at `mem` instead
    HostReg mem_is_register = translator::kNoReg; // and the other way round
    bool code32 = false;                          // the instruction is of 32-bit code
};

/// False: cannot be encoded (ah and its like together with a REX prefix); nothing was emitted.
bool emit_rewritten(translator::Assembler& to, const Instruction& instruction,
                    const std::uint8_t* bytes, const Rewrite& with);

/// MOV of the accumulator from or to an address in the instruction: it has no ModRM byte.
bool is_offset_move(const Instruction& instruction);

/// The memory operand has an address that no register changes, but for a segment's base.
constexpr bool has_known_offset(const Instruction& in) {
    return in.memory_base == kNoRegister && in.memory_index == kNoRegister;
}

/// The ModRM.reg field is an opcode extension, not a register.
bool is_group(const Instruction& instruction);

unsigned rm_register(const Instruction& in);
unsigned reg_register(const Instruction& in);

/// Has a twin with ModRM.reg and ModRM.rm in each other's role.
bool has_twin(const Instruction& in);
Instruction twin(Instruction in);

} // namespace doppel::cpu::x86::frontend
