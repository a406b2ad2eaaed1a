// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Test support: where we differ from Zydis 4.0.0 on purpose.

#include <Zydis/Zydis.h>

#include <span>
#include <string_view>

#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86 {

struct Disagreement {
    std::span<const std::uint8_t> bytes;
    CodeSize code_size;
    std::string_view field;
    DecodeStatus our_status;
    DecodeStatus their_status;
    const Instruction* ours;               // nullptr unless Ok
    const ZydisDecodedInstruction* theirs; // nullptr unless Ok
};

bool is_allowed(const Disagreement& disagreement);

/// An instruction of a set that guests are never offered (AVX-512, XOP, VMX, …).
bool is_hidden_instruction(std::span<const std::uint8_t> bytes, CodeSize code_size);

} // namespace doppel::cpu::x86
