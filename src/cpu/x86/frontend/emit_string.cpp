// SPDX-License-Identifier: Apache-2.0
/// String instructions upwards: one element, and REP MOVS and REP STOS within a page.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

/// `opcode` is that of the wide form; the one for bytes lies before it.
void emit_sized(Assembler& a, std::uint8_t opcode, unsigned size, HostReg reg, const Mem& mem) {
    if (size == 2)
        a.byte(0x66);
    a.rm(size == 8, static_cast<std::uint8_t>(opcode - (size == 1 ? 1 : 0)), reg, mem);
}

constexpr std::uint8_t kLoad = 0x8b, kStore = 0x89, kCompare = 0x3b;
const Mem kSource{kRsi}, kDestination{kRdi};

} // namespace

/// MOVS, CMPS, SCAS, LODS, STOS without REP. The source is checked before the destination.
void BlockTranslator::emit_string(const ScannedInstruction& at) {
    const unsigned size = at.in.operand_size;
    const Op op = at.in.op;
    interpret_if_downwards(at);
    if (op == Op::Movs || op == Op::Cmps) {
        emit_sized(a_, kLoad, size, kScratch0, checked(at, &kSource, size, false, false));
        a_.store(DOPPEL_FRAME(spare), kScratch0);
        const Mem to = checked(at, &kDestination, size, op == Op::Movs, true);
        a_.load(kScratch1, DOPPEL_FRAME(spare));
        emit_sized(a_, op == Op::Movs ? kStore : kCompare, size, kScratch1, to);
    } else if (op == Op::Lods) {
        emit_sized(a_, kLoad, size, kRax, checked(at, &kSource, size, false, false));
    } else {
        const Mem to = checked(at, &kDestination, size, op == Op::Stos, false);
        emit_sized(a_, op == Op::Stos ? kStore : kCompare, size, kRax, to);
    }
    if (op == Op::Cmps || op == Op::Scas) {
        native_ = true;
        saved_ = false;
    }
    const auto step = static_cast<std::int32_t>(size);
    if (op != Op::Scas && op != Op::Stos)
        address_word(kRsi, {kRsi, kNoReg, 1, step});
    if (op != Op::Lods)
        address_word(kRdi, {kRdi, kNoReg, 1, step});
}

void BlockTranslator::interpret_if_downwards(const ScannedInstruction& at) {
    clobber_flags();
    a_.test_mem32_imm32(state_at(offsetof(CpuState, rflags)), static_cast<std::uint32_t>(FLAG_DF));
    interpret_if(Condition::NotEqual, at);
}

/// One end of a string instruction: scratch 1 = addend of the page at `pointer`, in which all of
/// its rcx elements lie; otherwise it is the interpreter's.
void BlockTranslator::check_string(const ScannedInstruction& at, HostReg pointer, bool write) {
    std::uint8_t* const start = a_.here();
    emit_index(pointer);
    a_.load(kScratch0, tlb_entry(tag_offset(write)));
    a_.alu(Alu::Xor, kScratch0, pointer);
    a_.alu_imm(Alu::Cmp, kScratch0, 4095);
    Cold miss;
    miss.place = a_.jump_if_later(Condition::Above);
    miss.relative_to = start;
    miss.site = {.page_offset = at.page_offset,
                 .length = at.in.length,
                 .bits = static_cast<std::uint8_t>((write ? Site::kWrite : 0) | Site::kCareful),
                 .size = 1};
    miss.left = left_before(at);
    cold_.push_back(miss);
    a_.lea(kScratch0, {kScratch0, kRcx, static_cast<std::uint8_t>(at.in.operand_size), 0});
    a_.alu_imm(Alu::Cmp, kScratch0, 4096);
    interpret_if(Condition::Above, at);
    a_.load(kScratch1, tlb_entry(DOPPEL_TLB(addend)));
}

/// REP MOVS and REP STOS upwards within a page each. The host's own overlaps in the same way.
void BlockTranslator::emit_rep_string(const ScannedInstruction& at) {
    const bool moves = at.in.op == Op::Movs;
    interpret_if_downwards(at);
    a_.alu_imm(Alu::Cmp, kRcx, 4096);
    interpret_if(Condition::Above, at);
    check_string(at, kRdi, true);
    a_.store(DOPPEL_FRAME(spare), kScratch1);
    if (moves) {
        check_string(at, kRsi, false);
        a_.alu(Alu::Add, kRsi, kScratch1);
    }
    a_.alu(Alu::Add, kRdi, DOPPEL_FRAME(spare));
    if (at.in.operand_size == 2)
        a_.byte(0x66);
    a_.byte(0xf3);
    if (at.in.operand_size == 8)
        a_.byte(0x48);
    const unsigned opcode = (moves ? 0xa4 : 0xaa) + (at.in.operand_size == 1 ? 0 : 1);
    a_.byte(static_cast<std::uint8_t>(opcode));
    a_.alu(Alu::Sub, kRdi, DOPPEL_FRAME(spare));
    if (moves)
        a_.alu(Alu::Sub, kRsi, kScratch1);
    if (!code32_)
        return;
    a_.mov32(kRdi, kRdi); // 4 GiB becomes 0
    if (moves)
        a_.mov32(kRsi, kRsi);
}

} // namespace doppel::cpu::x86::frontend
