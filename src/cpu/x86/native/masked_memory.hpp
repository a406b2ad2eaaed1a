// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Instructions that touch only some elements of memory, element by element: VMASKMOVPS/PD,
/// VPMASKMOVD/Q, (V)MASKMOVDQU, MASKMOVQ, VGATHER*, VPGATHER*. Convention of the system layer.
#include "cpu/x86/decoder/instruction.hpp"
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86::native {

bool vmaskmov(SystemContext& cx, const Instruction& in, std::uint64_t offset);
bool maskmov(SystemContext& cx, const Instruction& in);
bool gather(SystemContext& cx, const Instruction& in, const std::uint8_t* bytes);

} // namespace doppel::cpu::x86::native
