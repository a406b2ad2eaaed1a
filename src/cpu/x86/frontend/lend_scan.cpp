// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/lend_scan.hpp"

#include <algorithm>

#include "cpu/x86/frontend/rewrite.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

/// So many more instructions name the register than its lender, that lending pays: more where the
/// block is left often.
constexpr unsigned kFewest = 10, kForEachBranch = 4;
constexpr unsigned kTaken = 1000; // uses of a register that has lent its home

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
    case InstructionClass::Alu: return true;
    case InstructionClass::Sse:
    case InstructionClass::Avx: return !in.has(attribute::kGprOperand);
    default: return false;
    }
}

std::uint8_t changed(unsigned reg, const Lending& lending) {
    if (reg == lending.reg)
        return lending.home_of;
    return reg == lending.home_of ? lending.reg : static_cast<std::uint8_t>(reg);
}

std::uint16_t changed_set(std::uint16_t set, const Lending& lending) {
    const unsigned reg = set >> lending.reg & 1;
    const unsigned home = set >> lending.home_of & 1;
    const unsigned others = set & ~(1u << lending.reg | 1u << lending.home_of);
    return static_cast<std::uint16_t>(others | reg << lending.home_of | home << lending.reg);
}

bool opcode_names_register(const Instruction& in) {
    if (in.map == OpcodeMap::Map0F)
        return in.opcode >= 0xc8 && in.opcode <= 0xcf;
    return in.map == OpcodeMap::Primary &&
           ((in.opcode >= 0x50 && in.opcode <= 0x5f) || (in.opcode >= 0x90 && in.opcode <= 0x97) ||
            (in.opcode >= 0xb0 && in.opcode <= 0xbf));
}

/// ModRM, REX and the opcode, and what VEX has besides, which stays among the block's bytes. Memory
/// operands are encoded anew anyway.
void change_encoding(Instruction& in, std::uint8_t* bytes, const Lending& lending) {
    if (in.type != InstructionClass::Alu)
        return;
    if (!in.has_modrm()) {
        if (!opcode_names_register(in))
            return;
        const std::uint8_t to = changed((in.opcode & 7u) | (in.rex & 1u) << 3, lending);
        in.opcode = static_cast<std::uint8_t>((in.opcode & ~7) | (to & 7));
        in.rex = static_cast<std::uint8_t>((in.rex & ~1) | to >> 3);
        return;
    }
    if (!is_group(in)) {
        const std::uint8_t to = changed(reg_register(in), lending);
        in.modrm = static_cast<std::uint8_t>((in.modrm & ~0x38) | (to & 7) << 3);
        in.rex = static_cast<std::uint8_t>((in.rex & ~4) | (to >> 3) << 2);
    }
    if (in.modrm_mod() == 3) {
        const std::uint8_t to = changed(rm_register(in), lending);
        in.modrm = static_cast<std::uint8_t>((in.modrm & ~7) | (to & 7));
        in.rex = static_cast<std::uint8_t>((in.rex & ~1) | to >> 3);
    }
    if (in.is_vex()) {
        std::uint8_t& last = bytes[in.opcode_offset - 1];
        const std::uint8_t to = changed(~last >> 3 & 15u, lending);
        last = static_cast<std::uint8_t>((last & 0x87) | (~to & 15) << 3);
    }
}

void change(Instruction& in, std::uint8_t* bytes, const Lending& lending) {
    if (!in.names(lending.reg) && !in.names(lending.home_of))
        return;
    change_encoding(in, bytes, lending);
    in.registers_read = changed_set(in.registers_read, lending);
    in.registers_written = changed_set(in.registers_written, lending);
    for (Operand& operand : in.operands)
        if (operand.kind == OperandKind::Gpr)
            operand.reg = changed(operand.reg, lending);
    in.memory_base = changed(in.memory_base, lending);
    in.memory_index = changed(in.memory_index, lending);
}

/// How often the instructions that can be changed name each register.
struct Uses {
    std::array<unsigned, 16> of{};
    unsigned branches = 0;
    bool high_bytes = false; // ah and its like, which are encoded as sp, bp, si, di

    /// Most blocks need no more.
    void add_without_home(const ScannedInstruction& at) {
        branches += at.treatment == Treatment::Conditional ? 1 : 0;
        if ((at.in.registers() & kWithoutHome) == 0)
            return;
        for (unsigned reg = 12; reg < 16; ++reg)
            of.at(reg) += at.in.names(reg) ? 1 : 0;
    }
    void add_with_home(const Instruction& in) {
        for (unsigned reg = 0; reg < 12; ++reg)
            of.at(reg) += in.names(reg) ? 1 : 0;
        for (const Operand& operand : in.operands)
            high_bytes |= operand.kind == OperandKind::GprHigh;
    }
    unsigned borrower() const {
        return static_cast<unsigned>(std::max_element(of.begin() + 12, of.end()) - of.begin());
    }
    /// Named least. Of rcx, rdx, rbx, instructions have some that no encoding names.
    unsigned lender() const {
        unsigned least = 11;
        for (const unsigned reg : {10u, 9u, 8u, 7u, 6u, 5u, 3u, 2u, 1u}) {
            const bool free = reg >= 8 || (reg >= 5 ? !high_bytes : of.at(reg) == 0);
            if (free && of.at(reg) < of.at(least))
                least = reg;
        }
        return least;
    }
};

/// So many instructions from the first on.
std::size_t changeable(const BlockScan& scan) {
    std::size_t end = 0;
    while (end < scan.count && can_be_changed(scan.list.at(end)))
        ++end;
    return end;
}

/// Otherwise no register without a home is named often enough.
bool names_many_without_home(const BlockScan& scan) {
    if (scan.count < kFewest)
        return false;
    unsigned found = 0;
    for (std::size_t i = 0; i < scan.count; ++i)
        found += (scan.list[i].in.registers() & kWithoutHome) != 0 ? 1 : 0;
    return found >= kFewest;
}

} // namespace

void lend_homes(BlockScan& scan) {
    if (!names_many_without_home(scan))
        return;
    const std::size_t end = changeable(scan);
    if (end < kFewest)
        return;
    scan.lending_end = end;
    Uses uses;
    for (std::size_t i = 0; i < end; ++i)
        uses.add_without_home(scan.list.at(i));
    const unsigned fewest = kFewest + kForEachBranch * uses.branches;
    if (uses.of.at(uses.borrower()) < fewest)
        return;
    for (std::size_t i = 0; i < end; ++i)
        uses.add_with_home(scan.list.at(i).in);
    while (scan.lending_count != scan.lendings.size()) {
        const unsigned most = uses.borrower();
        const unsigned least = uses.lender();
        if (uses.of.at(most) < uses.of.at(least) + fewest)
            return;
        uses.of.at(most) = 0;
        uses.of.at(least) = kTaken;
        const Lending lending{static_cast<std::uint8_t>(most), static_cast<std::uint8_t>(least)};
        scan.lendings.at(scan.lending_count++) = lending;
        for (std::size_t i = 0; i < end; ++i) {
            ScannedInstruction& at = scan.list.at(i);
            change(at.in, scan.bytes.data() + at.buffer_offset, lending);
        }
    }
}

} // namespace doppel::cpu::x86::frontend
