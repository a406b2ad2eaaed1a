// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Makes cases out of instruction bytes: registers and memory such that something happens.
#include <optional>
#include <span>

#include "cpu/x86/decoder/instruction.hpp"
#include "tests/oracle/case.hpp"
#include "tests/oracle/random.hpp"

namespace doppel::oracle {

cpu::x86::CodeSize code_size(Mode mode);

/// What an instruction test can be about: no instruction whose effect differs between a Linux
/// process and our guest (descriptor tables, system calls, clocks, random numbers), none that the
/// host's maker does differently from the CPU model's (near branches with prefix 66); what one
/// maker does differently only sometimes is in maker.hpp.
bool is_testable(const cpu::x86::Instruction& in, Mode mode);

/// One instruction, decoded and testable, with random registers; its memory operand mostly in the
/// data pages, sometimes across their ends. Changes displacements in the code to get there.
/// Nothing when the bytes are no testable instruction.
std::optional<Case> make_case(std::span<const std::uint8_t> code, Mode mode, Random& random);

/// Instruction bytes: random ones that decode.
std::optional<Case> random_case(Mode mode, Random& random);

/// All encodings in order: maps x opcodes x mandatory prefixes x W x L x ModRM forms.
class Encodings {
public:
    explicit Encodings(Mode mode) : mode_{mode} {}
    /// The next one, at most 15 bytes with room for what follows the ModRM; empty at the end.
    std::span<const std::uint8_t> next();

private:
    bool advance();
    Mode mode_;
    std::uint64_t index_ = 0;
    std::array<std::uint8_t, 24> bytes_{};
};

} // namespace doppel::oracle
