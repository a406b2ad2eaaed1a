// SPDX-License-Identifier: Apache-2.0
/// Instructions of kernels that are frequent enough to be worth host code.
#include "cpu/translator/mmu/tlb_set.hpp"
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

/// Always accessed as a whole: the host cannot forward a narrow store to a wide load.
const Mem kRflags = state_at(offsetof(CpuState, rflags));
constexpr auto kIf = static_cast<std::int32_t>(FLAG_IF);
constexpr auto kDf = static_cast<std::int32_t>(FLAG_DF);
constexpr auto kAc = static_cast<std::int32_t>(FLAG_AC);
constexpr auto kTf = static_cast<std::int32_t>(FLAG_TF);
const Mem kEventHint = frame_at(offsetof(Frame, event_hint));
constexpr auto kNextView = static_cast<std::int32_t>(TlbSet::kInstanceStride);

/// Flags of a POPF at CPL 0 that decide more than themselves; RF is 0 while translated code runs.
constexpr auto kPopfRare =
    static_cast<std::uint32_t>(FLAG_TF | FLAG_DF | FLAG_IOPL | FLAG_NT | FLAG_AC | FLAG_ID);
/// Cleared whatever was pushed (Intel SDM Vol. 2B, POPF).
constexpr auto kPopfCleared = static_cast<std::uint32_t>(FLAG_VIF | FLAG_VIP);
/// What SYSRET takes from R11 (Intel SDM Vol. 2B, SYSRET).
constexpr std::int32_t kSysretFlags = 0x3c7fd7;

std::size_t base_offset(unsigned segment) {
    return offsetof(CpuState, segment) + segment * sizeof(Segment) + offsetof(Segment, base);
}

} // namespace

/// CLI and STI at CPL 0. While an interrupt waits, STI is the interpreter's, shadow and all;
/// otherwise the shadow makes no difference: the next poll is behind the next instruction.
void BlockTranslator::emit_interrupt_flag(const ScannedInstruction& at) {
    clobber_flags();
    if (at.treatment == Treatment::Cli) {
        a_.alu_mem_imm32(Alu::And, kRflags, ~kIf);
        return;
    }
    a_.cmp_mem32_imm8(kEventHint, 0);
    interpret_if(Condition::NotEqual, at);
    a_.alu_mem_imm32(Alu::Or, kRflags, kIf);
}

/// A vCPU that spins for long waits for one that may have no host CPU: now and then the
/// interpreter executes the PAUSE, and gives the host's CPU away.
void BlockTranslator::emit_pause(const ScannedInstruction& at) {
    clobber_flags();
    a_.alu_mem_imm32(Alu::Sub, frame_at(offsetof(Frame, pauses_left)), 1);
    interpret_if(Condition::Below, at);
    a_.byte(0xf3);
    a_.byte(0x90);
}

void BlockTranslator::emit_direction_flag(const ScannedInstruction& at) {
    clobber_flags();
    if (at.treatment == Treatment::Cld)
        a_.alu_mem_imm32(Alu::And, kRflags, ~kDf);
    else
        a_.alu_mem_imm32(Alu::Or, kRflags, kDf);
}

/// The slot and the other bits of rflags, put together as unpack_flags() does.
void BlockTranslator::emit_flags_image() {
    a_.load16_zero_extended(kScratch0, DOPPEL_FRAME(flags));
    a_.mov(kScratch1, kScratch0);
    a_.shr(kScratch1, 8);
    a_.alu_imm(Alu::And, kScratch0, 1, false);
    a_.shl(kScratch0, 11);
    a_.alu(Alu::Or, kScratch0, kScratch1);
    a_.load(kScratch1, kRflags);
    a_.alu_imm(Alu::And, kScratch1, ~static_cast<std::int32_t>(kArithmeticFlags), true);
    a_.alu(Alu::Or, kScratch0, kScratch1);
}

/// As pack_flags() does.
void BlockTranslator::emit_pack_flags() {
    a_.mov(kScratch1, kScratch0);
    a_.alu_imm(Alu::And, kScratch1, 0xd5, false);
    a_.shl(kScratch1, 8);
    a_.shr(kScratch0, 11);
    a_.alu_imm(Alu::And, kScratch0, 1, false);
    a_.alu(Alu::Or, kScratch0, kScratch1);
    a_.store16(DOPPEL_FRAME(flags), kScratch0);
}

void BlockTranslator::emit_pushf(const ScannedInstruction& at) {
    clobber_flags();
    emit_flags_image();
    a_.store(DOPPEL_FRAME(spare), kScratch0);
    const Mem to = stack_access(at, -word_, true);
    a_.load(kScratch0, DOPPEL_FRAME(spare));
    store_word(to, kScratch0);
    move_rsp(-word_);
}

/// At CPL 0, when only IF and the arithmetic flags change; IF as STI does it.
void BlockTranslator::emit_popf(const ScannedInstruction& at) {
    clobber_flags();
    load_word(kScratch0, stack_access(at, 0, false));
    a_.load(kScratch1, kRflags);
    a_.alu(Alu::Xor, kScratch1, kScratch0);
    a_.test_imm32(kScratch1, kPopfRare);
    interpret_if(Condition::NotEqual, at);
    a_.test_mem32_imm32(kRflags, kPopfCleared);
    interpret_if(Condition::NotEqual, at);
    a_.test_imm32(kScratch0, static_cast<std::uint32_t>(kIf));
    std::uint8_t* const closed = a_.short_jump_if_later(Condition::Equal);
    a_.cmp_mem32_imm8(kEventHint, 0);
    interpret_if(Condition::NotEqual, at);
    a_.bind_short(closed);
    a_.load(kScratch1, kRflags);
    a_.alu_imm(Alu::And, kScratch1, ~kIf);
    a_.store(kRflags, kScratch1);
    a_.mov(kScratch1, kScratch0);
    a_.alu_imm(Alu::And, kScratch1, kIf, false);
    a_.alu_mem_reg(Alu::Or, kRflags, kScratch1);
    emit_pack_flags();
    move_rsp(word_);
}

/// CLAC and STAC at CPL 0: AC chooses the view, and each view has its own stack page.
void BlockTranslator::emit_alignment_flag(const ScannedInstruction& at) {
    clobber_flags();
    const bool set = at.treatment == Treatment::Stac;
    a_.test_mem32_imm32(kRflags, static_cast<std::uint32_t>(kAc));
    std::uint8_t* const same = a_.short_jump_if_later(set ? Condition::NotEqual : Condition::Equal);
    if (set)
        a_.alu_mem_imm32(Alu::Or, kRflags, kAc);
    else
        a_.alu_mem_imm32(Alu::And, kRflags, ~kAc);
    a_.lea(kTlb, {kTlb, kNoReg, 1, set ? kNextView : -kNextView});
    a_.bind_short(same);
    group_checked_ = {};
}

void BlockTranslator::emit_swapgs() {
    const Mem base = state_at(base_offset(Gs));
    const Mem other = state_at(offsetof(CpuState, kernel_gs_base));
    a_.load(kScratch0, base);
    a_.load(kScratch1, other);
    a_.store(base, kScratch1);
    a_.store(other, kScratch0);
}

void BlockTranslator::emit_read_control(const ScannedInstruction& at) {
    constexpr std::size_t offsets[] = {offsetof(CpuState, cr0), 0, offsetof(CpuState, cr2),
                                       offsetof(CpuState, cr3), offsetof(CpuState, cr4)};
    const unsigned reg = at.in.operands[0].reg;
    const HostReg to = in_slot(reg) ? kScratch0 : kHome[reg];
    load_word(to, state_at(offsets[at.in.operands[1].reg]));
    if (in_slot(reg))
        a_.store(slot(reg), to);
}

/// Flags are in the slot; clobbers scratch 1.
void BlockTranslator::interpret_unless_canonical(HostReg value, const ScannedInstruction& at) {
    a_.mov(kScratch1, value);
    a_.sar(kScratch1, 47);
    a_.alu_imm(Alu::Add, kScratch1, 1, false);
    a_.alu_imm(Alu::Cmp, kScratch1, 1, false);
    interpret_if(Condition::Above, at);
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
void BlockTranslator::emit_segment_base(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[0].reg;
    const bool wide = at.in.operand_size == 8;
    const bool fs = at.in.op == Op::Rdfsbase || at.in.op == Op::Wrfsbase;
    const Mem base = state_at(base_offset(fs ? Fs : Gs));
    clobber_flags();
    a_.test_mem32_imm32(state_at(offsetof(CpuState, cr4)),
                        static_cast<std::uint32_t>(CR4_FSGSBASE));
    interpret_if(Condition::Equal, at);
    if (at.in.op == Op::Rdfsbase || at.in.op == Op::Rdgsbase) {
        const HostReg to = in_slot(reg) ? kScratch0 : kHome[reg];
        if (wide)
            a_.load(to, base);
        else
            a_.load32(to, base);
        if (in_slot(reg))
            a_.store(slot(reg), to);
        return;
    }
    if (in_slot(reg))
        a_.load(kScratch0, slot(reg));
    else
        a_.mov(kScratch0, kHome[reg]);
    if (wide)
        interpret_unless_canonical(kScratch0, at);
    else
        a_.mov32(kScratch0, kScratch0);
    a_.store(base, kScratch0);
}

/// CS and SS from the Frame. Clobbers scratch 1.
void BlockTranslator::emit_segments(std::size_t cs, std::size_t ss) {
    const auto copy = [this](std::size_t from, unsigned segment) {
        const std::size_t to = offsetof(CpuState, segment) + segment * sizeof(Segment);
        for (std::size_t part = 0; part < sizeof(Segment); part += 8) {
            a_.load(kScratch1, frame_at(from + part));
            a_.store(state_at(to + part), kScratch1);
        }
    };
    copy(offsetof(Frame, fast_calls) + cs, Cs);
    copy(offsetof(Frame, fast_calls) + ss, Ss);
}

/// At CPL 3 in 64-bit code. What x86::syscall() does.
void BlockTranslator::emit_syscall(const ScannedInstruction& at) {
    clobber_flags();
    a_.cmp_mem32_imm8(frame_at(offsetof(Frame, fast_calls) + offsetof(FastCalls, ready)), 0);
    interpret_if(Condition::Equal, at);
    emit_flags_image();
    a_.load(kScratch1, state_at(offsetof(CpuState, fmask)));
    a_.complement(kScratch1);
    a_.alu(Alu::And, kScratch1, kScratch0);
    a_.test_imm32(kScratch1, static_cast<std::uint32_t>(kAc | kTf));
    interpret_if(Condition::NotEqual, at);
    a_.mov(kR11, kScratch0);
    a_.alu_imm(Alu::Or, kScratch1, 2);
    a_.store(kRflags, kScratch1);
    a_.mov(kScratch0, kScratch1);
    emit_pack_flags();
    emit_segments(offsetof(FastCalls, syscall_cs), offsetof(FastCalls, syscall_ss));
    a_.store8_imm(state_at(offsetof(CpuState, cpl)), 0);
    a_.load(kScratch0, DOPPEL_FRAME(page_va));
    a_.lea(kRcx, {kScratch0, kNoReg, 1, at.page_offset + at.in.length});
    a_.lea(kTlb, {kTlb, kNoReg, 1, kNextView});
    a_.load(kScratch0, state_at(offsetof(CpuState, lstar)));
    branch_cache_jump(at, 0);
}

/// With a 64-bit operand at CPL 0. What x86::sysret() does.
void BlockTranslator::emit_sysret(const ScannedInstruction& at) {
    clobber_flags();
    a_.cmp_mem32_imm8(frame_at(offsetof(Frame, fast_calls) + offsetof(FastCalls, ready)), 0);
    interpret_if(Condition::Equal, at);
    a_.cmp_mem32_imm8(kEventHint, 0);
    interpret_if(Condition::NotEqual, at);
    a_.test_mem32_imm32(kRflags, static_cast<std::uint32_t>(kAc));
    interpret_if(Condition::NotEqual, at);
    interpret_unless_canonical(kRcx, at);
    a_.mov(kScratch0, kR11);
    a_.alu_imm(Alu::And, kScratch0, kSysretFlags, false);
    a_.test_imm32(kScratch0, static_cast<std::uint32_t>(kAc | kTf));
    interpret_if(Condition::NotEqual, at);
    a_.alu_imm(Alu::Or, kScratch0, 2);
    a_.store(kRflags, kScratch0);
    emit_pack_flags();
    emit_segments(offsetof(FastCalls, sysret_cs), offsetof(FastCalls, sysret_ss));
    a_.store8_imm(state_at(offsetof(CpuState, cpl)), 3);
    a_.lea(kTlb, {kTlb, kNoReg, 1, -kNextView});
    a_.mov(kScratch0, kRcx);
    branch_cache_jump(at, 0);
}

void BlockTranslator::emit_read_segment(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[0].reg;
    const unsigned segment = at.in.operands[1].reg;
    a_.load16_zero_extended(kScratch0, segment_selector(segment));
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
    address_word(kScratch0, {kScratch0, kScratch1, static_cast<std::uint8_t>(wide ? 8 : 4), 0});
}

void BlockTranslator::emit_bit_string(const ScannedInstruction& at) {
    const unsigned reg = at.in.operands[1].reg;
    const bool wide = at.in.operand_size == 8;
    clobber_flags();
    Rewrite with;
    with.code32 = code32_;
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
    emit_body(at, at.in, with);
}

} // namespace doppel::cpu::x86::frontend
