// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/block_translator.hpp"

#include <algorithm>
#include <utility>

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

Mem frame_budget() {
    return at_rsp(static_cast<std::int32_t>(offsetof(Frame, budget) - offsetof(Frame, state)));
}

/// Its translation says by take() that it touches scratch 0.
bool names_scratch0(const ScannedInstruction& at) {
    switch (at.treatment) {
    case Treatment::Nothing:
    case Treatment::Conditional:
    case Treatment::Lea: return true;
    case Treatment::Generic: return at.in.type != InstructionClass::X87;
    default: return false;
    }
}

/// Likewise scratch 1, or leaves the addend of the stack page there.
bool names_scratch1(const ScannedInstruction& at) {
    switch (at.treatment) {
    case Treatment::Push:
    case Treatment::Pop:
    case Treatment::Call:
    case Treatment::Return: return true;
    default: return names_scratch0(at);
    }
}

} // namespace

void BlockTranslator::translate(NewBlock& out) {
    cold_.clear();
    makers_.clear();
    checks_.clear();
    signals_.clear();
    begin_ = a_.here();
    out.begin = begin_;
    const bool interprets = scan_.list[scan_.count - 1].treatment == Treatment::Interpret;
    counted_ = static_cast<std::uint8_t>(scan_.count - (interprets ? 1 : 0));
    emit_entries(out);
    loop_entry_ = out.native_poll_entry;
    if (scan_.loop.active)
        emit_loop_start();
    lending_ = scan_.lending_count != 0;
    if (lending_)
        emit_lend(false);
    for (std::size_t i = 0; i < scan_.count && !ended_; ++i)
        translate_one(i);
    release_slots();
    pay_rsp();
    if (!ended_)
        end_lending();
    if (!ended_)
        link_jump(scan_.list[scan_.count - 1], scan_.end_offset);
    out.body_end = a_.here();
    out.hot_end = exit_begin_ != nullptr ? exit_begin_ : out.body_end;
    out.end = a_.here();
    if (out.cold_begin != nullptr)
        a_.go_on_at(out.cold_begin);
    emit_cold();
    emit_makers();
    emit_check_sites(out);
    (out.cold_begin != nullptr ? out.cold_end : out.end) = a_.here();
    out.flags_wanted = scan_.flags_wanted;
    out.guest_bytes = static_cast<std::uint16_t>(scan_.end_offset - scan_.list[0].page_offset);
    out.hot_guest_bytes = static_cast<std::uint16_t>(
        out.guest_bytes - (interprets ? scan_.list[scan_.count - 1].in.length : 0));
    out.instructions = counted_;
    out.landing = landing_used_;
    out.signal_sites = signals_;
}

void BlockTranslator::translate_one(std::size_t index) {
    const ScannedInstruction& at = scan_.list[index];
    const std::size_t colds = cold_.size();
    const bool lent = lending_ && index < scan_.lending_end;
    if (index == scan_.lending_end)
        end_lending();
    if (rsp_owed_ != 0 && !rsp_can_wait(index))
        pay_rsp();
    settle_slots(at);
    if (!names_scratch0(at))
        leave_scratch0();
    const bool names1 = names_scratch1(at);
    if (!names1)
        stack_in_scratch1_ = false;
    keep_flags_across(at);
    emit_instruction(at);
    for (std::size_t i = colds; i < cold_.size(); ++i)
        cold_[i].lent = lent;
    if (!names1)
        stack_in_scratch1_ = false;
    if (dying_)
        recipe_ = {};
    dying_ = false;
}

/// Where jumps arrive as the body wants them, usually, stands directly before it.
void BlockTranslator::emit_entries(NewBlock& out) {
    a_.align(8);
    if (counting_) {
        emit_far_entry(out);
        emit_counting_entries(out);
    } else if (scan_.dead_count != 0) {
        emit_far_entry(out);
        emit_slot_entries(out);
        emit_dead_entries(out);
    } else if (scan_.flags_wanted == FlagsWanted::InSlot) {
        emit_native_entries(out);
        save_flags();
        std::uint8_t* const over = a_.short_jump_later();
        emit_far_entry(out);
        emit_slot_entries(out);
        native_ = false;
        a_.bind_short(over);
    } else {
        emit_far_entry(out);
        emit_slot_entries(out);
        if (scan_.flags_wanted == FlagsWanted::InRegister) {
            native_ = false;
            saved_ = true;
            restore_flags();
        }
        std::uint8_t* const over = a_.short_jump_later();
        native_ = true;
        saved_ = false;
        emit_native_entries(out);
        a_.bind_short(over);
    }
    out.hot_begin = a_.here();
}

/// Goes on into what follows.
void BlockTranslator::emit_far_entry(NewBlock& out) {
    a_.align(8);
    out.far_entry = a_.here();
    const std::int64_t start = scan_.list[0].page_offset;
    if (is_known(start)) {
        a_.store_imm32(DOPPEL_FRAME(page_va), static_cast<std::int32_t>(scan_.page_va));
        return;
    }
    // lea r14,[r13 - page_offset] with disp32: 7 bytes, so that it can be patched
    a_.put(0xb58d4d | std::uint64_t{static_cast<std::uint32_t>(-start)} << 24, 7);
    a_.store(DOPPEL_FRAME(page_va), kScratch1);
}

void BlockTranslator::emit_slot_entries(NewBlock& out) {
    out.slot_poll_entry = a_.here();
    a_.alu_mem_reg(Alu::Cmp, DOPPEL_FRAME(attention), kRsp);
    Cold poll;
    poll.place = a_.jump_if_later(Condition::NotEqual);
    poll.why = Exit::Attention;
    poll.site.page_offset = scan_.list[0].page_offset;
    cold_.push_back(poll);
    out.slot_entry = a_.here();
}

/// Flag-free: an attention that is no address is a SIGSEGV.
void BlockTranslator::emit_native_poll() {
    a_.load(kScratch1, DOPPEL_FRAME(attention));
    note_signal(scan_.list[0], true);
    a_.load32(kScratch1, {kScratch1});
}

void BlockTranslator::emit_native_entries(NewBlock& out) {
    out.native_poll_entry = a_.here();
    emit_native_poll();
    out.native_entry = a_.here();
}

/// Of a block that does not want the flags: but it may be left before it makes its own, and then
/// they are found by Frame::flag_maker.
void BlockTranslator::emit_dead_entries(NewBlock& out) {
    const auto in_slot = static_cast<std::uint32_t>(stubs_.made_slot - stubs_.base);
    const Mem maker = DOPPEL_FRAME(flag_maker);
    a_.store32_imm(maker, in_slot);
    std::uint8_t* const over = a_.short_jump_later();
    emit_native_entries(out);
    save_flags();
    a_.store32_imm(maker, in_slot);
    std::uint8_t* const over_too = a_.short_jump_later();
    saved_ = false;
    out.made_poll_entry = a_.here();
    emit_native_poll();
    out.made_entry = a_.here();
    out.made_writes = scan_.dead_writes;
    native_ = false;
    made_ = true;
    a_.bind_short(over);
    a_.bind_short(over_too);
}

/// All entries poll and take the whole block from the budget; those who leave early give back.
void BlockTranslator::emit_counting_entries(NewBlock& out) {
    const ScannedInstruction& first = scan_.list[0];
    std::uint8_t* const over = a_.short_jump_later();
    out.native_poll_entry = out.native_entry = a_.here();
    save_flags();
    a_.bind_short(over);
    out.slot_poll_entry = out.slot_entry = a_.here();
    saved_ = true;
    native_ = false;
    Cold leave;
    leave.site.page_offset = first.page_offset;
    a_.alu_mem_reg(Alu::Cmp, DOPPEL_FRAME(attention), kRsp);
    leave.place = a_.jump_if_later(Condition::NotEqual);
    leave.why = Exit::Attention;
    cold_.push_back(leave);
    if (counted_ != 0) {
        a_.alu_mem_imm8(Alu::Sub, frame_budget(), static_cast<std::int8_t>(counted_));
        leave.place = a_.jump_if_later(Condition::Below);
        leave.why = Exit::Budget;
        leave.left = counted_;
        cold_.push_back(leave);
    }
    if (scan_.flags_wanted == FlagsWanted::InRegister)
        restore_flags();
}

/// The exit, the site and, in blocks that count, the byte behind it.
void BlockTranslator::emit_leave(Exit why, const std::uint8_t* stub, const Site& site,
                                 std::uint8_t left) {
    emit_exit(a_, why, stub, stubs_, site, counting_ ? sizeof site : site_bytes(why));
    if (counting_)
        a_.byte(left);
}

/// Flag-free: gives back what lies behind the branch.
void BlockTranslator::emit_counted_branch(const Cold& cold) {
    a_.load(kScratch1, frame_budget());
    a_.lea(kScratch1, {kScratch1, kNoReg, 1, cold.left});
    a_.store(frame_budget(), kScratch1);
    if (cold.far) {
        emit_far_cold(cold);
        return;
    }
    Cold link = cold;
    link.lent = false;
    link.counted_branch = false;
    link.left = 0;
    a_.align_link(1);
    link.place = link.relative_to = a_.jump_later();
    cold_.push_back(link);
}

void BlockTranslator::emit_cold() {
    for (std::size_t i = 0; i < cold_.size(); ++i) { // it grows meanwhile
        Cold cold = cold_[i];
        const bool branches = cold.far || cold.counted_branch;
        std::uint8_t* const check = cold.relative_to;
        if (cold.lent && !cold.far && (cold.why == Exit::Miss || cold.why == Exit::StackMiss))
            emit_lend_again(cold);
        a_.bind(cold.place);
        if (cold.lent && !branches && cold.why == Exit::Link) {
            emit_lent_link(cold);
            continue;
        }
        if (cold.lent && branches)
            emit_lend(false);
        if (cold.counted_branch)
            emit_counted_branch(cold);
        else if (cold.far)
            emit_far_cold(cold);
        else if (cold.why == Exit::Branch)
            emit_landing_exit(cold);
        else
            emit_cold_exit(cold, check);
    }
}

/// What a miss needs is brought into place, then C++ sees to it.
void BlockTranslator::emit_cold_exit(const Cold& cold, const std::uint8_t* check) {
    if (cold.why == Exit::StackMiss)
        emit_stack_refill(cold, check);
    if (cold.group) {
        a_.test_imm(kScratch0, -4096);
        emit_crossing(cold);
    }
    if (cold.why == Exit::Miss && (cold.site.bits & Site::kKnown) != 0)
        a_.mov_imm(kScratch0, static_cast<std::uint64_t>(cold.target));
    if (cold.recipe)
        emit_recipe(cold.recipe);
    if (cold.lent)
        emit_lend(cold.why == Exit::Miss);
    Site site = cold.site;
    if (cold.relative_to != nullptr)
        site.set_distance(a_.here() + Stubs::exit_bytes(cold.why) - cold.relative_to);
    emit_leave(cold.why, stubs_.exit(cold.why, cold.recipe ? FlagPlace::Register : cold.flags),
               site, cold.left);
}

/// The stack has moved to another page, which is mostly in the TLB. See is_stack_page32().
void BlockTranslator::emit_stack_refill(const Cold& cold, const std::uint8_t* check) {
    std::uint8_t* unsafe = nullptr;
    if (code32_) {
        a_.lea(kScratch1, {kGuestRsp, kNoReg, 1, cold.site.low - kStackMargin32});
        a_.shr(kScratch1, 16);
        a_.alu_imm(Alu::Cmp, kScratch1, 0x10000 - 2 * (kStackMargin32 >> 16));
        unsafe = a_.short_jump_if_later(Condition::AboveEqual);
    }
    a_.mov_imm(kScratch1, 4096u - cold.site.extra);
    a_.call(stubs_.stack_refill);
    a_.jump_if(Condition::Below, check);
    if (cold.site.page_offset <= kLastStart)
        emit_crossing(cold);
    if (unsafe != nullptr)
        a_.bind_short(unsafe);
}

void BlockTranslator::note_signal(const ScannedInstruction& at, bool poll) {
    signals_.push_back({static_cast<std::uint32_t>(a_.here() - begin_), at.page_offset, saved_,
                        made_, poll, left_before(at)});
}

void BlockTranslator::emit_instruction(const ScannedInstruction& at) {
    switch (at.treatment) {
    case Treatment::Generic: emit_generic(at); break;
    case Treatment::Nothing: break;
    case Treatment::Lea: emit_lea(at); break;
    case Treatment::Push: emit_push(at); break;
    case Treatment::Pop: emit_pop(at); break;
    case Treatment::Leave: emit_leave(at); break;
    case Treatment::Rdtsc: emit_rdtsc(at.in.op == Op::Rdtscp); break;
    case Treatment::Cli:
    case Treatment::Sti: emit_interrupt_flag(at); break;
    case Treatment::Pause: emit_pause(at); break;
    case Treatment::PushMemory: emit_push_memory(at); break;
    case Treatment::PushSegment: emit_push_segment(at); break;
    case Treatment::Cld:
    case Treatment::Std: emit_direction_flag(at); break;
    case Treatment::Pushf: emit_pushf(at); break;
    case Treatment::Popf: emit_popf(at); break;
    case Treatment::Clac:
    case Treatment::Stac: emit_alignment_flag(at); break;
    case Treatment::Swapgs: emit_swapgs(); break;
    case Treatment::SegmentBase: emit_segment_base(at); break;
    case Treatment::ReadControl: emit_read_control(at); break;
    case Treatment::String: emit_string(at); break;
    case Treatment::RepString: emit_rep_string(at); break;
    case Treatment::Syscall: emit_syscall(at); break;
    case Treatment::Sysret: emit_sysret(at); break;
    case Treatment::ReadSegment: emit_read_segment(at); break;
    case Treatment::BitString: emit_bit_string(at); break;
    case Treatment::Jump: emit_jump(at); break;
    case Treatment::Conditional: emit_conditional(at); break;
    case Treatment::CounterBranch: emit_counter_branch(at); break;
    case Treatment::Call: emit_call(at); break;
    case Treatment::IndirectJump:
    case Treatment::IndirectCall: emit_indirect(at); break;
    case Treatment::Return: emit_return(at); break;
    case Treatment::Interpret: emit_interpret(at); break;
    }
}

/// Out of line; the flags have been clobbered.
void BlockTranslator::interpret_if(Condition condition, const ScannedInstruction& at) {
    Cold cold;
    cold.place = a_.jump_if_later(condition);
    cold.why = Exit::Interpret;
    cold.site.page_offset = at.page_offset;
    cold.site.length = at.in.length;
    cold.site.extra = static_cast<std::uint16_t>(at.in.op);
    cold.left = left_before(at);
    cold.recipe = lost_recipe();
    cold.flags = lost_place();
    cold_.push_back(cold);
}

void BlockTranslator::emit_interpret(const ScannedInstruction& at) {
    Site site;
    site.page_offset = at.page_offset;
    site.length = at.in.length;
    site.extra = static_cast<std::uint16_t>(at.in.op);
    if (at.in.length != 0 && at.in.type >= InstructionClass::X87)
        site.bits = Site::kVector;
    // XSAVE & co. are of class System.
    if (at.in.op >= Op::Fxsave && at.in.op <= Op::Xrstors)
        site.bits = Site::kVector;
    release_slots();
    pay_rsp();
    hold_flags();
    end_lending();
    const FlagPlace held = saved_ ? FlagPlace::Slot : FlagPlace::Register;
    exit_begin_ = a_.here();
    emit_leave(Exit::Interpret, stubs_.exit(Exit::Interpret, made_ ? FlagPlace::Made : held), site,
               left_before(at));
    ended_ = true;
}

} // namespace doppel::cpu::x86::frontend
