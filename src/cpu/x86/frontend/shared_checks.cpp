// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/shared_checks.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

Mem behind_call(Mem of_frame) { return of_frame + 8; }

Mem limit(std::size_t size) {
    return {kTlb, kNoReg, 1, DOPPEL_TLB(limits) + static_cast<std::int32_t>(size * 8)};
}

/// Where checks go on that do not come back as usual.
struct Elsewhere {
    const std::uint8_t* miss;
    const std::uint8_t* tell;
};

constexpr Mem entry(std::int32_t array) { return {kTlb, kScratch1, 8, array}; }

/// The count has ended: where that was goes to the dispatcher, who will be there at the next poll.
/// What others ask for at the same time must not be lost. r14 is where this goes on: a call would
/// take one more word of the frame.
const std::uint8_t* emit_tell(Assembler& a) {
    const Mem back = behind_call(frame_at(offsetof(Frame, shared_back)));
    a.align(16);
    const std::uint8_t* const start = a.here();
    a.store(back, kScratch1);
    a.load(kScratch1, at_rsp(0)); // behind the call of the check
    a.store(behind_call(DOPPEL_FRAME(busy_code)), kScratch1);
    a.load(kScratch1, behind_call(DOPPEL_FRAME(shared_calls)));
    a.store(behind_call(DOPPEL_FRAME(shared_calls_left)), kScratch1);
    a.mov_imm(kScratch1, FrameHeader::kAttention);
    a.byte(0xf0); // LOCK
    a.alu_mem_reg(Alu::Or, behind_call(DOPPEL_FRAME(attention)), kScratch1);
    a.jump(back);
    return start;
}

/// One call in many tells where it comes from: code is met there as often as it runs.
void count_call(Assembler& a, const std::uint8_t* tell) {
    a.alu_mem_imm8(Alu::Sub, behind_call(DOPPEL_FRAME(shared_calls_left)), 1);
    std::uint8_t* const over = a.short_jump_if_later(Condition::NotEqual);
    a.put(0x05'35'8d4c, 7); // lea r14, [rip + 5], which is behind the jump
    a.jump(tell);
    a.bind_short(over);
}

const std::uint8_t* emit_check(Assembler& a, bool write, CheckGives gives, std::size_t size,
                               const Elsewhere& to) {
    a.align(16);
    const std::uint8_t* const start = a.here();
    count_call(a, to.tell);
    a.bextr(kScratch1, kScratch0, kTlb);
    a.alu(Alu::Xor, kScratch0, entry(write ? DOPPEL_TLB(wtag) : DOPPEL_TLB(rtag)));
    a.alu(Alu::Cmp, kScratch0, limit(size));
    a.jump_if(Condition::Above, to.miss);
    a.load(kScratch1,
           entry(gives == CheckGives::Addend ? DOPPEL_TLB(addend) : DOPPEL_TLB(page_host)));
    if (gives == CheckGives::HostAddress)
        a.alu(Alu::Add, kScratch0, kScratch1);
    a.ret();
    return start;
}

/// The stack has moved to another page, which is mostly in the TLB.
const std::uint8_t* emit_stack_check(Assembler& a, std::size_t size, const Elsewhere& to) {
    const Mem stack_page{kTlb, kNoReg, 1, DOPPEL_TLB(stack_page)};
    const Mem stack_addend{kTlb, kNoReg, 1, DOPPEL_TLB(stack_addend)};
    a.align(16);
    const std::uint8_t* const start = a.here();
    count_call(a, to.tell);
    a.alu(Alu::Xor, kScratch0, stack_page);
    a.load(kScratch1, stack_addend);
    a.alu(Alu::Cmp, kScratch0, limit(size));
    std::uint8_t* const other = a.short_jump_if_later(Condition::Above);
    a.ret();
    a.bind_short(other);
    a.alu(Alu::Xor, kScratch0, stack_page);
    a.bextr(kScratch1, kScratch0, kTlb);
    a.alu(Alu::Xor, kScratch0, entry(DOPPEL_TLB(wtag)));
    a.alu(Alu::Cmp, kScratch0, limit(size));
    a.jump_if(Condition::Above, to.miss);
    a.load(kScratch0, entry(DOPPEL_TLB(wtag)));
    a.store(stack_page, kScratch0);
    a.load(kScratch1, entry(DOPPEL_TLB(addend)));
    a.store(stack_addend, kScratch1);
    a.ret();
    return start;
}

/// Returns to `leave`, so that the host's stack of return predictions stays in step.
const std::uint8_t* emit_miss(Assembler& a, const std::uint8_t* base, const std::uint8_t* leave) {
    a.align(16);
    const std::uint8_t* const start = a.here();
    a.store(behind_call(DOPPEL_FRAME(exit_r13)), kScratch0);
    a.store(behind_call(DOPPEL_FRAME(exit_r14)), kScratch1);
    a.load(kScratch0, at_rsp(0));
    a.mov_imm(kScratch1, reinterpret_cast<std::uint64_t>(base));
    a.alu(Alu::Sub, kScratch0, kScratch1);
    a.store32(behind_call(DOPPEL_FRAME(exit_site)), kScratch0);
    a.mov_imm(kScratch0, reinterpret_cast<std::uint64_t>(leave));
    a.store(at_rsp(0), kScratch0);
    a.ret();
    return start;
}

const std::uint8_t* emit_restore_flags(Assembler& a) {
    a.align(16);
    const std::uint8_t* const start = a.here();
    a.mov(kScratch1, kRax);
    a.load16_zero_extended(kRax, behind_call(DOPPEL_FRAME(flags)));
    a.alu_imm8_al(Alu::Add, 0x7f);
    a.sahf();
    a.mov(kRax, kScratch1);
    a.ret();
    return start;
}

} // namespace

void emit_save_flags(Assembler& a, const Mem& slot) {
    a.mov(kScratch1, kRax);
    a.lahf();
    a.seto_al();
    a.store32(slot, kRax); // a byte shorter than 16 bits
    a.mov(kRax, kScratch1);
}

SharedChecks::Code SharedChecks::check(bool write, CheckGives gives, std::uint32_t bytes) const {
    const std::size_t size = TlbInstance::limit_of(bytes);
    return size == TlbInstance::kNoLimit
               ? nullptr
               : checks.at(write ? 1 : 0).at(static_cast<std::size_t>(gives)).at(size);
}

SharedChecks::Code SharedChecks::stack_check(std::uint32_t bytes) const {
    const std::size_t size = TlbInstance::limit_of(bytes);
    return size == TlbInstance::kNoLimit ? nullptr : stack_checks.at(size);
}

SharedChecks emit_shared_checks(Assembler& a, const std::uint8_t* base, const std::uint8_t* leave) {
    SharedChecks made;
    made.begin = a.here();
    const Elsewhere to{.miss = emit_miss(a, base, leave), .tell = emit_tell(a)};
    for (std::size_t size = 0; size < SharedChecks::kSizes; ++size) {
        for (const bool write : {false, true})
            for (const CheckGives gives :
                 {CheckGives::Addend, CheckGives::PageHost, CheckGives::HostAddress})
                made.checks.at(write ? 1 : 0).at(static_cast<std::size_t>(gives)).at(size) =
                    emit_check(a, write, gives, size, to);
        made.stack_checks.at(size) = emit_stack_check(a, size, to);
    }
    a.align(16);
    made.save_flags = a.here();
    emit_save_flags(a, behind_call(DOPPEL_FRAME(flags)));
    a.ret();
    made.restore_flags = emit_restore_flags(a);
    made.end = a.here();
    return made;
}

} // namespace doppel::cpu::x86::frontend
