// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/stubs.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/translator/mmu/tlb_set.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

constexpr HostReg kCalleeSaved[] = {kRbx, kRbp, kR12, kR13, kR14, kR15};

void emit_enter(Assembler& a) {
    for (const HostReg reg : kCalleeSaved)
        a.push(reg);
    a.store({kRdi, kNoReg, 1, header_offset(offsetof(FrameHeader, host_rsp))}, kRsp);
    a.mov(kRsp, kRdi);
    a.load16_zero_extended(kRax, DOPPEL_FRAME(flags));
    a.alu_imm8_al(Alu::Add, 0x7f); // OF from bit 0
    a.sahf();
    for (unsigned i = 0; i < kHome.size(); ++i)
        if (!in_slot(i))
            a.load(kHome[i], slot(i));
    a.load(kTlb, DOPPEL_FRAME(tlb_register));
    a.load(kScratch0, DOPPEL_FRAME(resume_r13));
    a.load(kScratch1, DOPPEL_FRAME(resume_r14));
    a.jump(DOPPEL_FRAME(resume));
}

/// Through Frame::flag_maker, the reason in scratch 0.
void emit_leave_made(Assembler& a, Exit why, const std::uint8_t* base) {
    a.load32(kScratch1, DOPPEL_FRAME(flag_maker));
    a.mov_imm(kScratch0, reinterpret_cast<std::uint64_t>(base));
    a.alu(Alu::Add, kScratch1, kScratch0);
    a.mov_imm(kScratch0, static_cast<std::uint64_t>(why));
    a.jump(kScratch1);
}

/// Where that leads to in the end.
void emit_made(Assembler& a, bool in_register, const std::uint8_t* common) {
    a.store(slot(Rax), kRax);
    if (in_register) {
        a.lahf();
        a.seto_al();
        a.store16(DOPPEL_FRAME(flags), kRax);
    }
    a.mov(kRax, kScratch0);
    a.jump(common);
}

/// rsp is the frame, scratch registers are stored, `eax` is free once rax is stored.
void emit_leave(Assembler& a, Exit why, FlagPlace flags, const std::uint8_t* common) {
    a.store(slot(Rax), kRax);
    if (flags == FlagPlace::Register) {
        a.lahf();
        a.seto_al();
        a.store16(DOPPEL_FRAME(flags), kRax);
    }
    a.mov_imm(kRax, static_cast<std::uint64_t>(why));
    a.jump(common);
}

const std::uint8_t* emit_common(Assembler& a) {
    const std::uint8_t* const start = a.here();
    for (unsigned i = 1; i < kHome.size(); ++i)
        if (!in_slot(i))
            a.store(slot(i), kHome[i]);
    a.store(DOPPEL_FRAME(tlb_register), kTlb);
    a.load(kRsp, DOPPEL_FRAME(host_rsp));
    for (std::size_t i = std::size(kCalleeSaved); i-- > 0;)
        a.pop(kCalleeSaved[i]);
    a.ret();
    return start;
}

/// Jumps to where the branch cache says r13 is, if it knows; clobbers r14.
void emit_lookup(Assembler& a) {
    a.rorx(kScratch1, kScratch0, 12);
    a.alu(Alu::Xor, kScratch1, kScratch0);
    a.alu_imm(Alu::And, kScratch1, 2 * (TlbInstance::kBranches - 1), false);
    const Mem found{kTlb, kScratch1, 8, DOPPEL_TLB(branches)};
    a.alu(Alu::Cmp, kScratch0, found + offsetof(TlbInstance::BranchEntry, tag));
    std::uint8_t* const other = a.short_jump_if_later(Condition::NotEqual);
    a.jump(found + offsetof(TlbInstance::BranchEntry, host));
    a.bind_short(other);
}

const std::uint8_t* emit_branch(Assembler& a, bool flags_in_slot, const std::uint8_t* shared) {
    a.align(16);
    const std::uint8_t* const start = a.here();
    a.store32(DOPPEL_FRAME(exit_site), kScratch1);
    if (!flags_in_slot)
        emit_save_flags(a, DOPPEL_FRAME(flags));
    emit_lookup(a);
    a.load32(kScratch1, DOPPEL_FRAME(exit_site));
    a.jump(shared);
    return start;
}

} // namespace

/// rsp is the frame - 8 here.
const std::uint8_t* emit_stack_refill(Assembler& a) {
    const std::uint8_t* const start = a.here();
    Mem limit = DOPPEL_FRAME(refill_limit);
    limit.displacement += 8;
    const Mem tag{kTlb, kScratch1, 8, DOPPEL_TLB(wtag)};
    const Mem stack_page{kTlb, kNoReg, 1, DOPPEL_TLB(stack_page)};
    a.store(limit, kScratch1);
    a.alu(Alu::Xor, kScratch0, stack_page);
    a.bextr(kScratch1, kScratch0, kTlb);
    a.alu(Alu::Xor, kScratch0, tag);
    a.alu(Alu::Cmp, kScratch0, limit);
    std::uint8_t* const no = a.short_jump_if_later(Condition::Above);
    a.load(kScratch0, tag);
    a.store(stack_page, kScratch0);
    a.load(kScratch0, {kTlb, kScratch1, 8, DOPPEL_TLB(addend)});
    a.store({kTlb, kNoReg, 1, DOPPEL_TLB(stack_addend)}, kScratch0);
    a.stc();
    a.ret();
    a.bind_short(no);
    a.test_imm(kScratch0, -4096);
    a.ret();
    return start;
}

const std::uint8_t* emit_shared_branch(Assembler& a, const std::uint8_t* miss) {
    const std::uint8_t* const start = a.here();
    a.alu_mem_imm8(Alu::Sub, DOPPEL_FRAME(shared_branch_wait), 1);
    a.jump_if(Condition::Below, miss);
    a.store32(DOPPEL_FRAME(exit_site), kScratch1);
    const Mem host{kScratch1, kNoReg, 1, offsetof(TlbSet::SharedBranch, salted_host)};
    a.rorx(kScratch1, kScratch0, TlbSet::kSharedBits);
    a.alu(Alu::Xor, kScratch1, kScratch0);
    a.alu_imm(Alu::And, kScratch1, TlbSet::kSharedBranches - 1, false);
    a.shl(kScratch1, 4);
    static_assert(sizeof(TlbSet::SharedBranch) == 16);
    a.alu(Alu::Add, kScratch1, DOPPEL_FRAME(shared_branches));
    a.alu(Alu::Cmp, kScratch0, Mem{kScratch1});
    std::uint8_t* const other = a.short_jump_if_later(Condition::NotEqual);
    a.load(kScratch1, host);
    a.alu(Alu::Xor, kScratch1, {kTlb, kNoReg, 1, DOPPEL_TLB(branch_salt)});
    a.alu(Alu::Cmp, kScratch1, DOPPEL_FRAME(host_limit));
    std::uint8_t* const not_ours = a.short_jump_if_later(Condition::AboveEqual);
    a.jump(kScratch1);
    a.bind_short(other);
    a.bind_short(not_ours);
    a.load32(kScratch1, DOPPEL_FRAME(exit_site));
    a.jump(miss);
    return start;
}

void emit_landing(Assembler& a, const Stubs& stubs) {
    emit_lookup(a);
    const Site site{.bits = Site::kLanding};
    emit_exit(a, Exit::Branch, stubs.shared_branch, stubs, site, sizeof site);
}

Stubs emit_stubs(Assembler& a) {
    Stubs stubs;
    stubs.base = a.here();
    stubs.enter = std::bit_cast<Stubs::Enter>(a.here());
    emit_enter(a);
    a.align(16);
    const std::uint8_t* const common = emit_common(a);
    a.align(16);
    stubs.stack_refill = emit_stack_refill(a);
    stubs.made_slot = a.here();
    emit_made(a, false, common);
    stubs.made_register = a.here();
    emit_made(a, true, common);
    for (std::uint32_t why = 0; why < static_cast<std::uint32_t>(Exit::Count); ++why) {
        if (static_cast<Exit>(why) == Exit::Check)
            continue; // below
        for (std::size_t flags = 0; flags < 3; ++flags) {
            a.align(16);
            stubs.exits[why][flags] = a.here();
            a.store(DOPPEL_FRAME(exit_r13), kScratch0);
            if (static_cast<Exit>(why) == Exit::Miss)
                a.store(DOPPEL_FRAME(exit_r14), kScratch1);
            else
                a.store32(DOPPEL_FRAME(exit_site), kScratch1);
            const auto place = static_cast<FlagPlace>(flags);
            if (place == FlagPlace::Made)
                emit_leave_made(a, static_cast<Exit>(why), stubs.base);
            else
                emit_leave(a, static_cast<Exit>(why), place, common);
        }
    }
    a.align(16);
    const std::uint8_t* const leave_check = a.here();
    emit_leave(a, Exit::Check, FlagPlace::Slot, common);
    a.align(16);
    const std::uint8_t* const miss = stubs.exit(Exit::Branch, FlagPlace::Slot);
    stubs.shared_branch = emit_shared_branch(a, miss);
    a.align(16);
    stubs.landing = a.here();
    emit_landing(a, stubs);
    stubs.branch = emit_branch(a, true, stubs.shared_branch);
    stubs.branch_with_flags = emit_branch(a, false, stubs.shared_branch);
    stubs.shared = emit_shared_checks(a, stubs.base, leave_check);
    return stubs;
}

void emit_exit(Assembler& a, Exit why, const std::uint8_t* stub, const Stubs& stubs,
               const Site& site, std::size_t bytes) {
    const std::uint8_t* const behind = a.here() + Stubs::exit_bytes(why);
    const auto offset = static_cast<std::uint32_t>(behind - stubs.base);
    if (why == Exit::Miss)
        a.store32_imm(DOPPEL_FRAME(exit_site), offset);
    else
        a.put(0xbe41 | std::uint64_t{offset} << 16, 6); // mov r14d, offset
    a.jump(stub);
    put_site(a, site, bytes);
}

void put_site(Assembler& a, const Site& site, std::size_t bytes) {
    std::array<std::uint64_t, 2> words{};
    static_assert(sizeof site <= sizeof words);
    std::memcpy(words.data(), &site, sizeof site);
    a.put(words[0], std::min<std::size_t>(bytes, 8));
    if (bytes > 8)
        a.put(words[1], bytes - 8);
}

} // namespace doppel::cpu::x86::frontend
