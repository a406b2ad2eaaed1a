// SPDX-License-Identifier: Apache-2.0
/// Loops without checks (docs/decisions/012):
///
///     entries      as of any block
///     start        every group of accesses is looked up in the TLB, once; how many turns it stays
///                  in its page says when to come back here. A miss, or a group in two pages: to
///                  the variant of the block that checks each access, whose end leads here again
///     turn         no check, no poll; the last branch goes to the next turn
///     end          flags are computed again; to the entry that polls
///
/// Nothing returns into a turn: what leaves it goes to ordinary blocks. So what the start has found
/// out cannot have changed meanwhile: the TLB is changed by C++ only.
#include <bit>
#include <cstdlib>

#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

const Mem kTurns = DOPPEL_FRAME(loop_turns);
const Mem kLimit = DOPPEL_FRAME(loop_limit);

/// A kick is looked for at least every 1000 blocks.
constexpr std::int32_t kMostTurns = 1000;

constexpr Condition opposite(std::uint8_t condition) {
    return static_cast<Condition>(condition ^ 1);
}

} // namespace

/// What the groups' registers are at the beginning, into scratch 0; clobbers scratch 1.
void BlockTranslator::emit_loop_address(const LoopGroup& group) {
    Mem address{kNoReg, kNoReg, 1, group.low};
    if (group.base == kRip) {
        a_.load(kScratch0, DOPPEL_FRAME(page_va));
        address.base = kScratch0;
    } else if (group.base != kNoRegister) {
        address.base = in_slot(group.base) ? kScratch0 : kHome[group.base];
        if (in_slot(group.base))
            a_.load(kScratch0, slot(group.base));
    }
    if (group.index != kNoRegister) {
        address.scale = group.scale;
        address.index = in_slot(group.index) ? kScratch1 : kHome[group.index];
        if (in_slot(group.index))
            a_.load(kScratch1, slot(group.index));
    }
    if (address.base == kNoReg && address.index == kNoReg)
        a_.mov_imm(kScratch0, static_cast<std::uint64_t>(std::int64_t{group.low}));
    else
        a_.lea(kScratch0, address);
    if (group.segment != 0)
        a_.alu(Alu::Add, kScratch0, segment_base(group.segment));
}

/// The addend, and what is the same in all turns, to the frame. Scratch 1 is the index in the TLB.
void BlockTranslator::emit_loop_host(const LoopGroup& group, std::size_t number) {
    a_.load(kScratch1, tlb_entry(DOPPEL_TLB(addend)));
    if (group.segment != 0)
        a_.alu(Alu::Add, kScratch1, segment_base(group.segment));
    if (group.base == kRip)
        a_.alu(Alu::Add, kScratch1, DOPPEL_FRAME(page_va));
    else if (group.base != kNoRegister && group.base_stays && in_slot(group.base))
        a_.alu(Alu::Add, kScratch1, slot(group.base));
    else if (group.base != kNoRegister && group.base_stays)
        a_.lea(kScratch1, {kScratch1, kHome[group.base]});
    if (group.index != kNoRegister && group.index_stays && in_slot(group.index))
        a_.alu(Alu::Add, kScratch1, slot(group.index));
    else if (group.index != kNoRegister && group.index_stays)
        a_.lea(kScratch1, {kScratch1, kHome[group.index], group.scale, 0});
    a_.store(group_host(number), kScratch1);
}

/// Scratch 0 is the group's offset in the page: the turns after this one until the page ends.
/// An offset is below 2^12, so that multiplying by 2^24 / step, rounded up, divides exactly.
void BlockTranslator::emit_loop_turns(const LoopGroup& group) {
    const auto step = static_cast<std::uint32_t>(std::abs(group.step));
    if (group.step > 0) {
        a_.mov_imm(kScratch1, static_cast<std::uint64_t>(4096 - (group.high - group.low)));
        a_.alu(Alu::Sub, kScratch1, kScratch0);
    } else {
        a_.mov(kScratch1, kScratch0);
    }
    if (!std::has_single_bit(step)) {
        a_.imul(kScratch1, kScratch1, static_cast<std::int32_t>(((1u << 24) + step - 1) / step));
        a_.shr(kScratch1, 24);
    } else if (step != 1) {
        a_.shr(kScratch1, static_cast<std::uint8_t>(std::countr_zero(step)));
    }
    a_.alu(Alu::Cmp, kScratch1, kTurns);
    std::uint8_t* const more = a_.short_jump_if_later(Condition::AboveEqual);
    a_.store(kTurns, kScratch1);
    a_.bind_short(more);
}

void BlockTranslator::emit_loop_group(std::size_t number) {
    const LoopGroup& group = scan_.loop.groups.at(number);
    emit_loop_address(group);
    emit_index(kScratch0);
    a_.alu(Alu::Xor, kScratch0, tlb_entry(tag_offset(group.writes)));
    a_.alu_imm(Alu::Cmp, kScratch0, 4096 - (group.high - group.low));
    Cold checked;
    checked.why = Exit::Link;
    checked.flags = lost_place();
    checked.site.page_offset = scan_.list[0].page_offset;
    checked.site.bits = (made_ ? Site::kMade : Site::kInSlot) | Site::kVariant;
    a_.align_link(2);
    checked.place = checked.relative_to = a_.jump_if_later(Condition::Above);
    cold_.push_back(checked);
    emit_loop_host(group, number);
    if (group.step != 0)
        emit_loop_turns(group);
}

/// What the counter will be when the turns are over.
void BlockTranslator::emit_loop_limit() {
    const LoopPlan& loop = scan_.loop;
    a_.load(kScratch0, kTurns);
    a_.imul(kScratch0, kScratch0, loop.step);
    if (in_slot(loop.counter)) {
        a_.alu(Alu::Add, kScratch0, slot(loop.counter));
        a_.lea(kScratch0, {kScratch0, kNoReg, 1, loop.step});
    } else {
        a_.lea(kScratch0, {kScratch0, kHome[loop.counter], 1, loop.step});
    }
    a_.store(kLimit, kScratch0);
}

void BlockTranslator::emit_loop_start() {
    a_.store_imm32(kTurns, kMostTurns - 1);
    for (std::size_t i = 0; i < scan_.loop.group_count; ++i)
        emit_loop_group(i);
    emit_loop_limit();
    for (std::size_t i = 0; i < scan_.loop.group_count; ++i)
        if (const HostReg host = scan_.loop.groups.at(i).host; host != kNoReg)
            a_.load(host, group_host(i));
    if (scan_.loop.flags_unseen) { // whatever is in the register
        native_ = true;
        saved_ = made_ = false;
    }
    a_.align(16); // passed once a start
    turn_begin_ = a_.here();
}

/// With `single` [r13], no other register, where a scratch register is wanted for something else.
Mem BlockTranslator::loop_access(const ScannedInstruction& at, bool single) {
    const LoopGroup& group = scan_.loop.groups.at(at.loop_access.group);
    const bool base = group.base != kNoRegister && !group.base_stays;
    const bool index = group.index != kNoRegister && !group.index_stays;
    const bool resident = group.host != kNoReg;
    Mem result{resident ? group.host : kScratch0, kNoReg, 1, at.loop_access.displacement};
    if (!resident) {
        take(kScratch0);
        a_.load(kScratch0, group_host(at.loop_access.group));
    }
    const auto home = [this](std::uint8_t reg) {
        if (!in_slot(reg))
            return kHome[reg];
        if (holder(reg) == kNoReg) {
            take(kScratch1);
            a_.load(kScratch1, slot(reg));
        }
        return kScratch1;
    };
    if (base && index) {
        a_.lea(kScratch0, {kScratch0, kHome[group.base]});
        result.index = kHome[group.index];
        result.scale = group.scale;
    } else if (base) {
        result.index = home(group.base);
    } else if (index) {
        result.index = home(group.index);
        result.scale = group.scale;
    }
    if (single && !resident && result.index != kNoReg) {
        a_.lea(kScratch0, result);
        return {kScratch0};
    }
    return result;
}

void BlockTranslator::emit_loop_end(const ScannedInstruction& at) {
    const LoopPlan& loop = scan_.loop;
    ended_ = true;
    if (!recipe_)
        return;
    if (!loop.flags_unseen && (scan_.dead_writes & registers_of(recipe_)) != 0)
        return;
    closed_ = true;
    if (!loop.flags_unseen)
        leave_maker();
    const std::int64_t behind = at.page_offset + at.in.length;
    const Condition over = opposite(at.in.condition());
    a_.align_link_before(a_.here() == body_end_ ? body_bytes_ : 0, 2);
    if (linkable(at, behind)) {
        cold_link(at, behind, a_.jump_if_later(over));
    } else {
        Cold cold;
        cold.place = a_.jump_if_later(over);
        cold.far = true;
        cold.flags_saved = saved_;
        cold.target = behind;
        cold.at = &at;
        cold_.push_back(cold);
    }
    HostReg counter = kHome[loop.counter];
    if (in_slot(loop.counter)) {
        counter = kScratch0;
        a_.load(kScratch0, slot(loop.counter));
    }
    a_.alu(Alu::Cmp, counter, kLimit);
    a_.jump_if(Condition::NotEqual, turn_begin_);
    emit_recipe(recipe_);
    a_.jump(loop_entry_);
}

} // namespace doppel::cpu::x86::frontend
