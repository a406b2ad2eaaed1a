// SPDX-License-Identifier: Apache-2.0
/// Where the guest's flags are, and how they come back after a check has clobbered them. Saving
/// them costs five uops and a turn through rax; but most flags are dead, only a page fault could
/// show them. So whatever lets them be computed again is as good as a copy: the instruction that
/// made them, while its operands are as they were.
#include "cpu/x86/frontend/block_translator.hpp"

#include <bit>
#include <cstring>

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

std::uint16_t slots_of(const Instruction& in) {
    constexpr std::uint16_t kSlots = 0xf000;
    return static_cast<std::uint16_t>((in.registers_read | in.registers_written) & kSlots);
}

unsigned rm_register(const Instruction& in) {
    return static_cast<unsigned>(in.modrm_rm() | (in.rex & 1) << 3);
}

/// No scratch register is needed: at most ModRM.rm is a slot.
bool operands_in_place(const Instruction& in) {
    const std::uint16_t slots = slots_of(in);
    if (slots == 0)
        return true;
    const unsigned rm = rm_register(in);
    const auto reg = static_cast<unsigned>(in.modrm_reg() | (in.rex & 4) << 1);
    return in.has_modrm() && slots == 1u << rm && (is_group(in) || reg != rm);
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

} // namespace

BlockTranslator::Recipe BlockTranslator::recipe_of(const ScannedInstruction& at) const {
    using How = Recipe::How;
    const Instruction& in = at.in;
    if (!scan_.tuning.flags || at.treatment != Treatment::Generic || in.has_memory() ||
        in.is_vex() || in.map != OpcodeMap::Primary || has_high_byte(in) || !operands_in_place(in))
        return {};
    switch (in.op) {
    case Op::Cmp:
    case Op::Test:
    case Op::And:
    case Op::Or: return {&at, How::Again};
    case Op::Xor: return same_registers(in) ? Recipe{&at, How::Again} : Recipe{};
    case Op::Neg: return {&at, How::Undo};
    case Op::Add:
    case Op::Sub: return same_registers(in) ? Recipe{} : Recipe{&at, How::Undo};
    default: return {};
    }
}

/// The flags into the register. Touches nothing else, scratch registers neither.
void BlockTranslator::emit_recipe(const Recipe& recipe) {
    const Instruction& in = recipe.maker->in;
    const std::uint8_t* const bytes = scan_.bytes.data() + recipe.maker->buffer_offset;
    Rewrite with;
    with.code32 = code32_;
    if (slots_of(in) != 0) {
        with.register_is_mem = true;
        with.mem = slot(rm_register(in));
    }
    if (recipe.how == Recipe::How::Undo)
        emit_rewritten(a_, opposite(in), bytes, with);
    emit_rewritten(a_, in, bytes, with);
}

/// Translated code is not left there, whatever the flags are: memory has been checked by others.
bool BlockTranslator::cannot_stop(const ScannedInstruction& at) const {
    const bool checked_stack = at.stack && group_checked_.at(at.stack_group);
    switch (at.treatment) {
    case Treatment::Lea: return at.in.operand_size != 2;
    case Treatment::Nothing: return true;
    case Treatment::Push:
    case Treatment::Pop: return checked_stack;
    case Treatment::Generic: break;
    default: return false;
    }
    const int slots = std::popcount(slot_operands(at.in)); // more are the interpreter's
    return !may_signal(at.in) && (at.in.has_memory() ? checked_stack && slots < 2 : slots < 3);
}

/// The instructions from `index` on make all flags before anything can see the old ones.
bool BlockTranslator::flags_dead_from(std::size_t index) const {
    for (; index < scan_.count; ++index) {
        const ScannedInstruction& at = scan_.list.at(index);
        if (!cannot_stop(at))
            return false;
        if (at.treatment != Treatment::Generic)
            continue;
        if (needs_flags(at.in))
            return false;
        if (makes_all_flags(at.in))
            return true;
    }
    return false;
}

/// Before `at` is translated: it may change what the flags could be computed from.
void BlockTranslator::keep_flags_across(const ScannedInstruction& at) {
    if (!recipe_)
        return;
    const Instruction& maker = recipe_.maker->in;
    if (((maker.registers_read | maker.registers_written) & at.in.registers_written) == 0)
        return;
    if (at.treatment == Treatment::Generic && makes_all_flags(at.in))
        return; // its own check comes before that
    const bool checks = at.in.has_memory() && at.loop_access.group == LoopAccess::kNone;
    const bool clobbers =
        at.treatment != Treatment::Lea && (at.treatment != Treatment::Generic || checks);
    if (clobbers && at.treatment == Treatment::Generic && !needs_flags(at.in) &&
        !may_signal(at.in) && flags_dead_from(at.index + 1u)) {
        dying_ = true;
        return;
    }
    if (clobbers)
        save_flags();
    else
        hold_flags();
    recipe_ = {};
}

/// After the translation of `at`.
void BlockTranslator::note_flags(const ScannedInstruction& at) {
    if (!writes_flags(at.in))
        return;
    native_ = true;
    saved_ = made_ = false;
    recipe_ = makes_all_flags(at.in) ? recipe_of(at) : Recipe{};
}

void BlockTranslator::save_flags() {
    if (saved_)
        return;
    restore_flags();
    take(kScratch1);
    a_.mov(kScratch1, kRax);
    a_.lahf();
    a_.seto_al();
    a_.store16(DOPPEL_FRAME(flags), kRax);
    a_.mov(kRax, kScratch1);
    saved_ = true;
}

void BlockTranslator::restore_flags() {
    if (native_)
        return;
    native_ = true;
    if (recipe_) {
        write_slots();
        emit_recipe(recipe_);
        return;
    }
    take(kScratch1);
    a_.mov(kScratch1, kRax);
    a_.load16_zero_extended(kRax, DOPPEL_FRAME(flags));
    a_.alu_imm8_al(Alu::Add, 0x7f);
    a_.sahf();
    a_.mov(kRax, kScratch1);
}

/// The slot holds them from here on, the register does not.
void BlockTranslator::clobber_flags() {
    save_flags();
    native_ = false;
    recipe_ = {};
}

/// A check follows, whose miss recovers them: see Cold::recipe. It needs both scratch registers.
void BlockTranslator::clobber_in_check() {
    take(kScratch0);
    take(kScratch1);
    if (!recipe_ && !made_)
        save_flags();
    native_ = false;
}

/// So that they are in the slot or in the register.
void BlockTranslator::hold_flags() {
    if (!saved_ && !made_)
        restore_flags();
}

/// Before a jump: whoever finds the flags in neither place computes them by `recipe_`.
void BlockTranslator::leave_maker() {
    const bool fused = a_.here() == body_end_; // the branch shall stay beside its compare
    const std::uint8_t* const start = a_.here();
    a_.store32_imm(DOPPEL_FRAME(flag_maker), 0);
    const auto bytes = static_cast<std::size_t>(a_.here() - start);
    std::uint8_t* place = a_.here() - 4;
    if (fused) {
        a_.swap_last(body_bytes_, bytes);
        place -= body_bytes_;
        body_end_ = a_.here();
    }
    makers_.push_back({place, recipe_});
}

void BlockTranslator::emit_makers() {
    for (const Maker& maker : makers_) {
        const auto offset = static_cast<std::uint32_t>(a_.here() - stubs_.base);
        if (!a_.full())
            std::memcpy(a_.writable(maker.place), &offset, sizeof offset);
        emit_recipe(maker.recipe);
        a_.jump(stubs_.made_register);
    }
}

} // namespace doppel::cpu::x86::frontend
