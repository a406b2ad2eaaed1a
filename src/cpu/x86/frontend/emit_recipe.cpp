// SPDX-License-Identifier: Apache-2.0
/// How flags are computed again: by the instruction that made them, while its operands are as they
/// were, or from its result. Of an operand that will not stay, memory among them, the frame keeps
/// the value (Frame::flag_operand): one store, where saving the flags themselves takes five uops.
#include "cpu/x86/frontend/block_translator.hpp"

#include <bit>

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

constexpr Mem kOperand = DOPPEL_FRAME(flag_operand);

std::uint16_t slots_of(const Instruction& in) {
    return static_cast<std::uint16_t>(in.registers() & kWithoutHome);
}

/// No scratch register is needed: at most ModRM.rm is a slot.
bool operands_in_place(const Instruction& in) {
    const std::uint16_t slots = slots_of(in);
    if (slots == 0)
        return true;
    const unsigned rm = rm_register(in);
    return in.has_modrm() && slots == 1u << rm && (is_group(in) || reg_register(in) != rm);
}

bool same_registers(const Instruction& in) {
    return in.operands[1].kind == OperandKind::Gpr && in.operands[1].reg == in.operands[0].reg;
}

bool has_high_byte(const Instruction& in) {
    return in.operands[0].kind == OperandKind::GprHigh ||
           in.operands[1].kind == OperandKind::GprHigh;
}

/// Add for sub and the other way round; neg is its own.
Instruction opposite(Instruction in) {
    if (in.op == Op::Neg)
        return in;
    if (is_group(in))
        in.modrm ^= 0x28;
    else
        in.opcode ^= 0x28;
    return in;
}

/// By a number that is not 0.
bool is_constant_shift(const Instruction& in) {
    return (in.op == Op::Shl || in.op == Op::Shr || in.op == Op::Sar) &&
           (in.opcode == 0xc0 || in.opcode == 0xc1 || in.opcode == 0xd0 || in.opcode == 0xd1) &&
           (in.immediate_size == 0 || (in.immediate & 0x1f) != 0);
}

} // namespace

BlockTranslator::Recipe BlockTranslator::recipe_of(const ScannedInstruction& at) const {
    using How = Recipe::How;
    const Instruction& in = at.in;
    if (!scan_.tuning.flags || at.treatment != Treatment::Generic || in.is_vex() ||
        in.map != OpcodeMap::Primary || has_high_byte(in))
        return {};
    const bool logic = in.op == Op::And || in.op == Op::Or || in.op == Op::Xor ||
                       (in.op == Op::Test && same_registers(in));
    if (logic && in.operands[0].kind == OperandKind::Gpr)
        return {&at, How::Result};
    if (operand_kept_)
        return {&at, recipe_with_operand(in), Recipe::kKept};
    if (in.has_memory() || !operands_in_place(in))
        return {};
    switch (in.op) {
    case Op::Cmp:
    case Op::Test: return {&at, How::Again};
    case Op::Neg: return {&at, How::Undo};
    case Op::Add:
    case Op::Sub: return same_registers(in) ? Recipe{} : Recipe{&at, How::Undo};
    default: return {};
    }
}

/// Its memory operand or, of a shift, its register will be in Frame::flag_operand.
BlockTranslator::Recipe::How BlockTranslator::recipe_with_operand(const Instruction& in) {
    using How = Recipe::How;
    switch (in.op) {
    case Op::Cmp:
    case Op::Test: return How::Again;
    case Op::Add:
    case Op::Sub: return How::Undo;
    default: return How::OnCopy;
    }
}

/// Guest registers that must stay as they are.
std::uint16_t BlockTranslator::registers_of(const Recipe& recipe) {
    if (recipe.how == Recipe::How::OnCopy)
        return 0;
    const Instruction& in = recipe.maker->in;
    std::uint16_t set = 0;
    const std::size_t count = recipe.how == Recipe::How::Result ? 1 : 2;
    for (std::size_t i = 0; i < count; ++i)
        if (in.operands[i].kind == OperandKind::Gpr && in.operands[i].reg != recipe.kept)
            set = static_cast<std::uint16_t>(set | 1u << in.operands[i].reg);
    return set;
}

/// A check comes before other flags, and those before the block's end.
bool BlockTranslator::operand_pays(std::size_t index) const {
    bool checks = false;
    for (; index < scan_.count; ++index) {
        const ScannedInstruction& at = scan_.list.at(index);
        const bool checked_stack = at.stack && group_checked_.at(at.stack_group);
        switch (at.treatment) {
        case Treatment::Nothing:
        case Treatment::Lea:
        case Treatment::Conditional: continue;
        case Treatment::Push:
        case Treatment::Pop: checks |= !checked_stack; continue;
        case Treatment::Generic: break;
        default: return false;
        }
        const bool found =
            at.base_group != ScannedInstruction::kNoGroup && group_states_.at(at.base_group).found;
        checks |= at.in.has_memory() && !checked_stack && !found &&
                  at.loop_access.group == LoopAccess::kNone;
        if (may_signal(at.in))
            return false;
        if (writes_flags(at.in))
            return checks;
    }
    return false;
}

/// `at` is about to write a register that the recipe needs.
bool BlockTranslator::keep_operand(const ScannedInstruction& at) {
    const auto lost = static_cast<std::uint16_t>(registers_of(recipe_) & at.in.registers_written);
    const auto reg = static_cast<unsigned>(std::countr_zero(lost));
    const bool plain = at.treatment == Treatment::Generic || at.treatment == Treatment::Lea ||
                       at.treatment == Treatment::Pop;
    if (!plain || !scan_.tuning.flag_operands || recipe_.kept != Recipe::kNone ||
        std::popcount(lost) != 1 || in_slot(reg) || reg == Rsp)
        return false;
    const Instruction& in = recipe_.maker->in;
    if (recipe_.how != Recipe::How::Result) {
        const bool is_reg = !is_group(in) && rm_register(in) != reg;
        if (!in.has_modrm() || slots_of(in) != 0 || same_registers(in) || (is_reg && !has_twin(in)))
            return false;
    }
    a_.store(kOperand, kHome[reg]);
    recipe_.kept = static_cast<std::uint8_t>(reg);
    return true;
}

/// CMP, TEST, ADD, SUB with an operand in memory: that goes to the frame, and `with` becomes the
/// form with a register.
void BlockTranslator::keep_memory_operand(const ScannedInstruction& at, Rewrite& with) {
    const Instruction& in = at.in;
    const bool known =
        in.op == Op::Cmp || in.op == Op::Test || in.op == Op::Add || in.op == Op::Sub;
    if (!known || !scan_.tuning.flag_operands || !scan_.tuning.flags || in.writes_memory() ||
        in.map != OpcodeMap::Primary || slot_operands(in) != 0 || has_high_byte(in) ||
        at.loop_access.group != LoopAccess::kNone || !operand_pays(at.index + 1u))
        return;
    const HostReg to = at.stack ? kScratch0 : kScratch1;
    take(to);
    if (in.memory_size == 8)
        a_.load(to, with.mem);
    else if (in.memory_size == 4)
        a_.load32(to, with.mem);
    else
        a_.rm0f(false, in.memory_size == 2 ? 0xb7 : 0xb6, to, with.mem);
    a_.store(kOperand, to);
    with.mem_is_register = to;
    operand_kept_ = true;
}

/// A shift of a register.
void BlockTranslator::keep_shifted(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    if (!is_constant_shift(in) || !scan_.tuning.flag_operands || !scan_.tuning.flags ||
        in.operands[0].kind != OperandKind::Gpr || in_slot(in.operands[0].reg) ||
        in.operands[0].reg == Rsp || !makes_all_flags(in) || !operand_pays(at.index + 1u))
        return;
    a_.store(kOperand, kHome[in.operands[0].reg]);
    operand_kept_ = true;
}

/// TEST of the result with itself, CMP with 0 where it is in memory: CF, OF and AF are 0 there,
/// too.
void BlockTranslator::emit_test_result(const Recipe& recipe) {
    const Instruction& in = recipe.maker->in;
    const unsigned reg = in.operands[0].reg;
    const bool byte = (in.opcode & 1) == 0;
    const bool wide = in.operand_size == 8 && !byte;
    if (in.operand_size == 2 && !byte)
        a_.byte(0x66);
    const HostReg home = kHome[reg];
    if (home == kNoReg || recipe.kept == reg) {
        const Mem at = recipe.kept == reg ? kOperand : slot(reg);
        a_.rm(wide, byte ? 0x80 : 0x83, static_cast<HostReg>(Alu::Cmp), at);
        a_.byte(0);
    } else if (byte) { // with REX, or it would be ah and its like
        a_.byte(home < 8 ? 0x40 : 0x45);
        a_.byte(0x84);
        a_.byte(static_cast<std::uint8_t>(0xc0 | (home & 7) * 9));
    } else {
        a_.rr(wide, 0x85, home, home);
    }
}

/// The flags into the register. Touches nothing else, scratch registers neither.
void BlockTranslator::emit_recipe(const Recipe& recipe) {
    if (recipe.how == Recipe::How::Result) {
        emit_test_result(recipe);
        return;
    }
    Instruction in = recipe.maker->in;
    const std::uint8_t* const bytes = scan_.bytes.data() + recipe.maker->buffer_offset;
    Rewrite with;
    with.code32 = code32_;
    if (recipe.how == Recipe::How::OnCopy) {
        const Mem kept = frame_at(offsetof(Frame, flag_scratch));
        a_.store(kept, kScratch0);
        a_.load(kScratch0, kOperand);
        with.gpr[in.operands[0].reg] = kScratch0;
        emit_rewritten(a_, in, bytes, with);
        a_.load(kScratch0, kept);
        return;
    }
    if (recipe.kept != Recipe::kNone) {
        if (!in.has_memory() && !is_group(in) && rm_register(in) != recipe.kept)
            in = twin(in);
        with.register_is_mem = true;
        with.mem = kOperand;
    } else if (slots_of(in) != 0) {
        with.register_is_mem = true;
        with.mem = slot(rm_register(in));
    }
    if (recipe.how == Recipe::How::Undo)
        emit_rewritten(a_, opposite(in), bytes, with);
    emit_rewritten(a_, in, bytes, with);
}

} // namespace doppel::cpu::x86::frontend
