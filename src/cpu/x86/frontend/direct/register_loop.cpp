// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/register_loop.hpp"

#include <optional>

#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::size_t kMostInstructions = 64;

/// Where the jump leads; anything if the instruction is none.
std::int64_t target_of(const Instruction& instruction, std::size_t end) {
    return static_cast<std::int64_t>(end) + static_cast<std::int64_t>(instruction.immediate);
}

bool is_jump(const Instruction& instruction) {
    return instruction.branch == BranchKind::Jump || instruction.branch == BranchKind::Conditional;
}

/// Neither in memory nor in the hands of the system, or a relative jump.
bool works_on_registers(const Instruction& instruction) {
    constexpr std::uint16_t kUnwanted =
        attribute::kPrivileged | attribute::kEndsBlock | attribute::kIoplSensitive;
    if (is_jump(instruction))
        return true;
    return (instruction.type == InstructionClass::Alu ||
            instruction.type == InstructionClass::X87) &&
           !instruction.reads_memory() && !instruction.writes_memory() && !instruction.names(Rsp) &&
           (instruction.attributes & kUnwanted) == 0;
}

/// The jump back behind `at`, or before which there is anything else than registers.
struct Back {
    std::size_t to, end;
};

std::optional<Back> next_jump_back(std::span<const std::uint8_t> page, std::size_t at) {
    Instruction instruction;
    for (std::size_t i = 0; i < kMostInstructions; ++i) {
        if (at >= page.size() ||
            decode(page.subspan(at), CodeSize::Bits64, instruction) != DecodeStatus::Ok)
            return std::nullopt;
        const std::size_t end = at + instruction.length;
        if (!works_on_registers(instruction))
            return std::nullopt;
        const std::int64_t target = target_of(instruction, end);
        if (is_jump(instruction) && target <= static_cast<std::int64_t>(at)) {
            if (target < 0)
                return std::nullopt;
            return Back{.to = static_cast<std::size_t>(target), .end = end};
        }
        at = end;
    }
    return std::nullopt;
}

} // namespace

bool in_register_loop(std::span<const std::uint8_t> page, std::size_t at) {
    const auto back = next_jump_back(page, at);
    if (!back || back->to > at)
        return false;
    // From its beginning one comes by `at`, and to the same jump.
    bool begins = false;
    std::size_t place = back->to;
    Instruction instruction;
    for (std::size_t i = 0; i < kMostInstructions && place < back->end; ++i) {
        if (decode(page.subspan(place), CodeSize::Bits64, instruction) != DecodeStatus::Ok ||
            !works_on_registers(instruction))
            return false;
        begins = begins || place == at;
        place += instruction.length;
        if (is_jump(instruction) && place < back->end &&
            target_of(instruction, place) <= static_cast<std::int64_t>(place - 1))
            return false; // a loop within, which `at` is behind
    }
    return begins && place == back->end;
}

} // namespace doppel::cpu::x86::frontend
