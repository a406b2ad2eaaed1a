// SPDX-License-Identifier: Apache-2.0
/// Calls and returns that the host predicts as such (docs/decisions/016). A call of the guest
/// executes one of the host, which pushes the address of its landing; that goes into the frame, by
/// where the guest's return address is. A return of the guest finds it by the same, and executes a
/// return of the host to it. The landing compares RIP, so what leads there need not be the call.
#include "cpu/x86/frontend/block_translator.hpp"

#include <cstring>

#include "cpu/translator/cache/code_cache.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

/// Of users alone: landings would have to be learned in each view.
bool BlockTranslator::pairs_returns() const {
    return scan_.tuning.paired_returns && (scan_.mode & mode::kUser) != 0 && !counting_ &&
           !code32_ && !shares_branches();
}

/// Of the return address at the guest address in `from`, into scratch 1.
void BlockTranslator::emit_landing_index(HostReg from) {
    a_.rorx(kScratch1, from, 3);
    a_.zero_extend16(kScratch1, kScratch1);
}

/// The return address is where rsp points. Goes on behind the landing; flags and scratch 0 stay.
void BlockTranslator::emit_landing_pair(const ScannedInstruction& at) {
    if (!pairs_returns())
        return;
    take(kScratch1);
    stack_in_scratch1_ = false;
    emit_landing_index(kGuestRsp);
    std::uint8_t* const over = a_.call_later();
    emit_landing(at);
    a_.bind(over);
    a_.pop(landing_at(kScratch1));
}

/// r13 = guest RIP, flags in the slot. Once linked it leads to the far entry of the block behind
/// the call, in views where that is the code for RIP.
void BlockTranslator::emit_landing(const ScannedInstruction& at) {
    const std::int64_t next = at.page_offset + at.in.length;
    if (next > kLastStart || scan_.landing == CodeCache::kNoLanding) {
        a_.jump(stubs_.landing);
        return;
    }
    landing_used_ = true;
    constexpr std::size_t kBytes = 5 + 7; // of what is before the branch
    a_.align_link(kBytes + 2);
    const auto tag = static_cast<std::int32_t>(scan_.landing * sizeof(std::uint64_t));
    a_.lea(kScratch1, {kScratch0, kTlb, 8, 0});
    a_.alu(Alu::Cmp, kScratch1, {kTlb, kNoReg, 1, DOPPEL_TLB(landings) + tag});
    Cold ask;
    ask.relative_to = a_.jump_if_later(Condition::Equal);
    ask.place = a_.jump_later();
    ask.why = Exit::Branch;
    ask.site.page_offset = static_cast<std::uint16_t>(next);
    ask.site.set_landing(scan_.landing);
    cold_.push_back(ask);
}

void BlockTranslator::emit_landing_exit(const Cold& cold) {
    a_.bind(cold.relative_to);
    Site site = cold.site;
    site.set_distance(a_.here() + Stubs::exit_bytes(cold.why) - cold.relative_to);
    emit_leave(cold.why,
               scan_.tuning.shared_branches ? stubs_.shared_branch
                                            : stubs_.exit(cold.why, FlagPlace::Slot),
               site, 0);
}

/// Scratch 0 is the return address. Should it not be canonical, the Site behind it tells how to
/// undo this.
void BlockTranslator::emit_paired_return(const ScannedInstruction& at, std::uint16_t bytes) {
    save_flags();
    HostReg from = kGuestRsp;
    if (rsp_owed_ != 0) {
        from = kScratch1;
        a_.lea(kScratch1, {kGuestRsp, kNoReg, 1, rsp_owed_});
    }
    emit_landing_index(from);
    move_rsp(bytes);
    a_.store32_imm(DOPPEL_FRAME(return_site), 0);
    std::uint8_t* const place = a_.here() - 4;
    a_.push(landing_at(kScratch1));
    a_.ret();
    exit_begin_ = a_.here();
    if (!a_.full()) {
        const auto offset = static_cast<std::uint32_t>(a_.here() - stubs_.base);
        std::memcpy(a_.writable(place), &offset, sizeof offset);
    }
    put_site(a_, branch_site(at, bytes), site_bytes(Exit::Branch));
    ended_ = true;
}

} // namespace doppel::cpu::x86::frontend
