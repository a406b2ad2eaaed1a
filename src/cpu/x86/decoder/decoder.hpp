// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Table-driven decoder for x86 code of every mode, shared by interpreter and translator.
/// Intel SDM (June 2025) Vol. 2, chapters 2 and appendix A. Any thread; no allocation, no libc
/// calls, general registers only (the translator calls it with guest vector registers live).

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

/// Decodes the instruction at the start of `bytes` (give up to 15). `out` is complete if Ok is
/// returned and unspecified otherwise. Says nothing about CPL, CPUID (out.feature), CRs: that is
/// the caller's.
DecodeStatus decode(std::span<const std::uint8_t> bytes, CodeSize code_size, Instruction& out);

} // namespace doppel::cpu::x86
