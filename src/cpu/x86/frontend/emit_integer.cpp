// SPDX-License-Identifier: Apache-2.0
/// Instructions that go on to the next one.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

bool has_high_byte(const Instruction& in) {
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::GprHigh)
            return true;
    return false;
}

/// VZEROUPPER, VZEROALL.
bool is_zero_vectors(const Instruction& in) {
    return in.is_vex() && in.map == OpcodeMap::Map0F && in.opcode == 0x77;
}

bool checks_memory(const Instruction& in) {
    return in.has_memory() && in.memory_access != Access::Address;
}

} // namespace

/// All it names has its home, so that its bytes say on the host what they say to the guest.
bool BlockTranslator::is_the_same(const Instruction& in) const {
    constexpr std::uint16_t kElsewhere = kWithoutHome | 1u << Rsp;
    return !code32_ && scan_.lending_count == 0 && !in.has_memory() &&
           (in.registers() & kElsewhere) == 0;
}

/// The instruction itself or its twin `in`, all operands in place, and what it does to the flags.
void BlockTranslator::emit_body(const ScannedInstruction& at, const Instruction& in,
                                const Rewrite& with) {
    if (may_signal(at.in)) {
        hold_flags();
        note_signal(at);
    }
    const std::uint8_t* const start = a_.here();
    const std::uint8_t* const bytes = scan_.bytes.data() + at.buffer_offset;
    if (is_the_same(in))
        a_.copy(bytes, in.length);
    else
        emit_rewritten(a_, in, bytes, with);
    body_bytes_ = may_signal(at.in) ? 0 : static_cast<std::size_t>(a_.here() - start);
    body_end_ = a_.here();
    note_flags(at);
}

/// mov [rdi], ah: with the operand's host address in r13 and r14 a REX prefix is needed, with it
/// there is no ah. So ah and al change places meanwhile.
void BlockTranslator::emit_high_byte_memory(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    Rewrite with;
    with.high_as_low = true;
    with.code32 = code32_;
    with.mem = access(at, in.memory_size, in.writes_memory(), true);
    if (needs_flags(in))
        restore_flags();
    HostReg high = kRax;
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::GprHigh)
            high = static_cast<HostReg>(operand.reg & 3);
    a_.xchg_al_high(high);
    emit_body(at, in, with);
    a_.xchg_al_high(high);
}

void BlockTranslator::emit_generic(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    Rewrite with;
    with.code32 = code32_;
    const bool memory = checks_memory(in);
    if (code32_ && is_zero_vectors(in)) {
        emit_zero_vectors(at);
        return;
    }
    if (memory && has_high_byte(in)) {
        emit_high_byte_memory(at);
        return;
    }
    if (!memory) {
        if (!defer_rsp(at))
            emit_plain(at);
    } else {
        const bool slots = slot_operands(in) != 0;
        const bool grouped = at.base_group != ScannedInstruction::kNoGroup;
        const bool single = slots || needs_flags(in) || grouped;
        if (slots && !assign_slots(at, single, with)) {
            emit_interpret(at);
            return;
        }
        with.mem = access(at, in.memory_size, in.writes_memory(), single);
        if (needs_flags(in))
            restore_flags();
        keep_memory_operand(at, with);
        emit_slots_and_memory(at, with);
    }
    if (in.type == InstructionClass::X87)
        note_x87(at);
}

/// In 32-bit code they leave the registers alone that it cannot name (Intel SDM Vol. 2, VZEROALL).
void BlockTranslator::emit_zero_vectors(const ScannedInstruction& at) {
    const std::uint8_t vex = scan_.bytes[at.buffer_offset + at.in.opcode_offset - 1u];
    const bool all = (vex & 4) != 0; // VEX.L
    for (unsigned i = 0; i < 8; ++i) {
        a_.byte(0xc5);
        if (all) { // vpxor xmm, xmm, xmm
            a_.byte(static_cast<std::uint8_t>(0x81 | (~i & 15) << 3));
            a_.byte(0xef);
        } else { // vmovaps xmm, xmm
            a_.byte(0xf8);
            a_.byte(0x28);
        }
        a_.byte(static_cast<std::uint8_t>(0xc0 | i << 3 | i));
    }
}

/// What an instruction that moves addresses makes of this one.
void BlockTranslator::emit_constant(HostReg to, std::int32_t value, bool narrow) {
    a_.mov_imm(to, narrow ? std::uint64_t{static_cast<std::uint32_t>(value)}
                          : static_cast<std::uint64_t>(std::int64_t{value}));
}

void BlockTranslator::emit_lea(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    const unsigned reg = in.operands[0].reg;
    Mem parts;
    HostReg to = kNoReg;
    const bool narrow = in.operand_size == 4 || in.address_size == 4;
    if (lea_with_held(at, parts, to)) {
        if (parts.base == kNoReg && parts.index == kNoReg)
            emit_constant(to, parts.displacement, narrow);
        else
            narrow ? a_.lea32(to, parts) : a_.lea(to, parts);
        return;
    }
    take(kScratch0);
    take(kScratch1);
    if (in_slot(reg) && in.operand_size == 2) {
        emit_interpret(at);
        return;
    }
    parts = address_parts(at);
    if (in.operand_size == 2) {
        a_.lea(kScratch0, parts);
        a_.byte(0x66); // mov16
        a_.rr(false, 0x89, kScratch0, kHome[reg]);
        return;
    }
    narrow ? a_.lea32(kScratch0, parts) : a_.lea(kScratch0, parts);
    a_.store(slot(reg), kScratch0);
}

void BlockTranslator::emit_push(const ScannedInstruction& at) {
    const Operand& operand = at.in.operands[0];
    const Mem to = stack_access(at, -word_, true);
    if (operand.kind == OperandKind::Immediate) {
        const auto value = static_cast<std::int32_t>(at.in.immediate);
        if (code32_)
            a_.store32_imm(to, static_cast<std::uint32_t>(value));
        else
            a_.store_imm32(to, value);
    } else if (in_slot(operand.reg)) {
        if (holder(operand.reg) == kNoReg) {
            take(kScratch0);
            a_.load(kScratch0, slot(operand.reg));
        }
        a_.store(to, kScratch0); // scratch 1 is part of the address
    } else {
        store_word(to, kHome[operand.reg]);
    }
    rsp_owed_ -= word_;
}

void BlockTranslator::emit_push_segment(const ScannedInstruction& at) {
    const unsigned segment = at.in.operands[0].reg;
    const Mem to = stack_access(at, -word_, true);
    a_.load16_zero_extended(kScratch0, segment_selector(segment));
    store_word(to, kScratch0);
    move_rsp(-word_);
}

/// The source is read before the stack is checked: its page fault comes first.
void BlockTranslator::emit_push_memory(const ScannedInstruction& at) {
    load_word(kScratch0, other_access(at));
    a_.store(DOPPEL_FRAME(spare), kScratch0);
    const Mem to = stack_access(at, -word_, true);
    a_.load(kScratch0, DOPPEL_FRAME(spare));
    store_word(to, kScratch0);
    move_rsp(-word_);
}

void BlockTranslator::emit_pop(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[0].reg;
    const Mem from = stack_access(at, 0, false);
    if (in_slot(reg)) {
        forget_slot(reg);
        take(kScratch0);
        a_.load(kScratch0, from);
        a_.store(slot(reg), kScratch0);
    } else {
        load_word(kHome[reg], from);
    }
    if (reg != Rsp)
        rsp_owed_ += word_;
}

void BlockTranslator::emit_leave(const ScannedInstruction& at) {
    clobber_in_check();
    const Mem simple{kRbp};
    const Mem from = checked(at, &simple, word_, false, false);
    load_word(kScratch0, from);
    address_word(kGuestRsp, {kRbp, kNoReg, 1, word_});
    a_.mov(kRbp, kScratch0);
}

/// Flag-free: rdx:rax = host TSC + offset.
void BlockTranslator::emit_rdtsc(bool with_aux) {
    a_.byte(0x0f);
    a_.byte(0x31);
    a_.rorx(kRdx, kRdx, 32);
    a_.load(kScratch0, DOPPEL_FRAME(tsc_offset));
    a_.lea(kRax, {kRax, kRdx});
    a_.lea(kRax, {kRax, kScratch0});
    a_.rorx(kRdx, kRax, 32);
    a_.mov32(kRdx, kRdx);
    a_.mov32(kRax, kRax);
    if (with_aux)
        a_.load32(kRcx, at_rsp(static_cast<std::int32_t>(offsetof(CpuState, tsc_aux))));
}

} // namespace doppel::cpu::x86::frontend
