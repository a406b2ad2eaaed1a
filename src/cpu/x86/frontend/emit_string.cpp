// SPDX-License-Identifier: Apache-2.0
/// String instructions upwards: one element, and REP MOVS and REP STOS page by page.
#include "cpu/x86/frontend/block_translator.hpp"

#include <bit>

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

Mem work(std::size_t offset) { return frame_at(offsetof(Frame, string) + offset); }
const Mem kChunk = work(offsetof(StringWork, chunk));
const Mem kRest = work(offsetof(StringWork, rest));
const Mem kTo = work(offsetof(StringWork, to));
const Mem kFrom = work(offsetof(StringWork, from));

/// More elements are the interpreter's: nothing polls in between.
constexpr std::int32_t kMostElements = 4096;

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

/// One end of REP MOVS or REP STOS: its addend to `addend`, and the elements until its page ends
/// into scratch 1.
void BlockTranslator::check_string(const ScannedInstruction& at, HostReg pointer,
                                   const Mem& addend) {
    const bool write = pointer == kRdi;
    std::uint8_t* const start = a_.here();
    emit_index(pointer);
    a_.load(kScratch0, tlb_entry(tag_offset(write)));
    a_.alu(Alu::Xor, kScratch0, pointer);
    a_.alu_imm(Alu::Cmp, kScratch0, 4095);
    Cold miss;
    miss.place = a_.jump_if_later(Condition::Above);
    miss.relative_to = start;
    miss.site = {.page_offset = at.page_offset,
                 .bits = static_cast<std::uint8_t>((write ? Site::kWrite : 0) | Site::kCareful),
                 .length = at.in.length,
                 .size = 1};
    miss.left = left_before(at);
    cold_.push_back(miss);
    a_.load(kScratch1, tlb_entry(DOPPEL_TLB(addend)));
    a_.store(addend, kScratch1);
    a_.mov_imm(kScratch1, 4096);
    a_.alu(Alu::Sub, kScratch1, kScratch0);
    a_.shr(kScratch1, static_cast<std::uint8_t>(std::countr_zero(at.in.operand_size)));
}

/// How many elements are done at once, to rcx; the others are counted in the frame.
void BlockTranslator::emit_string_chunk(const ScannedInstruction& at) {
    check_string(at, kRdi, kTo);
    a_.store(kChunk, kScratch1);
    if (at.in.op == Op::Movs) {
        check_string(at, kRsi, kFrom);
        a_.alu(Alu::Cmp, kScratch1, kChunk);
        std::uint8_t* const more = a_.short_jump_if_later(Condition::AboveEqual);
        a_.store(kChunk, kScratch1);
        a_.bind_short(more);
    }
    a_.load(kScratch0, kChunk);
    a_.alu_imm(Alu::Cmp, kScratch0, 0);
    interpret_if(Condition::Equal, at); // an element in two pages
    a_.mov(kScratch1, kRcx);
    a_.alu(Alu::Sub, kScratch1, kScratch0);
    std::uint8_t* const enough = a_.short_jump_if_later(Condition::AboveEqual);
    a_.mov(kScratch0, kRcx);
    a_.mov_imm(kScratch1, 0);
    a_.bind_short(enough);
    a_.mov(kRcx, kScratch0);
    a_.store(kRest, kScratch1);
}

/// One end of a REP MOVS or REP STOS of at most 4096 bytes, 0 included: its addend to `addend`.
/// Otherwise, or if it lies in two pages that are not neighbours in the host, too: to `elsewhere`.
void BlockTranslator::check_whole_string(const ScannedInstruction& at, HostReg pointer,
                                         const Mem& addend, std::vector<std::uint8_t*>& elsewhere) {
    const std::int32_t tag = tag_offset(pointer == kRdi);
    const auto size = static_cast<std::uint8_t>(at.in.operand_size);
    const auto unless = [&](Condition condition) {
        elsewhere.push_back(a_.jump_if_later(condition));
    };
    a_.lea(kScratch0, {pointer, kRcx, size, -1});
    emit_index(kScratch0);
    a_.alu(Alu::Xor, kScratch0, tlb_entry(tag));
    a_.alu_imm(Alu::Cmp, kScratch0, 4095);
    unless(Condition::Above);
    a_.load(kScratch0, tlb_entry(DOPPEL_TLB(addend)));
    emit_index(pointer);
    a_.alu(Alu::Cmp, kScratch0, tlb_entry(DOPPEL_TLB(addend)));
    unless(Condition::NotEqual);
    a_.store(addend, kScratch0);
    a_.load(kScratch0, tlb_entry(tag));
    a_.alu(Alu::Xor, kScratch0, pointer);
    a_.alu_imm(Alu::Cmp, kScratch0, 4095);
    unless(Condition::Above);
}

/// The host's own, on what the checks have found. It overlaps in the same way as the guest's.
void BlockTranslator::emit_host_string(const ScannedInstruction& at) {
    const bool moves = at.in.op == Op::Movs;
    a_.alu(Alu::Add, kRdi, kTo);
    if (moves)
        a_.alu(Alu::Add, kRsi, kFrom);
    if (at.in.operand_size == 2)
        a_.byte(0x66);
    a_.byte(0xf3);
    if (at.in.operand_size == 8)
        a_.byte(0x48);
    const unsigned opcode = (moves ? 0xa4 : 0xaa) + (at.in.operand_size == 1 ? 0 : 1);
    a_.byte(static_cast<std::uint8_t>(opcode));
    a_.alu(Alu::Sub, kRdi, kTo);
    if (moves)
        a_.alu(Alu::Sub, kRsi, kFrom);
    if (code32_) { // 4 GiB becomes 0
        a_.mov32(kRdi, kRdi);
        if (moves)
            a_.mov32(kRsi, kRsi);
    }
}

/// At once where that is possible; otherwise as far as the pages of both ends reach, and again.
void BlockTranslator::emit_rep_string(const ScannedInstruction& at) {
    interpret_if_downwards(at);
    std::vector<std::uint8_t*> elsewhere;
    a_.alu_imm(Alu::Cmp, kRcx, 4096 / at.in.operand_size);
    elsewhere.push_back(a_.jump_if_later(Condition::Above));
    check_whole_string(at, kRdi, kTo, elsewhere);
    if (at.in.op == Op::Movs)
        check_whole_string(at, kRsi, kFrom, elsewhere);
    emit_host_string(at);
    std::uint8_t* const done = a_.jump_later();
    for (std::uint8_t* const place : elsewhere)
        a_.bind(place);
    a_.alu_imm(Alu::Cmp, kRcx, kMostElements);
    interpret_if(Condition::Above, at);
    const std::uint8_t* const again = a_.here();
    emit_string_chunk(at);
    emit_host_string(at);
    a_.load(kRcx, kRest);
    a_.alu_imm(Alu::Cmp, kRcx, 0);
    a_.jump_if(Condition::NotEqual, again);
    a_.bind(done);
}

} // namespace doppel::cpu::x86::frontend
