// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/lend_scan.hpp"

#include "cpu/x86/frontend/rewrite.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

/// So many instructions name the register that lending pays: more where the block is left often.
constexpr unsigned kFewest = 10, kForEachBranch = 4;

/// Those whose registers are all known, and changed where change() does.
bool can_be_changed(const ScannedInstruction& at) {
    switch (at.treatment) {
    case Treatment::Nothing:
    case Treatment::Lea:
    case Treatment::Push:
    case Treatment::Pop:
    case Treatment::Conditional: return true;
    case Treatment::Generic: break;
    default: return false;
    }
    const Instruction& in = at.in;
    if (may_signal(in) || in.has(attribute::kVsib))
        return false;
    switch (in.type) {
    case InstructionClass::Alu: return !in.is_vex();
    case InstructionClass::Sse:
    case InstructionClass::Avx: return !in.has(attribute::kGprOperand);
    default: return false;
    }
}

std::uint16_t changed_set(std::uint16_t set, const Lending& lending) {
    if ((set >> lending.reg & 1) == 0)
        return set;
    return static_cast<std::uint16_t>((set & ~(1u << lending.reg)) | 1u << lending.home_of);
}

bool opcode_names_register(const Instruction& in) {
    if (in.map == OpcodeMap::Map0F)
        return in.opcode >= 0xc8 && in.opcode <= 0xcf;
    return in.map == OpcodeMap::Primary &&
           ((in.opcode >= 0x50 && in.opcode <= 0x5f) || (in.opcode >= 0x90 && in.opcode <= 0x97) ||
            (in.opcode >= 0xb0 && in.opcode <= 0xbf));
}

/// ModRM, REX and the opcode. Memory operands are encoded anew anyway.
void change_encoding(Instruction& in, const Lending& lending) {
    const auto low = static_cast<std::uint8_t>(lending.home_of & 7);
    const auto high = static_cast<std::uint8_t>(lending.home_of >> 3);
    if (in.type != InstructionClass::Alu)
        return;
    if (!in.has_modrm()) {
        if (opcode_names_register(in) && ((in.opcode & 7) | (in.rex & 1) << 3) == lending.reg) {
            in.opcode = static_cast<std::uint8_t>((in.opcode & ~7) | low);
            in.rex = static_cast<std::uint8_t>((in.rex & ~1) | high);
        }
        return;
    }
    if (!is_group(in) && reg_register(in) == lending.reg) {
        in.modrm = static_cast<std::uint8_t>((in.modrm & ~0x38) | low << 3);
        in.rex = static_cast<std::uint8_t>((in.rex & ~4) | high << 2);
    }
    if (in.modrm_mod() == 3 && rm_register(in) == lending.reg) {
        in.modrm = static_cast<std::uint8_t>((in.modrm & ~7) | low);
        in.rex = static_cast<std::uint8_t>((in.rex & ~1) | high);
    }
}

void change(Instruction& in, const Lending& lending) {
    if (!in.names(lending.reg))
        return;
    change_encoding(in, lending);
    in.registers_read = changed_set(in.registers_read, lending);
    in.registers_written = changed_set(in.registers_written, lending);
    for (Operand& operand : in.operands)
        if (operand.kind == OperandKind::Gpr && operand.reg == lending.reg)
            operand.reg = lending.home_of;
    if (in.memory_base == lending.reg)
        in.memory_base = lending.home_of;
    if (in.memory_index == lending.reg)
        in.memory_index = lending.home_of;
}

} // namespace

void lend_homes(BlockScan& scan) {
    if (scan.count < kFewest)
        return;
    std::array<unsigned, 16> uses{}; // of those without a home
    unsigned named = 0;              // a set
    unsigned fewest = kFewest;
    std::size_t end = 0;
    for (; end < scan.count && can_be_changed(scan.list.at(end)); ++end) {
        if (scan.list.at(end).treatment == Treatment::Conditional)
            fewest += kForEachBranch;
        const Instruction& in = scan.list.at(end).in;
        named |= in.registers();
        if ((in.registers() & kWithoutHome) == 0)
            continue;
        for (unsigned reg = 12; reg < 16; ++reg)
            uses.at(reg) += in.names(reg) ? 1 : 0;
    }
    scan.lending_end = end;
    for (const unsigned lender : {11u, 10u, 9u, 8u, 7u, 6u, 5u, 3u, 2u, 1u}) {
        if ((named >> lender & 1) != 0)
            continue;
        unsigned most = 12;
        for (unsigned reg = 13; reg < 16; ++reg)
            if (uses.at(reg) > uses.at(most))
                most = reg;
        if (uses.at(most) < fewest || scan.lending_count == scan.lendings.size())
            return;
        uses.at(most) = 0;
        const Lending lending{static_cast<std::uint8_t>(most), static_cast<std::uint8_t>(lender)};
        scan.lendings.at(scan.lending_count++) = lending;
        for (std::size_t i = 0; i < end; ++i)
            change(scan.list.at(i).in, lending);
    }
}

} // namespace doppel::cpu::x86::frontend
