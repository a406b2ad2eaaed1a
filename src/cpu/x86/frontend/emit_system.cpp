// SPDX-License-Identifier: Apache-2.0
/// Instructions of kernels that are frequent enough to be worth host code.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

Mem state_at(std::size_t offset) { return at_rsp(static_cast<std::int32_t>(offset)); }

/// Always accessed as a whole: the host cannot forward a narrow store to a wide load.
const Mem kRflags = state_at(offsetof(CpuState, rflags));
constexpr auto kIf = static_cast<std::int32_t>(FLAG_IF);

} // namespace

/// CLI and STI at CPL 0. While an interrupt waits, STI is the interpreter's, shadow and all;
/// otherwise the shadow makes no difference: the next poll is behind the next instruction.
void BlockTranslator::emit_interrupt_flag(const ScannedInstruction& at) {
    clobber_flags();
    if (at.treatment == Treatment::Cli) {
        a_.alu_mem_imm32(Alu::And, kRflags, ~kIf);
        return;
    }
    a_.cmp_mem32_imm8(state_at(offsetof(Frame, event_hint) - offsetof(Frame, state)), 0);
    interpret_if(Condition::NotEqual, at);
    a_.alu_mem_imm32(Alu::Or, kRflags, kIf);
}

/// A vCPU that spins for long waits for one that may have no host CPU: now and then the
/// interpreter executes the PAUSE, and gives the host's CPU away.
void BlockTranslator::emit_pause(const ScannedInstruction& at) {
    clobber_flags();
    a_.alu_mem_imm32(Alu::Sub, state_at(offsetof(Frame, pauses_left) - offsetof(Frame, state)), 1);
    interpret_if(Condition::Below, at);
    a_.byte(0xf3);
    a_.byte(0x90);
}

/// The slot and the other bits of rflags, put together as unpack_flags() does.
void BlockTranslator::emit_pushf(const ScannedInstruction& at) {
    clobber_flags();
    a_.load16_zero_extended(kScratch0, DOPPEL_FRAME(flags));
    a_.mov(kScratch1, kScratch0);
    a_.shr(kScratch1, 8);
    a_.alu_imm(Alu::And, kScratch0, 1, false);
    a_.shl(kScratch0, 11);
    a_.alu(Alu::Or, kScratch0, kScratch1);
    a_.load(kScratch1, kRflags);
    a_.alu_imm(Alu::And, kScratch1, ~static_cast<std::int32_t>(kArithmeticFlags), false);
    a_.alu(Alu::Or, kScratch0, kScratch1);
    a_.store(DOPPEL_FRAME(spare), kScratch0);
    const Mem to = stack_access(at, -8, true);
    a_.load(kScratch0, DOPPEL_FRAME(spare));
    a_.store(to, kScratch0);
    a_.lea(kGuestRsp, {kGuestRsp, kNoReg, 1, -8});
}

void BlockTranslator::emit_read_segment(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[0].reg;
    const unsigned segment = at.in.operands[1].reg;
    a_.load16_zero_extended(kScratch0,
                            state_at(offsetof(CpuState, segment) + segment * sizeof(Segment) +
                                     offsetof(Segment, selector)));
    if (in_slot(reg)) {
        if (at.in.operand_size == 2)
            a_.store16(slot(reg), kScratch0);
        else
            a_.store(slot(reg), kScratch0);
    } else if (at.in.operand_size == 2) {
        a_.byte(0x66); // mov16
        a_.rr(false, 0x89, kScratch0, kHome[reg]);
    } else {
        a_.mov32(kHome[reg], kScratch0);
    }
}

/// Adds to the address in scratch 0 the operand's distance that the bit offset reaches.
void BlockTranslator::add_bit_offset(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[1].reg;
    const bool wide = at.in.operand_size == 8;
    if (in_slot(reg) && wide)
        a_.load(kScratch1, slot(reg));
    else if (in_slot(reg))
        a_.movsxd(kScratch1, slot(reg));
    else if (wide)
        a_.mov(kScratch1, kHome[reg]);
    else
        a_.movsxd(kScratch1, kHome[reg]);
    a_.sar(kScratch1, wide ? 6 : 5);
    a_.lea(kScratch0, {kScratch0, kScratch1, static_cast<std::uint8_t>(wide ? 8 : 4), 0});
}

void BlockTranslator::emit_bit_string(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[1].reg;
    const bool wide = at.in.operand_size == 8;
    clobber_flags();
    Rewrite with;
    with.mem = checked(at, nullptr, at.in.operand_size, at.in.writes_memory(), true);
    if (in_slot(reg))
        a_.load(kScratch1, slot(reg));
    else
        a_.mov(kScratch1, kHome[reg]);
    a_.alu_imm(Alu::And, kScratch1, wide ? 63 : 31, false);
    a_.store(DOPPEL_FRAME(spare), kScratch1);
    restore_flags(); // all but CF stay
    a_.load(kScratch1, DOPPEL_FRAME(spare));
    with.gpr[reg] = kScratch1;
    emit_body(at, with);
}

} // namespace doppel::cpu::x86::frontend
