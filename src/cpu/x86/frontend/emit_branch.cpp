// SPDX-License-Identifier: Apache-2.0
/// Instructions that end a block or leave it: direct jumps inside the page are linked, all others
/// go through the branch cache of the TLB instance.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

constexpr std::int32_t kTag = offsetof(TlbInstance::BranchEntry, tag);
constexpr std::int32_t kHost = offsetof(TlbInstance::BranchEntry, host);

} // namespace

/// Relative to the start of the block's page.
std::int64_t BlockTranslator::target_of(const ScannedInstruction& at) const {
    return at.page_offset + at.in.length + static_cast<std::int64_t>(at.in.immediate);
}

/// Near the end of the page the target may be an instruction in two pages, which is not linked.
bool BlockTranslator::linkable(const ScannedInstruction& at, std::int64_t target) const {
    return target >= 0 && target <= 4096 - 15 && at.page_offset + at.in.length <= 4096;
}

void BlockTranslator::cold_link(const ScannedInstruction& at, std::int64_t target,
                                std::uint8_t* place) {
    Cold cold;
    cold.place = place;
    cold.relative_to = place;
    cold.why = Exit::Link;
    cold.flags = saved_ ? FlagPlace::Slot : FlagPlace::Register;
    cold.site.page_offset = static_cast<std::uint16_t>(target);
    cold.site.bits =
        static_cast<std::uint8_t>((saved_ ? Site::kInSlot : 0) | (native_ ? Site::kInRegister : 0) |
                                  (target <= at.page_offset ? Site::kBackward : 0));
    cold_.push_back(cold);
}

void BlockTranslator::link_jump(const ScannedInstruction& at, std::int64_t target) {
    ended_ = true;
    if (!linkable(at, target)) {
        far_jump(at, target, 0);
        return;
    }
    hold_flags();
    a_.align_link(1);
    cold_link(at, target, a_.jump_later());
}

void BlockTranslator::far_jump(const ScannedInstruction& at, std::int64_t target,
                               std::uint16_t undo) {
    save_flags_at_end();
    if (is_known(target)) {
        a_.mov_imm(kScratch0, linear_of(target));
        find_target(at, target, undo);
        return;
    }
    a_.load(kScratch0, DOPPEL_FRAME(page_va));
    far_jump_from(0, at, target, undo);
}

/// Scratch 0 is `from` in the block's page; the flags are as save_flags_at_end() leaves them.
void BlockTranslator::far_jump_from(std::int64_t from, const ScannedInstruction& at,
                                    std::int64_t target, std::uint16_t undo) {
    address_word(kScratch0, {kScratch0, kNoReg, 1, static_cast<std::int32_t>(target - from)});
    find_target(at, target, undo);
}

/// Whose RIP scratch 0 is.
void BlockTranslator::find_target(const ScannedInstruction& at, std::int64_t target,
                                  std::uint16_t undo) {
    if (shares_branches() || !scan_.tuning.far_links ||
        (target & 0xfff) <= TlbInstance::kLastEmptyBranchTag)
        branch_cache_jump(at, undo);
    else if ((scan_.mode & mode::kUser) != 0)
        far_link_jump(at, undo);
    else
        known_branch_jump(at, target, undo);
}

/// In the kernel, whose code is at one address as a rule: where the branch cache has the target, if
/// the page is where it was when it was translated. Elsewhere the tag is another one.
void BlockTranslator::known_branch_jump(const ScannedInstruction& at, std::int64_t target,
                                        std::uint16_t undo) {
    const std::uint64_t rip = scan_.page_va + static_cast<std::uint64_t>(target);
    const std::size_t index = TlbInstance::branch_index(code32_ ? rip & 0xffff'ffff : rip);
    const auto entry = static_cast<std::int32_t>(index * sizeof(TlbInstance::BranchEntry));
    const Mem found{kTlb, kNoReg, 1, DOPPEL_TLB(branches) + entry};
    a_.alu(Alu::Cmp, kScratch0, found + kTag);
    jump_or_ask(found + kHost, branch_site(at, undo));
}

/// Likewise, to one target as a rule. r14 tells where the far entry was found, should it be stale.
void BlockTranslator::far_link_jump(const ScannedInstruction& at, std::uint16_t undo) {
    const std::uint16_t number = next_far_link_++;
    const auto entry = static_cast<std::int32_t>(number * sizeof(TlbInstance::BranchEntry));
    a_.lea(kScratch1, {kTlb, kNoReg, 1, DOPPEL_TLB(far_links) + entry});
    a_.alu(Alu::Cmp, kScratch0, Mem{kScratch1, kNoReg, 1, kTag});
    Site site = branch_site(at, undo);
    site.back = number;
    site.bits |= Site::kFarLink;
    jump_or_ask(Mem{kScratch1, kNoReg, 1, kHost}, site);
}

Site BlockTranslator::branch_site(const ScannedInstruction& at, std::uint16_t undo) {
    return {.page_offset = at.page_offset,
            .extra = undo,
            .bits = at.treatment == Treatment::Return ? std::uint8_t{0} : Site::kCall,
            .length = at.in.length};
}

/// To what `to` says if the tag is equal. The way out stands behind that: 8 bits reach it.
void BlockTranslator::jump_or_ask(const Mem& to, const Site& site) {
    std::uint8_t* const other = a_.short_jump_if_later(Condition::NotEqual);
    a_.jump(to);
    exit_begin_ = a_.here();
    a_.bind_short(other);
    emit_leave(Exit::Branch,
               scan_.tuning.shared_branches ? stubs_.shared_branch
                                            : stubs_.exit(Exit::Branch, FlagPlace::Slot),
               site, 0);
    ended_ = true;
}

/// Of compact code of users: what runs often runs on the host's CPU itself, or is made anew.
bool BlockTranslator::shares_branches() const {
    return compact_ && (scan_.mode & mode::kUser) != 0 && !counting_ &&
           scan_.tuning.shared_branches;
}

/// A stub looks for the target, and brings the flags into the slot if they are not there yet.
void BlockTranslator::shared_branch_jump(const ScannedInstruction& at, std::uint16_t undo) {
    if (!saved_)
        restore_flags(); // a check may have come in between
    exit_begin_ = a_.here() + Stubs::exit_bytes(Exit::Branch);
    emit_leave(Exit::Branch, saved_ ? stubs_.branch : stubs_.branch_with_flags,
               branch_site(at, undo), 0);
    ended_ = true;
}

/// Before a branch_cache_jump() and its like: those of shared branches are saved there.
void BlockTranslator::save_flags_at_end() {
    if (!shares_branches())
        save_flags();
    else if (!saved_)
        restore_flags();
}

/// To the guest RIP in r13; the flags are as save_flags_at_end() leaves them.
void BlockTranslator::branch_cache_jump(const ScannedInstruction& at, std::uint16_t undo) {
    if (shares_branches()) {
        shared_branch_jump(at, undo);
        return;
    }
    a_.rorx(kScratch1, kScratch0, 12);
    a_.alu(Alu::Xor, kScratch1, kScratch0);
    a_.alu_imm(Alu::And, kScratch1, 2 * (TlbInstance::kBranches - 1), false);
    const Mem found{kTlb, kScratch1, 8, DOPPEL_TLB(branches)};
    a_.alu(Alu::Cmp, kScratch0, found + kTag);
    jump_or_ask(found + kHost, branch_site(at, undo));
}

void BlockTranslator::emit_jump(const ScannedInstruction& at) { link_jump(at, target_of(at)); }

void BlockTranslator::emit_conditional(const ScannedInstruction& at) {
    restore_flags();
    if (scan_.loop.active && at.index + 1u == scan_.count) {
        emit_loop_end(at);
        return;
    }
    const auto condition = static_cast<Condition>(at.in.condition());
    const std::int64_t target = target_of(at);
    const std::uint8_t left = counting_ ? static_cast<std::uint8_t>(left_before(at) - 1) : 0;
    if (linkable(at, target)) {
        const bool back = target <= at.page_offset && recipe_ && !counting_ && !lending_;
        if (back)
            leave_maker();
        a_.align_link_before(a_.here() == body_end_ ? body_bytes_ : 0, 2);
        cold_link(at, target, a_.jump_if_later(condition));
        if (back) {
            Site& site = cold_.back().site;
            site.bits |= Site::kMade;
            site.extra = registers_of(recipe_);
        }
        cold_.back().left = left;
        cold_.back().counted_branch = left != 0;
        return;
    }
    Cold cold;
    cold.place = a_.jump_if_later(condition);
    cold.left = left;
    cold.counted_branch = left != 0;
    cold.far = true;
    cold.flags_saved = saved_;
    cold.target = target;
    cold.at = &at;
    cold_.push_back(cold);
}

void BlockTranslator::emit_far_cold(const Cold& cold) {
    native_ = true;
    saved_ = cold.flags_saved;
    recipe_ = {};
    far_jump(*cold.at, cold.target, 0);
}

void BlockTranslator::emit_counter_branch(const ScannedInstruction& at) {
    const std::int64_t target = target_of(at);
    const bool loop = at.in.op == Op::Loop;
    if (!linkable(at, target)) {
        emit_interpret(at);
        return;
    }
    hold_flags();
    if (loop && at.in.address_size == 4)
        a_.lea32(kRcx, {kRcx, kNoReg, 1, -1});
    else if (loop)
        a_.lea(kRcx, {kRcx, kNoReg, 1, -1});
    a_.align_link(loop ? 3 : 5 + (at.in.address_size == 4 ? 1 : 0));
    if (!loop && at.in.address_size == 4)
        a_.byte(0x67);
    if (loop) {
        a_.jrcxz_over(5);
    } else { // jrcxz taken; jmp over; taken: jmp target
        a_.jrcxz_over(2);
        a_.byte(0xeb);
        a_.byte(5);
    }
    cold_link(at, target, a_.jump_later());
    link_jump(at, at.page_offset + at.in.length);
}

/// The address of the next instruction goes to the guest's stack, and stays in scratch 0 unless it
/// is known.
void BlockTranslator::emit_push_return_address(const ScannedInstruction& at) {
    const Mem to = stack_access(at, -word_, true);
    const std::int64_t next = at.page_offset + at.in.length;
    if (is_known(next)) {
        a_.store_imm32(to, static_cast<std::int32_t>(linear_of(next)));
        move_rsp(-word_);
        return;
    }
    a_.load(kScratch0, DOPPEL_FRAME(page_va));
    address_word(kScratch0, {kScratch0, kNoReg, 1, at.page_offset + at.in.length});
    store_word(to, kScratch0);
    move_rsp(-word_);
}

void BlockTranslator::emit_call(const ScannedInstruction& at) {
    emit_push_return_address(at);
    const std::int64_t target = target_of(at);
    emit_landing_pair(at);
    if (linkable(at, target)) {
        link_jump(at, target);
        return;
    }
    if (fixed_) {
        far_jump(at, target, word_);
        return;
    }
    save_flags_at_end();
    far_jump_from(at.page_offset + at.in.length, at, target, word_);
}

void BlockTranslator::load_target(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[0].reg;
    if (at.treatment == Treatment::IndirectCall && at.in.has_memory())
        load_word(kScratch0, other_access(at)); // at.stack is that of the push
    else if (at.in.has_memory())
        load_word(kScratch0, access(at, word_, false, false));
    else if (in_slot(reg))
        a_.load(kScratch0, slot(reg));
    else
        code32_ ? a_.mov32(kScratch0, kHome[reg]) : a_.mov(kScratch0, kHome[reg]);
}

/// A call to a non-canonical address faults before it pushes: the interpreter shall do that. Users
/// call into their half: other addresses are looked at out of the way.
void BlockTranslator::check_canonical_target(const ScannedInstruction& at) {
    if (code32_)
        return; // no limit below 4 GiB
    clobber_flags();
    if ((scan_.mode & mode::kUser) == 0) {
        interpret_unless_canonical(kScratch0, at);
        return;
    }
    a_.rorx(kScratch1, kScratch0, 47);
    a_.test_imm32(kScratch1, 0x1ffff);
    interpret_if(Condition::NotEqual, at);
}

void BlockTranslator::emit_indirect(const ScannedInstruction& at) {
    load_target(at);
    save_flags_at_end();
    if (at.treatment == Treatment::IndirectJump) {
        branch_cache_jump(at, 0);
        return;
    }
    check_canonical_target(at);
    a_.store(DOPPEL_FRAME(spare), kScratch0);
    emit_push_return_address(at);
    emit_landing_pair(at);
    a_.load(kScratch0, DOPPEL_FRAME(spare));
    branch_cache_jump(at, word_);
}

/// `bytes` to be undone fit into the site: see classify().
void BlockTranslator::emit_return(const ScannedInstruction& at) {
    const Mem from = stack_access(at, 0, false);
    load_word(kScratch0, from);
    const bool release = at.in.operands[0].kind == OperandKind::Immediate;
    const auto bytes = static_cast<std::uint16_t>(word_ + (release ? at.in.immediate : 0));
    if (pairs_returns()) {
        emit_paired_return(at, bytes);
        return;
    }
    move_rsp(bytes);
    save_flags_at_end();
    branch_cache_jump(at, bytes);
}

} // namespace doppel::cpu::x86::frontend
