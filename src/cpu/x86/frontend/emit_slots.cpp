// SPDX-License-Identifier: Apache-2.0
/// Guest registers without a home (r12 to r15). Their truth is the slot in the frame, whenever
/// translated code may be left; between two checks, which want the scratch registers, these hold
/// the ones in use, written back late.
#include "cpu/x86/frontend/block_translator.hpp"

#include <algorithm>
#include <bit>

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

constexpr std::uint16_t bit(unsigned reg) { return static_cast<std::uint16_t>(1u << reg); }
constexpr HostReg scratch_at(std::size_t index) { return index == 0 ? kScratch0 : kScratch1; }
constexpr std::size_t index_of(HostReg scratch) { return scratch == kScratch0 ? 0 : 1; }

bool has_high_byte(const Instruction& in) {
    return std::ranges::any_of(
        in.operands, [](const Operand& operand) { return operand.kind == OperandKind::GprHigh; });
}

bool can_be_memory(const Instruction& in) {
    switch (in.op) {
    case Op::Xchg:
    case Op::Bt:
    case Op::Bts:
    case Op::Btr:
    case Op::Btc: return false;
    default:
        return in.has_modrm() && in.type == InstructionClass::Alu && !in.is_vex() &&
               !has_high_byte(in);
    }
}

/// Its translation says itself which scratch registers it needs (take()).
bool names_scratch(const ScannedInstruction& at) {
    switch (at.treatment) {
    case Treatment::Generic: return at.in.type != InstructionClass::X87;
    case Treatment::Nothing:
    case Treatment::Lea:
    case Treatment::Push:
    case Treatment::Pop:
    case Treatment::Conditional: return true;
    default: return false;
    }
}

} // namespace

/// Registers without a home among the explicit register operands.
std::uint16_t BlockTranslator::slot_operands(const Instruction& in) {
    std::uint16_t set = 0;
    if ((in.registers() & kWithoutHome) == 0)
        return set;
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::Gpr && in_slot(operand.reg))
            set = static_cast<std::uint16_t>(set | bit(operand.reg));
    return set;
}

/// Before `at`: what its translation does not know of is put away.
void BlockTranslator::settle_held(const ScannedInstruction& at) {
    if (!names_scratch(at) || !scan_.tuning.slots)
        release_slots();
    const bool branches = at.index + 1u < scan_.count &&
                          scan_.list.at(at.index + 1u).treatment == Treatment::Conditional;
    if (branches || at.treatment == Treatment::Conditional)
        write_slots(); // here, where it does not come between a compare and its branch
}

/// Into the frame, where all exits find them.
void BlockTranslator::write_slots() {
    for (std::size_t i = 0; i < held_.size(); ++i) {
        HeldSlot& held = held_.at(i);
        if (held.dirty)
            a_.store(slot(held.reg), scratch_at(i));
        held.dirty = false;
    }
}

void BlockTranslator::release_slots() {
    write_slots();
    held_ = {};
}

/// The scratch register is about to be written.
void BlockTranslator::take(HostReg scratch) {
    HeldSlot& held = held_.at(index_of(scratch));
    if (held.dirty)
        a_.store(slot(held.reg), scratch);
    held = {};
    if (scratch == kScratch0)
        leave_scratch0();
    else
        stack_in_scratch1_ = false;
}

/// The slot is written.
void BlockTranslator::forget_slot(unsigned reg) {
    for (HeldSlot& held : held_)
        if (held.reg == reg)
            held = {};
}

HostReg BlockTranslator::holder(unsigned reg) const {
    for (std::size_t i = 0; i < held_.size(); ++i)
        if (held_.at(i).reg == reg)
            return scratch_at(i);
    return kNoReg;
}

/// The scratch register that holds `reg` from here on: one that holds none of `kept`, preferably
/// what is read again last. `load`: with its value.
HostReg BlockTranslator::hold_slot(const ScannedInstruction& at, unsigned reg, bool load,
                                   std::uint16_t kept) {
    if (const HostReg already = holder(reg); already != kNoReg)
        return already;
    const auto cost = [&](std::size_t i) -> std::size_t { // of taking it
        const HeldSlot& held = held_.at(i);
        const bool useful =
            i == 0 ? in_scratch0_ != ScannedInstruction::kNoGroup : stack_in_scratch1_;
        if (held.reg == HeldSlot::kNone)
            return useful ? 1 : 0;
        if ((kept & bit(held.reg)) != 0)
            return 1000;
        const std::size_t read = next_read(at, held.reg);
        return (held.dirty ? 3 : 2) + (read == kNever ? 0 : 2 * (scan_.count - read));
    };
    const std::size_t pick = cost(0) < cost(1) ? 0 : 1;
    take(scratch_at(pick));
    held_.at(pick).reg = static_cast<std::uint8_t>(reg);
    if (load)
        a_.load(scratch_at(pick), slot(reg));
    return scratch_at(pick);
}

/// The later instruction that reads `reg`, if the scratch registers are not needed before that.
std::size_t BlockTranslator::next_read(const ScannedInstruction& at, unsigned reg) const {
    if (!scan_.tuning.slots)
        return kNever;
    for (std::size_t i = at.index + 1u; i < scan_.count; ++i) {
        const ScannedInstruction& next = scan_.list.at(i);
        if (!names_scratch(next) || next.treatment == Treatment::Push)
            return kNever;
        if (next.in.has_memory() && next.treatment == Treatment::Generic &&
            next.loop_access.group == LoopAccess::kNone &&
            (next.stack ? !group_checked_.at(next.stack_group)
                        : next.base_group == ScannedInstruction::kNoGroup ||
                              !group_states_.at(next.base_group).found))
            return kNever;
        if ((next.in.registers_read & bit(reg)) != 0)
            return i;
        if ((next.in.registers_written & bit(reg)) != 0)
            return kNever;
    }
    return kNever;
}

/// A scratch register for each slot operand. False: there are not enough, or (`single`) more than
/// scratch 1; but MULX, which has read its memory operand before it writes two results, may have
/// the second one where that operand's address was.
bool BlockTranslator::assign_slots(const ScannedInstruction& at, bool single, Rewrite& out) {
    const std::uint16_t slots = slot_operands(at.in);
    const auto reads = static_cast<std::uint16_t>(slots & at.in.registers_read);
    std::uint16_t taken = 0;   // scratch registers with a source
    std::uint16_t written = 0; // scratch registers with a result
    for (unsigned pass = 0; pass < 2; ++pass) {
        // Sources first, they need one each.
        const bool both = !single || (pass == 1 && at.in.op == Op::Mulx);
        const std::size_t count = both ? 2 : 1;
        for (unsigned reg = 12; reg < 16; ++reg) {
            if ((slots & bit(reg)) == 0 || ((reads & bit(reg)) != 0) != (pass == 0))
                continue;
            const bool result = (at.in.registers_written & bit(reg)) != 0;
            std::size_t pick = 0;
            while (pick < count && ((pass == 0 ? taken : written) & bit(scratch_at(1 - pick))) != 0)
                ++pick;
            if (pick == count)
                return false;
            const HostReg to = scratch_at(1 - pick);
            out.gpr[reg] = to;
            taken = static_cast<std::uint16_t>(taken | bit(to));
            if (result)
                written = static_cast<std::uint16_t>(written | bit(to));
        }
    }
    return true;
}

/// As assign_slots() has it, for this instruction only.
void BlockTranslator::emit_with_assigned(const ScannedInstruction& at, const Rewrite& with) {
    const std::uint16_t slots = slot_operands(at.in);
    for (unsigned reg = 12; reg < 16; ++reg)
        if ((slots & at.in.registers_read & bit(reg)) != 0)
            a_.load(with.gpr[reg], slot(reg));
    emit_body(at, at.in, with);
    for (unsigned reg = 12; reg < 16; ++reg)
        if ((slots & at.in.registers_written & bit(reg)) != 0)
            a_.store(slot(reg), with.gpr[reg]);
}

/// All slot operands in scratch registers, which go on holding them; `kept`: see hold_slot().
void BlockTranslator::emit_with_held(const ScannedInstruction& at, Rewrite& with,
                                     std::uint16_t slots) {
    for (const std::uint16_t wanted : {at.in.registers_read, std::uint16_t{0xffff}})
        for (unsigned reg = 12; reg < 16; ++reg)
            if ((slots & wanted & bit(reg)) != 0)
                with.gpr[reg] = hold_slot(at, reg, (at.in.registers_read & bit(reg)) != 0, slots);
    emit_body(at, at.in, with);
    for (unsigned reg = 12; reg < 16; ++reg)
        if ((slots & at.in.registers_written & bit(reg)) != 0)
            held_.at(index_of(with.gpr[reg])).dirty = true;
}

/// `op reg, slot` and the like: the slot takes the place of the register in ModRM.rm, if no scratch
/// register holds it and it is not worth one.
bool BlockTranslator::emit_slot_as_memory(const ScannedInstruction& at) {
    const std::uint16_t slots = slot_operands(at.in);
    if (!can_be_memory(at.in) || std::popcount(slots) != 1)
        return false;
    const auto slot_register = static_cast<unsigned>(std::countr_zero(slots));
    Instruction in = at.in;
    if (rm_register(in) != slot_register && !is_group(in) && has_twin(in))
        in = twin(in);
    const unsigned rm = rm_register(in);
    if (slot_register != rm || (!is_group(in) && reg_register(in) == rm))
        return false;
    const bool written = (in.registers_written & bit(rm)) != 0;
    if (written && in.operand_size != 8) // 4: clears the upper half; less: stores a part, which
        return false;                    // the host cannot forward to a load of all
    if (holder(rm) != kNoReg || read_soon(at, rm))
        return false;
    Rewrite with;
    with.code32 = code32_;
    with.register_is_mem = true;
    with.mem = slot(rm);
    emit_body(at, in, with);
    return true;
}

/// The same of an instruction with two of them, for the one it only reads.
bool BlockTranslator::emit_slot_as_source(const ScannedInstruction& at, std::uint16_t slots) {
    if (!can_be_memory(at.in) || is_group(at.in) || std::popcount(slots) != 2)
        return false;
    const std::uint16_t written = at.in.registers_written;
    Instruction in = at.in;
    if ((written & bit(rm_register(in))) != 0 && has_twin(in))
        in = twin(in);
    const unsigned source = rm_register(in);
    const unsigned other = reg_register(in);
    if (slots != (bit(source) | bit(other)) || (written & bit(source)) != 0 ||
        holder(source) != kNoReg || read_soon(at, source))
        return false;
    Rewrite with;
    with.code32 = code32_;
    with.gpr[other] = hold_slot(at, other, (at.in.registers_read & bit(other)) != 0, slots);
    with.register_is_mem = true;
    with.mem = slot(source);
    emit_body(at, in, with);
    if ((written & bit(other)) != 0)
        held_.at(index_of(with.gpr[other])).dirty = true;
    return true;
}

/// A generic instruction without a memory operand.
void BlockTranslator::emit_plain(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    if (may_signal(in)) {
        write_slots();
        hold_flags();
    }
    if (needs_flags(in))
        restore_flags();
    const std::uint16_t slots = slot_operands(in);
    Rewrite with;
    with.code32 = code32_;
    if (slots == 0) {
        keep_shifted(at);
        emit_body(at, in, with);
    } else if (std::popcount(slots) <= 2) {
        if (!emit_slot_as_memory(at) && !emit_slot_as_source(at, slots))
            emit_with_held(at, with, slots);
    } else {
        take(kScratch0);
        take(kScratch1);
        if (assign_slots(at, false, with))
            emit_with_assigned(at, with);
        else
            emit_interpret(at);
    }
}

/// `with.mem` is what access() said, in scratch 0 if there is a slot operand.
void BlockTranslator::emit_slots_and_memory(const ScannedInstruction& at, Rewrite& with) {
    const std::uint16_t slots = slot_operands(at.in);
    if (may_signal(at.in)) {
        write_slots();
        hold_flags();
    }
    if (slots == 0) {
        emit_body(at, at.in, with);
        return;
    }
    if ((slots & (slots - 1)) != 0) {
        take(kScratch1);
        take(kScratch0); // MULX: the address there is for this once
        emit_with_assigned(at, with);
        return;
    }
    const auto reg = static_cast<unsigned>(std::countr_zero(slots));
    const bool reads = (at.in.registers_read & bit(reg)) != 0;
    if (holder(reg) == kNoReg) {
        take(kScratch1);
        held_[1].reg = static_cast<std::uint8_t>(reg);
        if (reads)
            a_.load(kScratch1, slot(reg));
    }
    with.gpr[reg] = kScratch1;
    emit_body(at, at.in, with);
    if ((at.in.registers_written & bit(reg)) != 0)
        held_[1].dirty = true;
}

/// The operands of LEA, slots in scratch registers. False: there are too many.
bool BlockTranslator::lea_with_held(const ScannedInstruction& at, Mem& parts, HostReg& to) {
    const Instruction& in = at.in;
    const unsigned reg = in.operands[0].reg;
    std::uint16_t slots = in_slot(reg) ? bit(reg) : std::uint16_t{0};
    for (const std::uint8_t source : {in.memory_base, in.memory_index})
        if (source < 16 && in_slot(source))
            slots = static_cast<std::uint16_t>(slots | bit(source));
    if (std::popcount(slots) > 2 || in.operand_size == 2)
        return false;
    const auto source_of = [&](std::uint8_t source) {
        return in_slot(source) ? hold_slot(at, source, true, slots) : kHome[source];
    };
    parts = {kNoReg, kNoReg, 1, static_cast<std::int32_t>(in.displacement)};
    if (in.memory_base < 16)
        parts.base = source_of(in.memory_base);
    if (in.memory_index != kNoRegister) {
        parts.index = source_of(in.memory_index);
        parts.scale = in.memory_scale;
    }
    to = in_slot(reg) ? hold_slot(at, reg, false, slots) : kHome[reg];
    if (in.memory_base == kRip) {
        parts.displacement += at.page_offset + in.length;
        if (is_known(parts.displacement)) {
            parts.displacement = static_cast<std::int32_t>(linear_of(parts.displacement));
        } else {
            a_.load(to, DOPPEL_FRAME(page_va));
            parts.base = to;
        }
    }
    if (in_slot(reg))
        held_.at(index_of(to)).dirty = true;
    return true;
}

} // namespace doppel::cpu::x86::frontend
