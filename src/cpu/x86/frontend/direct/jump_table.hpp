// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Tables of jumps, as compilers make them of a switch.
#include <cstdint>
#include <optional>
#include <span>

namespace doppel::cpu::x86::frontend {

struct JumpTable {
    std::uint64_t linear;
    bool relative; // entries are 32 bits, distances from `linear`; else 64 bits, addresses
};

/// Of an indirect jump. `begins`: where some instructions begin in `code`, which is at `linear`;
/// they follow each other, nothing leads into the midst of them, and the last is the jump.
///     lea table(%rip),B … movslq (B,I,4),T … add B,T … jmp *T        (or the sum in B)
///     jmp *table(,I,8)
std::optional<JumpTable> jump_table_of(std::span<const std::uint8_t> code, std::uint64_t linear,
                                       std::span<const std::uint32_t> begins);

} // namespace doppel::cpu::x86::frontend
