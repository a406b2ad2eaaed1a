// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Table-driven decoder for x86 code of every mode, shared by interpreter and translator.
/// Intel SDM (June 2025) Vol. 2, chapters 2 and appendix A. Any thread; no allocation, no libc
/// calls, general registers only (the translator calls it with guest vector registers live).
///
/// How it works. The instruction set is text in rows_*.hpp, in the notation of the SDM's opcode
/// maps (language: row.hpp). table_builder.hpp reads it at compile time into 48-byte entries and,
/// where one opcode means several things, nodes that choose by prefix, ModRM field, W, L or mode.
/// decode() reads prefixes and escapes, follows the nodes to an entry, reads ModRM, SIB,
/// displacement and immediate with as few unpredictable branches as it can, and composes the
/// Instruction in registers.
///
/// Where CPUs differ. Intel is followed: 66 does not cut near branches in 64-bit code, 0F 0D with a
/// register is a NOP, far pointers of 80 bits exist. Exceptions, because AMD and Intel's manual
/// leave no common ground that software could tell: MOVSXD with 66 reads 32 bits from memory, as on
/// AMD. SYSCALL outside and SYSENTER inside long mode decode everywhere: the executor knows the CPU
/// model.
///
/// What keeps it right. zydis_test.cpp compares every field of some 80 million encodings with
/// Zydis, host_test.cpp lets the host CPU judge validity and length of two million, fuzz/decoder
/// goes on for ever. Where we differ from Zydis on purpose: disassembler/zydis_allowed.cpp.

#include <cstdint>
#include <span>

#include "cpu/x86/decoder/instruction.hpp"

namespace doppel::cpu::x86 {

enum class DecodeStatus : std::uint8_t {
    Ok,
    NeedMoreBytes, // `bytes` ended (before 15): fetch the next page and call again with both
    Undefined,     // #UD: no such instruction in this mode, illegal LOCK, UD0/UD1/UD2, EVEX, XOP, …
    TooLong,       // #GP(0): more than 15 bytes
};

/// Decodes the instruction at the start of `bytes`. It looks at 15 at most, but give it all there
/// are: with fewer than 32 it works on a copy, which takes longer. `out` is complete if Ok is
/// returned and unspecified otherwise. Says nothing about CPL, CPUID (out.feature), CRs: that is
/// the caller's.
DecodeStatus decode(std::span<const std::uint8_t> bytes, CodeSize code_size, Instruction& out);

} // namespace doppel::cpu::x86
