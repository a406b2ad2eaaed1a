// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/stubs.hpp"

#include <bit>

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

constexpr HostReg kCalleeSaved[] = {kRbx, kRbp, kR12, kR13, kR14, kR15};

void emit_enter(Assembler& a) {
    for (const HostReg reg : kCalleeSaved)
        a.push(reg);
    a.store({kRdi, kNoReg, 1, header_offset(offsetof(FrameHeader, host_rsp))}, kRsp);
    a.mov(kRsp, kRdi);
    a.load16_zero_extended(kRax, DOPPEL_FRAME(flags));
    a.alu_imm8_al(Alu::Add, 0x7f); // OF from bit 0
    a.sahf();
    for (unsigned i = 0; i < kHome.size(); ++i)
        if (!in_slot(i))
            a.load(kHome[i], slot(i));
    a.load(kTlb, DOPPEL_FRAME(tlb_register));
    a.load(kScratch0, DOPPEL_FRAME(resume_r13));
    a.load(kScratch1, DOPPEL_FRAME(resume_r14));
    a.jump(DOPPEL_FRAME(resume));
}

/// rsp is the frame, scratch registers are stored, `eax` is free once rax is stored.
void emit_leave(Assembler& a, Exit why, FlagPlace flags, const std::uint8_t* common) {
    a.store(slot(Rax), kRax);
    if (flags == FlagPlace::Register) {
        a.lahf();
        a.seto_al();
        a.store16(DOPPEL_FRAME(flags), kRax);
    }
    a.mov_imm(kRax, static_cast<std::uint64_t>(why));
    a.jump(common);
}

const std::uint8_t* emit_common(Assembler& a) {
    const std::uint8_t* const start = a.here();
    for (unsigned i = 1; i < kHome.size(); ++i)
        if (!in_slot(i))
            a.store(slot(i), kHome[i]);
    a.load(kRsp, DOPPEL_FRAME(host_rsp));
    for (std::size_t i = std::size(kCalleeSaved); i-- > 0;)
        a.pop(kCalleeSaved[i]);
    a.ret();
    return start;
}

} // namespace

Stubs emit_stubs(Assembler& a) {
    Stubs stubs;
    stubs.base = a.here();
    stubs.enter = std::bit_cast<Stubs::Enter>(a.here());
    emit_enter(a);
    a.align(16);
    const std::uint8_t* const common = emit_common(a);
    for (std::uint32_t why = 0; why < static_cast<std::uint32_t>(Exit::Count); ++why) {
        for (std::size_t flags = 0; flags < 2; ++flags) {
            a.align(16);
            stubs.exits[why][flags] = a.here();
            a.store(DOPPEL_FRAME(exit_r13), kScratch0);
            a.store(DOPPEL_FRAME(exit_r14), kScratch1);
            emit_leave(a, static_cast<Exit>(why), static_cast<FlagPlace>(flags), common);
        }
    }
    return stubs;
}

void emit_exit(Assembler& a, const std::uint8_t* stub, const Stubs& stubs, const Site& site) {
    const std::uint8_t* const behind = a.here() + Stubs::kExitBytes;
    a.store32_imm(DOPPEL_FRAME(exit_site), static_cast<std::uint32_t>(behind - stubs.base));
    a.jump(stub);
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(&site);
    for (std::size_t n = 0; n < sizeof site; ++n)
        a.byte(bytes[n]);
}

} // namespace doppel::cpu::x86::frontend
