// SPDX-License-Identifier: Apache-2.0
/// The guest's stack: one check for all accesses at known distances from rsp, and rsp itself, which
/// pushes and pops that follow each other move once.
#include "cpu/x86/frontend/block_translator.hpp"

#include "cpu/x86/frontend/classify.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

constexpr Mem kStackPage{kTlb, kNoReg, 1, DOPPEL_TLB(stack_page)};
constexpr Mem kStackAddend{kTlb, kNoReg, 1, DOPPEL_TLB(stack_addend)};

/// Executes without looking at rsp, and goes on to the next instruction in any case.
bool passes_rsp_by(const ScannedInstruction& at) {
    switch (at.treatment) {
    case Treatment::Nothing: return true;
    case Treatment::Lea: return !at.in.names(Rsp);
    case Treatment::Generic: return !at.in.names(Rsp) && !at.in.has_memory() && !may_signal(at.in);
    default: return false;
    }
}

} // namespace

/// `add rsp, N`, `sub rsp, N` whose flags nobody sees: N, otherwise 0.
std::int32_t BlockTranslator::silent_rsp_move(const ScannedInstruction& at) const {
    const Instruction& in = at.in;
    if ((in.op != Op::Add && in.op != Op::Sub) || at.treatment != Treatment::Generic ||
        in.has_memory() || in.operands[0].kind != OperandKind::Gpr || in.operands[0].reg != Rsp ||
        in.operands[1].kind != OperandKind::Immediate || in.operand_size != word_)
        return 0;
    const auto bytes = static_cast<std::int32_t>(in.immediate);
    constexpr std::int32_t kMost = 1 << 16;
    if (bytes < -kMost || bytes > kMost || !flags_dead_from(at.index + 1u))
        return 0;
    return in.op == Op::Add ? bytes : -bytes;
}

/// Can do with rsp + rsp_owed_: a push, pop, call or return whose access has been checked, …
bool BlockTranslator::reaches_over_rsp(const ScannedInstruction& at) const {
    const bool checked = at.stack && group_checked_.at(at.stack_group);
    switch (at.treatment) {
    case Treatment::Push:
    case Treatment::Pop:
        return checked &&
               (at.in.operands[0].kind == OperandKind::Immediate || at.in.operands[0].reg != Rsp);
    case Treatment::Call:
    case Treatment::Return: return checked;
    default: return silent_rsp_move(at) != 0;
    }
}

/// Nobody needs rsp until an instruction that can do without it, from list[index] on.
bool BlockTranslator::rsp_can_wait(std::size_t index) const {
    if (!scan_.tuning.stack_pointer)
        return false;
    while (index < scan_.count && passes_rsp_by(scan_.list.at(index)))
        ++index;
    return index < scan_.count && reaches_over_rsp(scan_.list.at(index));
}

void BlockTranslator::pay_rsp() {
    if (rsp_owed_ != 0 && native_)
        address_word(kGuestRsp, {kGuestRsp, kNoReg, 1, rsp_owed_});
    else if (rsp_owed_ != 0) // shorter
        a_.alu_imm(Alu::Add, kGuestRsp, rsp_owed_, !code32_);
    rsp_owed_ = 0;
}

void BlockTranslator::move_rsp(std::int32_t bytes) {
    rsp_owed_ += bytes;
    pay_rsp();
}

bool BlockTranslator::defer_rsp(const ScannedInstruction& at) {
    const std::int32_t bytes = scan_.tuning.stack_pointer ? silent_rsp_move(at) : 0;
    rsp_owed_ += bytes;
    return bytes != 0;
}

void BlockTranslator::check_stack_group(const ScannedInstruction& at, std::int32_t offset,
                                        std::uint32_t size, bool write) {
    if (group_checked_[at.stack_group])
        return;
    group_checked_[at.stack_group] = true;
    const StackGroup& group = scan_.groups[at.stack_group];
    clobber_in_check();
    std::uint8_t* const start = a_.here();
    const std::int32_t low = group.low - at.rsp_before;
    const std::int32_t range = group.high - group.low;
    const Site site{.page_offset = at.page_offset,
                    .extra = static_cast<std::uint16_t>(range),
                    .bits = static_cast<std::uint8_t>(
                        (write ? Site::kWrite : 0) |
                        (at.in.type >= InstructionClass::X87 ? Site::kVector : 0) |
                        (interpreter_decides(at.in) ? Site::kCareful : 0)),
                    .length = at.in.length,
                    .size = static_cast<std::uint8_t>(size),
                    .low = static_cast<std::int16_t>(low),
                    .first = static_cast<std::int16_t>(offset)};
    const auto bytes = static_cast<std::uint32_t>(range);
    a_.lea(kScratch0, {kGuestRsp, kNoReg, 1, low});
    // In 32-bit code the page must keep its distance: see is_stack_page32().
    const bool shares = compact_ && !code32_;
    if (const auto* const shared = shares ? stubs_.shared.stack_check(bytes) : nullptr;
        shared != nullptr) {
        a_.call(shared);
        note_check(at, site, CheckSite::Of::Stack);
        stack_in_scratch1_ = true;
        return;
    }
    a_.alu(Alu::Xor, kScratch0, kStackPage);
    compare_limit(bytes);
    Cold miss;
    miss.place = a_.jump_if_later(Condition::Above);
    miss.why = Exit::StackMiss;
    miss.relative_to = start;
    miss.site = site;
    push_miss(miss, at);
}

Mem BlockTranslator::cached_stack(const ScannedInstruction& at, std::int32_t offset,
                                  std::uint32_t size, bool write, bool single) {
    if (!group_checked_[at.stack_group])
        stack_in_scratch1_ = false; // the check comes now
    check_stack_group(at, offset, size, write);
    if (single) {
        take(kScratch0);
        if (stack_in_scratch1_)
            a_.mov(kScratch0, kScratch1);
        else
            a_.load(kScratch0, kStackAddend);
        return {kGuestRsp, kScratch0, 1, offset + rsp_owed_};
    }
    if (!stack_in_scratch1_) {
        take(kScratch1);
        a_.load(kScratch1, kStackAddend);
    }
    stack_in_scratch1_ = true;
    return {kGuestRsp, kScratch1, 1, offset + rsp_owed_};
}

Mem BlockTranslator::stack_access(const ScannedInstruction& at, std::int32_t offset, bool write) {
    if (at.stack)
        return cached_stack(at, offset, word_, write, false);
    stack_in_scratch1_ = false;
    clobber_in_check();
    const Mem simple{kGuestRsp, kNoReg, 1, offset};
    return checked(at, &simple, word_, write, false);
}

} // namespace doppel::cpu::x86::frontend
