// SPDX-License-Identifier: Apache-2.0
/// Where the guest's flags are, and how they come back after a check has clobbered them. Saving
/// them costs five uops and a turn through rax; but most flags are dead, only a page fault could
/// show them. So whatever lets them be computed again is as good as a copy: see emit_recipe.cpp.
#include "cpu/x86/frontend/block_translator.hpp"

#include <bit>
#include <cstring>

namespace doppel::cpu::x86::frontend {

using namespace translator;

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
    if (may_signal(at.in) || (at.in.has_memory() && !checked_stack))
        return false;
    const unsigned slots = slot_operands(at.in);
    const unsigned but_one = slots & (slots - 1); // more are the interpreter's
    return at.in.has_memory() ? but_one == 0 : (but_one & (but_one - 1)) == 0;
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
    if ((registers_of(recipe_) & at.in.registers_written) == 0)
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
    if (operand_pays(at.index) && keep_operand(at))
        return;
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
    operand_kept_ = false;
}

void BlockTranslator::save_flags() {
    if (saved_)
        return;
    restore_flags();
    take(kScratch1);
    saved_ = true;
    if (compact_)
        a_.call(stubs_.shared.save_flags);
    else
        emit_save_flags(a_, DOPPEL_FRAME(flags));
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
    if (compact_) {
        a_.call(stubs_.shared.restore_flags);
        return;
    }
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
