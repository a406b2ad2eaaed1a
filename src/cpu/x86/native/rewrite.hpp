// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Guest instruction -> host instruction in 64-bit mode with its memory operand at [rbx] and its
/// general register operand, if any, in rax.
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/x86/decoder/instruction.hpp"

namespace doppel::cpu::x86::native {

struct HostCode {
    std::array<std::uint64_t, 2> words{}; // the bytes, zeros behind them
    std::size_t length = 0;
};

HostCode rewrite(const Instruction& in, const std::uint8_t* bytes, bool code64);

/// The explicit general register operand, or nullptr.
const Operand* gpr_operand(const Instruction& in);

} // namespace doppel::cpu::x86::native
