// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/jump_table.hpp"

#include <ranges>

#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

bool is_register(const Operand& operand, unsigned reg) {
    return operand.kind == OperandKind::Gpr && operand.reg == reg;
}
bool writes(const Instruction& instruction, unsigned reg) {
    return (instruction.registers_written >> reg & 1) != 0;
}

/// What is looked for next, from the jump backwards.
class Search {
public:
    enum class Outcome : std::uint8_t { GoOn, Found, Failed };

    explicit Search(unsigned target) : sum_{target} {}

    Outcome look_at(const Instruction& instruction) {
        if (instruction.branch != BranchKind::None)
            return Outcome::Failed;
        switch (wanted_) {
        case Wanted::Add: return look_for_add(instruction);
        case Wanted::Entry: return look_for_entry(instruction);
        case Wanted::Base: break;
        }
        if (!writes(instruction, base_))
            return Outcome::GoOn;
        const bool is_base = instruction.op == Op::Lea && instruction.memory_base == kRip &&
                             instruction.operand_size == 8;
        return is_base ? Outcome::Found : Outcome::Failed;
    }

private:
    enum class Wanted : std::uint8_t { Add, Entry, Base };

    Outcome look_for_add(const Instruction& instruction) {
        if (!writes(instruction, sum_))
            return Outcome::GoOn;
        const Operand& other = instruction.operands[1];
        if (instruction.op != Op::Add || instruction.has_memory() ||
            instruction.operand_size != 8 || !is_register(instruction.operands[0], sum_) ||
            other.kind != OperandKind::Gpr)
            return Outcome::Failed;
        other_ = other.reg;
        wanted_ = Wanted::Entry;
        return Outcome::GoOn;
    }
    /// One of the two is the base.
    Outcome look_for_entry(const Instruction& instruction) {
        if (!writes(instruction, sum_) && !writes(instruction, other_))
            return Outcome::GoOn;
        const unsigned entry = writes(instruction, sum_) ? sum_ : other_;
        base_ = entry == sum_ ? other_ : sum_;
        constexpr std::uint8_t kMovslq = 0x63;
        if (instruction.op != Op::Movsx || instruction.opcode != kMovslq ||
            instruction.operand_size != 8 || !is_register(instruction.operands[0], entry) ||
            !instruction.has_memory() || instruction.memory_base != base_ ||
            instruction.memory_index == kNoRegister || instruction.memory_scale != 4 ||
            instruction.displacement != 0)
            return Outcome::Failed;
        wanted_ = Wanted::Base;
        return Outcome::GoOn;
    }

    unsigned sum_, other_ = 0, base_ = 0;
    Wanted wanted_ = Wanted::Add;
};

} // namespace

std::optional<JumpTable> jump_table_of(std::span<const std::uint8_t> code, std::uint64_t linear,
                                       std::span<const std::uint32_t> begins) {
    Instruction jump;
    if (begins.empty() ||
        decode(code.subspan(begins.back()), CodeSize::Bits64, jump) != DecodeStatus::Ok)
        return std::nullopt;
    if (jump.has_memory()) {
        if (jump.memory_base != kNoRegister || jump.memory_index == kNoRegister ||
            jump.memory_scale != 8)
            return std::nullopt;
        return JumpTable{static_cast<std::uint64_t>(jump.displacement), false};
    }
    if (jump.operands[0].kind != OperandKind::Gpr)
        return std::nullopt;
    Search search{jump.operands[0].reg};
    for (const std::uint32_t place : begins.first(begins.size() - 1) | std::views::reverse) {
        Instruction instruction;
        if (decode(code.subspan(place), CodeSize::Bits64, instruction) != DecodeStatus::Ok)
            return std::nullopt;
        const auto outcome = search.look_at(instruction);
        if (outcome == Search::Outcome::Failed)
            return std::nullopt;
        if (outcome == Search::Outcome::Found)
            return JumpTable{linear + place + instruction.length +
                                 static_cast<std::uint64_t>(instruction.displacement),
                             true};
    }
    return std::nullopt;
}

} // namespace doppel::cpu::x86::frontend
