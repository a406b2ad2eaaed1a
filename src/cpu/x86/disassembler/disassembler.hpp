// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Text of instructions for traces and test output, by Zydis: independent of our own decoder, so
/// that a trace shows what the bytes mean even where the decoder errs. Not for the engines.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "cpu/x86/decoder/instruction.hpp"

namespace doppel::cpu::x86 {

/// The instruction at the start of `bytes` in Intel syntax; branch targets and rip-relative
/// addresses are absolute, `address` being the RIP of the first byte. "(bad)" for what Zydis
/// rejects.
std::string disassemble(std::span<const std::uint8_t> bytes, CodeSize code_size,
                        std::uint64_t address);

/// The enumerator in lower case: "add", "movtocontrol", "simd".
std::string_view op_name(Op op);

/// One line with the fields of our own decoding: for failed tests.
std::string describe(const Instruction& instruction);

} // namespace doppel::cpu::x86
