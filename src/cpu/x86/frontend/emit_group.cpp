// SPDX-License-Identifier: Apache-2.0
/// Accesses of a base group (BaseScan): the first one checks the range of all and leaves the host
/// address of its beginning in the frame, the others go through that.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

Mem BlockTranslator::group_access(const ScannedInstruction& at, bool write) {
    const BaseGroup& group = scan_.bases.at(at.base_group);
    GroupState& state = group_states_.at(at.base_group);
    const bool wanted = write || group.writes;
    if (!state.found || (wanted && !state.writable)) {
        check_base_group(at, write, wanted);
    } else if (in_scratch0_ != at.base_group) {
        take(kScratch0);
        a_.load(kScratch0, group_host(at.base_group));
    }
    in_scratch0_ = at.base_group;
    ++state.done;
    return {kScratch0, kNoReg, 1, at.base_offset - group.low};
}

/// Scratch 0 is about to be written: a group's host address that is wanted again goes to the frame.
void BlockTranslator::leave_scratch0() {
    if (in_scratch0_ == ScannedInstruction::kNoGroup)
        return;
    GroupState& state = group_states_.at(in_scratch0_);
    if (!state.in_frame && state.done < scan_.bases.at(in_scratch0_).accesses) {
        a_.store(group_host(in_scratch0_), kScratch0);
        state.in_frame = true;
    }
    in_scratch0_ = ScannedInstruction::kNoGroup;
}

/// Leaves the host address of the range in scratch 0. `write`: the access itself does.
void BlockTranslator::check_base_group(const ScannedInstruction& at, bool write, bool writable) {
    const BaseGroup& group = scan_.bases.at(at.base_group);
    GroupState& state = group_states_.at(at.base_group);
    clobber_in_check();
    std::uint8_t* const start = a_.here();
    compute_address(at, group.low - at.base_offset);
    const auto bytes = static_cast<std::uint32_t>(group.high - group.low);
    const Site site{.page_offset = at.page_offset,
                    .extra = static_cast<std::uint16_t>(bytes),
                    .bits = static_cast<std::uint8_t>(Site::kGroup | (writable ? Site::kWrite : 0) |
                                                      (writable && !write ? Site::kEarly : 0)),
                    .length = at.in.length};
    const std::uint8_t* const shared = shared_check(writable, CheckGives::HostAddress, bytes);
    if (shared != nullptr) {
        a_.call(shared);
        note_check(at, site, CheckSite::Of::Group);
    } else {
        emit_operand_index(at, group.low - at.base_offset);
        compare_tag(writable);
        compare_limit(bytes);
        Cold miss;
        miss.place = a_.jump_if_later(Condition::Above);
        miss.at = &at;
        miss.group = true;
        miss.relative_to = start;
        miss.site = site;
        push_miss(miss, at);
    }
    if (state.found)
        a_.load(kScratch0, group_host(at.base_group));
    else if (shared == nullptr)
        a_.alu(Alu::Add, kScratch0, tlb_entry(DOPPEL_TLB(page_host)));
    state.found = true;
    state.writable = writable;
}

/// Of a base group or a stack group. If the page is the right one, but the range reaches into the
/// next, which ZF says, to the variant of the block that checks each access by itself, from this
/// instruction on. Otherwise a miss.
void BlockTranslator::emit_crossing(const Cold& cold) {
    Cold crossing;
    crossing.why = Exit::Link;
    crossing.left = cold.left;
    crossing.lent = cold.lent;
    crossing.counted_branch = counting_ && cold.left != 0;
    crossing.site.page_offset = cold.site.page_offset;
    if (!cold.recipe) {
        crossing.flags = cold.flags;
        crossing.site.bits =
            (cold.flags == FlagPlace::Made ? Site::kMade : Site::kInSlot) | Site::kVariant;
        a_.align_link(2);
        crossing.place = crossing.relative_to = a_.jump_if_later(Condition::Equal);
        cold_.push_back(crossing);
        return;
    }
    crossing.site.bits = Site::kInRegister | Site::kVariant;
    crossing.flags = FlagPlace::Register;
    std::uint8_t* const elsewhere = a_.short_jump_if_later(Condition::NotEqual);
    emit_recipe(cold.recipe);
    a_.align_link(1);
    crossing.place = crossing.relative_to = a_.jump_later();
    a_.bind_short(elsewhere);
    cold_.push_back(crossing);
}

} // namespace doppel::cpu::x86::frontend
