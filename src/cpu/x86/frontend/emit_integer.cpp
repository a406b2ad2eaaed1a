// SPDX-License-Identifier: Apache-2.0
/// Instructions that go on to the next one.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

constexpr std::uint16_t bit(unsigned reg) { return static_cast<std::uint16_t>(1u << reg); }

/// Slot registers among the explicit register operands.
std::uint16_t slot_operands(const Instruction& in) {
    std::uint16_t set = 0;
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::Gpr && in_slot(operand.reg))
            set = static_cast<std::uint16_t>(set | bit(operand.reg));
    return set;
}

bool has_high_byte(const Instruction& in) {
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::GprHigh)
            return true;
    return false;
}

bool checks_memory(const Instruction& in) {
    return in.has_memory() && in.memory_access != Access::Address;
}

} // namespace

bool BlockTranslator::assign_slots(const ScannedInstruction& at, bool single, Rewrite& out) {
    const std::uint16_t slots = slot_operands(at.in);
    const auto reads = static_cast<std::uint16_t>(slots & at.in.registers_read);
    std::uint16_t taken = 0;   // scratch registers with a source
    std::uint16_t written = 0; // scratch registers with a result
    const HostReg scratch[] = {kScratch1, kScratch0};
    const std::size_t count = single ? 1 : 2;
    for (unsigned pass = 0; pass < 2; ++pass) { // sources first, they need one each
        for (unsigned reg = 12; reg < 16; ++reg) {
            if ((slots & bit(reg)) == 0 || ((reads & bit(reg)) != 0) != (pass == 0))
                continue;
            const bool result = (at.in.registers_written & bit(reg)) != 0;
            std::size_t pick = 0;
            while (pick < count && (pass == 0 ? (taken & bit(scratch[pick])) != 0
                                              : (written & bit(scratch[pick])) != 0))
                ++pick;
            if (pick == count)
                return false;
            out.gpr[reg] = scratch[pick];
            taken = static_cast<std::uint16_t>(taken | bit(scratch[pick]));
            if (result)
                written = static_cast<std::uint16_t>(written | bit(scratch[pick]));
        }
    }
    return true;
}

void BlockTranslator::load_slots(const Instruction& in, const Rewrite& with) {
    const std::uint16_t slots = slot_operands(in);
    for (unsigned reg = 12; reg < 16; ++reg)
        if ((slots & in.registers_read & bit(reg)) != 0)
            a_.load(with.gpr[reg], slot(reg));
}

void BlockTranslator::store_slots(const Instruction& in, const Rewrite& with) {
    const std::uint16_t slots = slot_operands(in);
    for (unsigned reg = 12; reg < 16; ++reg)
        if ((slots & in.registers_written & bit(reg)) != 0)
            a_.store(slot(reg), with.gpr[reg]);
}

/// The instruction itself, all operands in place, and what it does to the flags.
void BlockTranslator::emit_body(const ScannedInstruction& at, const Rewrite& with) {
    if (may_signal(at.in))
        note_signal(at);
    emit_rewritten(a_, at.in, scan_.bytes.data() + at.buffer_offset, with);
    if (writes_flags(at.in)) {
        native_ = true;
        saved_ = false;
    }
}

/// `op reg, slot` and the like: the slot takes the place of the register in ModRM.rm.
bool BlockTranslator::emit_slot_as_memory(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    const std::uint16_t slots = slot_operands(in);
    if (in.has_memory() || !in.has_modrm() || in.type != InstructionClass::Alu || in.is_vex() ||
        (slots & (slots - 1)) != 0 || has_high_byte(in))
        return false;
    const auto rm = static_cast<unsigned>(in.modrm_rm() | (in.rex & 1) << 3);
    const auto reg = static_cast<unsigned>(in.modrm_reg() | (in.rex & 4) << 1);
    if (slots != bit(rm) || (!is_group(in) && reg == rm))
        return false;
    switch (in.op) {
    case Op::Xchg:
    case Op::Bt:
    case Op::Bts:
    case Op::Btr:
    case Op::Btc: return false;
    default: break;
    }
    // A 32-bit result must clear the upper half.
    if ((in.registers_written & bit(rm)) != 0 && in.operand_size == 4)
        return false;
    Rewrite with;
    with.register_is_mem = true;
    with.mem = slot(rm);
    emit_body(at, with);
    return true;
}

/// mov [rdi], ah: with the operand's host address in r13 and r14 a REX prefix is needed, with it
/// there is no ah. So ah and al change places meanwhile.
void BlockTranslator::emit_high_byte_memory(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    Rewrite with;
    with.high_as_low = true;
    with.mem = access(at, in.memory_size, in.writes_memory(), true);
    if (needs_flags(in))
        restore_flags();
    HostReg high = kRax;
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::GprHigh)
            high = static_cast<HostReg>(operand.reg & 3);
    a_.xchg_al_high(high);
    emit_body(at, with);
    a_.xchg_al_high(high);
}

void BlockTranslator::emit_generic(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    Rewrite with;
    const bool memory = checks_memory(in);
    if (memory && has_high_byte(in)) {
        emit_high_byte_memory(at);
        return;
    }
    const bool slots = slot_operands(in) != 0;
    if (in.displacement_size == 8 && memory) { // MOV moffs: no ModRM to rewrite
        emit_interpret(at);
        return;
    }
    const bool restore = needs_flags(in) && (memory || !native_);
    const bool grouped = at.base_group != ScannedInstruction::kNoGroup;
    const bool single = memory && (slots || restore || grouped);
    if (slots && !memory && !restore && emit_slot_as_memory(at))
        return;
    if (slots && !assign_slots(at, single, with)) {
        emit_interpret(at);
        return;
    }
    if (memory)
        with.mem = access(at, in.memory_size, in.writes_memory(), single);
    if (needs_flags(in))
        restore_flags();
    load_slots(in, with);
    emit_body(at, with);
    store_slots(in, with);
    if (in.type == InstructionClass::X87)
        note_x87(at);
}

void BlockTranslator::emit_lea(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    const unsigned reg = in.operands[0].reg;
    Rewrite with;
    with.mem = address_parts(at);
    HostReg to = kHome[reg];
    if (in_slot(reg)) {
        if (in.operand_size == 2) {
            emit_interpret(at);
            return;
        }
        to = kScratch0;
    }
    if (in.operand_size == 2) {
        a_.lea(kScratch0, with.mem);
        a_.byte(0x66); // mov16
        a_.rr(false, 0x89, kScratch0, to);
    } else if (in.operand_size == 4 || in.address_size == 4) {
        a_.lea32(to, with.mem);
    } else {
        a_.lea(to, with.mem);
    }
    if (in_slot(reg))
        a_.store(slot(reg), to);
}

void BlockTranslator::emit_push(const ScannedInstruction& at) {
    const Operand& operand = at.in.operands[0];
    const Mem to = stack_access(at, -8, true);
    if (operand.kind == OperandKind::Immediate) {
        a_.store_imm32(to, static_cast<std::int32_t>(at.in.immediate));
    } else if (in_slot(operand.reg)) {
        a_.load(kScratch0, slot(operand.reg));
        a_.store(to, kScratch0);
    } else {
        a_.store(to, kHome[operand.reg]);
    }
    a_.lea(kGuestRsp, {kGuestRsp, kNoReg, 1, -8});
}

/// The source is read before the stack is checked: its page fault comes first.
void BlockTranslator::emit_push_memory(const ScannedInstruction& at) {
    clobber_flags();
    Mem simple;
    const bool is_simple = simple_address(at.in, simple);
    const Mem from = checked(at, is_simple ? &simple : nullptr, 8, false, false);
    a_.load(kScratch0, from);
    a_.store(DOPPEL_FRAME(spare), kScratch0);
    const Mem to = stack_access(at, -8, true);
    a_.load(kScratch0, DOPPEL_FRAME(spare));
    a_.store(to, kScratch0);
    a_.lea(kGuestRsp, {kGuestRsp, kNoReg, 1, -8});
}

void BlockTranslator::emit_pop(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[0].reg;
    const Mem from = stack_access(at, 0, false);
    if (in_slot(reg)) {
        a_.load(kScratch0, from);
        a_.store(slot(reg), kScratch0);
    } else {
        a_.load(kHome[reg], from);
    }
    if (reg != Rsp)
        a_.lea(kGuestRsp, {kGuestRsp, kNoReg, 1, 8});
}

void BlockTranslator::emit_leave(const ScannedInstruction& at) {
    clobber_flags();
    const Mem simple{kRbp};
    const Mem from = checked(at, &simple, 8, false, false);
    a_.load(kScratch0, from);
    a_.lea(kGuestRsp, {kRbp, kNoReg, 1, 8});
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
