// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which instructions are translated, and how.
#include "cpu/x86/frontend/block_scan.hpp"

namespace doppel::cpu::x86::frontend {

Treatment classify(const Instruction& in, std::uint32_t mode, const FeatureSet& features);

/// A locked memory operand: by the prefix, or XCHG.
inline bool is_locked(const Instruction& in) {
    return in.has_memory() && (in.lock() || in.op == Op::Xchg);
}

/// Something else may come before a page fault: misalignment, a pending x87 exception.
bool interpreter_decides(const Instruction& in);

/// BT and its like with a register offset into memory.
bool is_bit_string(const Instruction& in);

} // namespace doppel::cpu::x86::frontend
