// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The x87's last-instruction pointers, which belong to the guest and not to the host instruction
/// that did its work. Intel SDM Vol. 1 §8.1.8, §8.1.10 (figures 8-9 to 8-12).
#include <cstddef>
#include <cstdint>

#include "cpu/x86/decoder/instruction.hpp"
#include "cpu/x86/native/vector_registers.hpp"
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86::native {

struct X87Pointers {
    std::uint16_t fop = 0;
    std::uint64_t fip = 0, fdp = 0;
};

X87Pointers x87_pointers(const VectorRegisters& registers);
void set_x87_pointers(VectorRegisters& registers, const X87Pointers& pointers);

/// Of an arithmetic x87 instruction at cx.state.rip; `operand_offset` if it has a memory operand.
X87Pointers pointers_of(const SystemContext& cx, const Instruction& in,
                        std::uint64_t operand_offset, const X87Pointers& before);

/// Into and out of the image of FNSTENV, FNSAVE, FLDENV, FRSTOR (`operand_size` 2: 14 bytes).
void put_pointers(const SystemContext& cx, unsigned operand_size, const X87Pointers& pointers,
                  std::byte* image);
X87Pointers get_pointers(const SystemContext& cx, unsigned operand_size, const std::byte* image);

} // namespace doppel::cpu::x86::native
