// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Where the memory operand of a case is.
#include "cpu/x86/decoder/instruction.hpp"
#include "tests/oracle/case.hpp"

namespace doppel::oracle {

/// Base of a segment, by its number in Instruction::memory_segment.
std::uint64_t segment_base(Mode mode, unsigned segment);

/// Offset in its segment, bit offsets of BT and its like left aside; the instruction has one that
/// is no vector of addresses.
std::uint64_t operand_offset(const Case& test, const cpu::x86::Instruction& in);

/// The operand does not end within the segment: 16-bit code beyond 64 KiB, 32-bit beyond 4 GiB.
bool operand_wraps(const Case& test, const cpu::x86::Instruction& in);

/// A locked operand that may lie in two cache lines: executed, it would stop the whole host for a
/// moment, and hosts with bus-lock detection put who does it to sleep.
bool takes_bus_lock(const Case& test, const cpu::x86::Instruction& in);

} // namespace doppel::oracle
