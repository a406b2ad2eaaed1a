// SPDX-License-Identifier: Apache-2.0
/// The last x87 instruction and its operand (Intel SDM Vol. 1 §8.1.8): the host's pointers name
/// translated code and host memory, so the guest's are noted beside each instruction.
#include "cpu/x86/frontend/block_translator.hpp"

#include <utility>

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

/// Of the legacy region of CpuState::xsave, which is dead while the vectors are live. FIP is then
/// the page, and the offset in it takes the tag word's place: VectorState::store_slow() adds them.
constexpr std::size_t kTagWord = 4, kFip = 8, kFdp = 16;

Mem x87_at(std::size_t offset) { return state_at(offsetof(CpuState, xsave) + offset); }

} // namespace

/// Outside 64-bit code the pointers are an offset and, from bit 32 on, a selector.
void BlockTranslator::note_x87_selector(std::size_t pointer, unsigned segment) {
    if (!code32_)
        return;
    a_.load16_zero_extended(kScratch1, segment_selector(segment));
    a_.store32(x87_at(pointer + 4), kScratch1);
}

void BlockTranslator::note_x87(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    if (in.op == Op::Fninit) {
        x87_page_noted_ = false;
        a_.store32_imm(x87_at(kTagWord), 0);
        a_.store_imm32(x87_at(kFip), 0);
        a_.store_imm32(x87_at(kFdp), 0);
    }
    if (in.op != Op::X87 || in.has(attribute::kX87NoWait))
        return;
    const unsigned fop = (in.opcode & 7u) << 8 | in.modrm;
    a_.store32_imm(x87_at(kTagWord), fop << 16 | at.page_offset);
    if (!std::exchange(x87_page_noted_, true)) {
        a_.load(kScratch0, DOPPEL_FRAME(page_va));
        a_.store(x87_at(kFip), kScratch0);
        note_x87_selector(kFip, Cs);
    }
    if (in.has_memory()) {
        compute_offset(at);
        a_.store(x87_at(kFdp), kScratch0);
        note_x87_selector(kFdp, in.memory_segment);
    }
}

} // namespace doppel::cpu::x86::frontend
