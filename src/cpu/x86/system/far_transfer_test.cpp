// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/far_transfer.hpp"

#include <doctest/doctest.h>

#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;

namespace {

constexpr std::uint64_t kNext = kCode + 7;

struct LegacyRig : Rig {
    LegacyRig() { protect(); }
    std::uint32_t stack(unsigned slot) { return get<std::uint32_t>(state.gpr[Rsp] + slot * 4); }
    void push(std::uint32_t value) {
        state.gpr[Rsp] -= 4;
        put<std::uint32_t>(state.gpr[Rsp], value);
    }
};
struct LongRig : Rig {
    LongRig() { long_mode(); }
    std::uint64_t stack(unsigned slot) { return get64(state.gpr[Rsp] + slot * 8); }
    void push(std::uint64_t value) {
        state.gpr[Rsp] -= 8;
        put64(state.gpr[Rsp], value);
    }
    /// RIP, CS, RFLAGS, RSP, SS as IRETQ pops them.
    void push_frame(std::uint64_t rip, std::uint16_t cs, std::uint64_t flags, std::uint64_t rsp,
                    std::uint16_t ss) {
        push(ss);
        push(rsp);
        push(flags);
        push(cs);
        push(rip);
    }
};

} // namespace

TEST_CASE_FIXTURE(LegacyRig, "far jump: the checks of a direct target") {
    struct Case {
        const char* what;
        unsigned cpl;
        std::uint16_t selector;
        unsigned access, flags;
        int vector; // -1: works
        std::uint32_t error;
    };
    constexpr int gp = 13, np = 11;
    constexpr Case cases[] = {
        {"null", 0, 0, 0x9b, 0xc, gp, 0},
        {"null with RPL", 0, 3, 0x9b, 0xc, gp, 0},
        {"beyond the table", 0, 0x1000, 0x9b, 0xc, gp, 0x1000},
        {"no LDT", 0, kFree | 4, 0x9b, 0xc, gp, kFree | 4},
        {"code of this level", 0, kFree, 0x9b, 0xc, -1, 0},
        {"data", 0, kFree, 0x93, 0xc, gp, kFree},
        {"more privileged", 3, kFree, 0x9b, 0xc, gp, kFree},
        {"less privileged", 0, kFree, 0xfb, 0xc, gp, kFree},
        {"RPL above CPL", 0, kFree | 3, 0x9b, 0xc, gp, kFree},
        {"conforming, more privileged", 3, kFree, 0x9f, 0xc, -1, 0},
        {"conforming, less privileged", 0, kFree, 0xff, 0xc, gp, kFree},
        {"not present", 0, kFree, 0x1b, 0xc, np, kFree},
        {"not present and wrong level: #GP first", 3, kFree, 0x1b, 0xc, gp, kFree},
        {"beyond the limit", 0, kFree, 0x9b, 0x4, gp, 0},
        {"LDT descriptor", 0, kFree, 0x82, 0, gp, kFree},
        {"interrupt gate", 0, kFree, 0x8e, 0, gp, kFree},
    };
    for (const Case& test : cases) {
        CAPTURE(test.what);
        protect(test.cpl);
        set_descriptor(kFree, descriptor(0, 0xfffff, test.access & ~1u, test.flags));
        const bool done = far_jump(*cx, test.selector, 0x123456, 4, kNext);
        CHECK(done == (test.vector < 0));
        if (done) {
            CHECK(state.rip == 0x123456);
            CHECK(state.segment[Cs].selector == (kFree | test.cpl));
            CHECK((get64(kGdt + kFree) >> 40 & 1) == 1); // accessed
        } else {
            CHECK(faulted(done, static_cast<Vector>(test.vector), test.error));
            CHECK(state.rip == kCode);
        }
    }
}

TEST_CASE_FIXTURE(LegacyRig, "far call and return within a level") {
    CHECK(far_call(*cx, kCode0, 0x3000, 4, kNext));
    CHECK(state.rip == 0x3000);
    CHECK(stack(0) == kNext);
    CHECK(stack(1) == kCode0);
    CHECK(far_return(*cx, 4, 8));
    CHECK(state.rip == kNext);
    CHECK(state.gpr[Rsp] == kStack0 + 8);
}

TEST_CASE_FIXTURE(LegacyRig, "a call gate copies parameters to the inner stack, RETF undoes it") {
    set_descriptor(kFree, gate32(kCode0, 0x345678, 0xec) | 2ull << 32); // DPL 3, two parameters
    flat(3);
    push(0x2222);
    push(0x1111);
    const auto outer = state.gpr[Rsp];
    CHECK(far_call(*cx, kFree | 3, 0, 4, kNext));
    CHECK(state.rip == 0x345678);
    CHECK(state.cpl == 0);
    CHECK(state.segment[Cs].selector == kCode0);
    CHECK(state.gpr[Rsp] == 0xd000 - 24);
    const std::uint32_t expected[] = {
        kNext, kCode3 | 3, 0x1111, 0x2222, static_cast<std::uint32_t>(outer), kData3 | 3};
    for (unsigned i = 0; i < 6; ++i)
        CHECK(stack(i) == expected[i]);
    state.segment[Ds] = {0, 0xffffffff, kData0, 0xc093}; // of the inner level
    CHECK(far_return(*cx, 4, 8));
    CHECK(state.cpl == 3);
    CHECK(state.rip == kNext);
    CHECK(state.gpr[Rsp] == outer + 8);
    CHECK(state.segment[Ss].selector == (kData3 | 3));
    CHECK_FALSE(state.segment[Ds].present()); // dropped
    CHECK(state.segment[Es].present());
}

TEST_CASE_FIXTURE(LegacyRig, "call gates: privilege and presence of gate and target") {
    struct Case {
        const char* what;
        std::uint16_t selector; // of the gate
        std::uint64_t gate;
        Vector vector;
        std::uint32_t error;
    };
    const Case cases[] = {
        {"gate of DPL 0", kFree | 3, gate32(kCode0, 0, 0x8c), Vector::GP, kFree},
        {"RPL above the gate's DPL", kFree | 3, gate32(kCode0, 0, 0xcc), Vector::GP, kFree},
        {"gate not present", kFree | 3, gate32(kCode0, 0, 0x6c), Vector::NP, kFree},
        {"null target", kFree | 3, gate32(0, 0, 0xec), Vector::GP, 0},
        {"data target", kFree | 3, gate32(kData0, 0, 0xec), Vector::GP, kData0},
        {"target beyond the table", kFree | 3, gate32(0x3000, 0, 0xec), Vector::GP, 0x3000},
    };
    for (const Case& test : cases) {
        CAPTURE(test.what);
        protect(3);
        set_descriptor(kFree, test.gate);
        CHECK(faulted(far_call(*cx, test.selector, 0, 4, kNext), test.vector, test.error));
    }
    protect(3);
    set_descriptor(kFree, gate32(kCode0, 0, 0xec));
    CHECK(faulted(far_jump(*cx, kFree | 3, 0, 4, kNext), Vector::GP, kCode0)); // JMP cannot
}

TEST_CASE_FIXTURE(LegacyRig, "far return: CS and SS are checked") {
    const auto frame = [&](std::uint32_t ss, std::uint32_t cs) {
        protect(0);
        set_descriptor(kFree, descriptor(0, 0xfffff, 0x7b, 0xc)); // code 3, not present
        push(ss);
        push(0x7000);
        push(cs);
        push(0x1234);
    };
    frame(0, 0);
    CHECK(faulted(far_return(*cx, 4, 0), Vector::GP, 0));
    frame(kData3 | 3, kFree | 3);
    CHECK(faulted(far_return(*cx, 4, 0), Vector::NP, kFree));
    frame(0, kCode3 | 3);
    CHECK(faulted(far_return(*cx, 4, 0), Vector::GP, 0));
    frame(kData0 | 3, kCode3 | 3);
    CHECK(faulted(far_return(*cx, 4, 0), Vector::GP, kData0));
    frame(kData3, kCode3 | 3);
    CHECK(faulted(far_return(*cx, 4, 0), Vector::GP, kData3));
    flat(3);
    push(kCode0);
    push(0x1234);
    CHECK(faulted(far_return(*cx, 4, 0), Vector::GP, kCode0)); // inwards
}

TEST_CASE_FIXTURE(LongRig, "IRETQ to user code, with flags by privilege") {
    push_frame(0x40'1234, kCode64User | 3, 0x3302 | FLAG_AC, 0x7fff'0008, kData3 | 3);
    CHECK(iret(*cx, 8, 0));
    CHECK(state.rip == 0x401234);
    CHECK(state.cpl == 3);
    CHECK(state.gpr[Rsp] == 0x7fff0008);
    CHECK(state.segment[Ss].selector == (kData3 | 3));
    CHECK(state.rflags == (0x3302 | FLAG_AC));
    CHECK((cx->changes & change::kMode) != 0);
    // CPL 3, IOPL 0: IF and IOPL stay.
    flat(3, true);
    state.rflags = 0x202;
    push_frame(kCode, kCode64User | 3, 0x3002, kStack3, kData3 | 3);
    CHECK(iret(*cx, 8, 0));
    CHECK(state.rflags == 0x202);
}

TEST_CASE_FIXTURE(LongRig, "IRETQ: null SS below CPL 3, compatibility mode, faults") {
    push_frame(kCode + 16, kCode64, 2, 0xb000, 0);
    CHECK(iret(*cx, 8, 0)); // same level, null SS: 64-bit mode always pops it
    CHECK(state.gpr[Rsp] == 0xb000);
    CHECK(state.segment[Ss].selector == 0);
    push_frame(0x1234, kCode3 | 3, 0x202, 0xffff'f000, kData3 | 3);
    CHECK(iret(*cx, 8, 0));
    CHECK_FALSE(cx->code64());
    CHECK(state.rip == 0x1234);

    const auto fails = [&](std::uint64_t rip, std::uint16_t cs, std::uint16_t ss, Vector vector,
                           std::uint32_t error) {
        long_mode();
        state.rflags = 2;
        push_frame(rip, cs, 0x202, kStack3, ss);
        const auto rsp = state.gpr[Rsp];
        CHECK(faulted(iret(*cx, 8, 0), vector, error));
        CHECK(state.gpr[Rsp] == rsp);
        CHECK(state.rflags == 2);
        CHECK(state.cpl == 0);
    };
    fails(1ull << 47, kCode64User | 3, kData3 | 3, Vector::GP, 0);
    fails(kCode, 0, 0, Vector::GP, 0);
    fails(kCode, kCode64User | 3, 0, Vector::GP, 0);
    fails(kCode, kCode64User | 3, kData0 | 3, Vector::GP, kData0);
    fails(kCode, kCode64User | 3, kData3, Vector::GP, kData3);
    fails(kCode, kData0, 0, Vector::GP, kData0);
    state.rflags |= FLAG_NT;
    CHECK(faulted(iret(*cx, 8, 0), Vector::GP, 0));
}

TEST_CASE_FIXTURE(LongRig, "IRET drops data segments of the inner level") {
    state.segment[Fs] = {0x1000, 0xffffffff, kData0, 0xc093};
    state.segment[Ds] = {0, 0xffffffff, kData3 | 3, 0xc0f3};
    push_frame(kCode, kCode64User | 3, 0x202, kStack3, kData3 | 3);
    CHECK(iret(*cx, 8, 0));
    CHECK(state.segment[Fs].selector == 0);
    CHECK_FALSE(state.segment[Fs].present());
    CHECK(state.segment[Ds].selector == (kData3 | 3));
}

TEST_CASE_FIXTURE(LongRig, "SYSCALL and SYSRET") {
    state.star = 0x0023'0010'0000'0000;
    state.lstar = 0xffff'ffff'8180'0000;
    state.fmask = 0x47700;
    flat(3, true);
    state.rflags = 0x40747;
    CHECK(syscall(*cx, kNext));
    CHECK(state.rip == state.lstar);
    CHECK(state.gpr[Rcx] == kNext);
    CHECK(state.gpr[R11] == 0x40747);
    CHECK(state.rflags == 0x47);
    CHECK(state.cpl == 0);
    CHECK(state.segment[Cs].selector == 0x10);
    CHECK(state.segment[Cs].is_long());
    CHECK(state.segment[Ss].selector == 0x18);
    state.gpr[R11] = ~0ull;
    CHECK(sysret(*cx, 8));
    CHECK(state.rip == kNext);
    CHECK(state.cpl == 3);
    CHECK(state.segment[Cs].selector == 0x33);
    CHECK(state.segment[Ss].selector == 0x2b);
    CHECK(state.rflags == 0x3c7fd7);
    CHECK(faulted(sysret(*cx, 8), Vector::GP, 0)); // CPL 3
    flat(0, true);
    state.gpr[Rcx] = 1ull << 47;
    CHECK(faulted(sysret(*cx, 8), Vector::GP, 0));
    CHECK(sysret(*cx, 4));
    CHECK(state.segment[Cs].selector == 0x23);
    CHECK_FALSE(cx->code64());
    CHECK(faulted(syscall(*cx, kNext), Vector::UD)); // compatibility mode on Intel
    cx->traits.amd = true;
    state.cstar = 0xffff'ffff'8190'0000;
    CHECK(syscall(*cx, kNext));
    CHECK(state.rip == state.cstar);
    state.efer &= ~EFER_SCE;
    CHECK(faulted(syscall(*cx, kNext), Vector::UD));
}

TEST_CASE_FIXTURE(LongRig, "SYSENTER and SYSEXIT") {
    state.sysenter_cs = 0x10;
    state.sysenter_esp = 0xffff'8880'0000'1000;
    state.sysenter_eip = 0xffff'ffff'8170'0000;
    flat(3); // compatibility mode
    state.rflags = 0x302;
    CHECK(sysenter(*cx));
    CHECK(state.rip == state.sysenter_eip);
    CHECK(state.gpr[Rsp] == state.sysenter_esp);
    CHECK(state.rflags == 0x102);
    CHECK(cx->code64());
    state.gpr[Rdx] = 0x1234;
    state.gpr[Rcx] = 0x5678;
    CHECK(sysexit(*cx, 4));
    CHECK(state.segment[Cs].selector == 0x23);
    CHECK(state.segment[Ss].selector == 0x2b);
    CHECK(state.rip == 0x1234);
    CHECK(state.gpr[Rsp] == 0x5678);
    state.sysenter_cs = 0;
    CHECK(faulted(sysenter(*cx), Vector::GP, 0));
    cx->traits.amd = true;
    CHECK(faulted(sysenter(*cx), Vector::UD));
}

TEST_CASE_FIXTURE(LongRig, "64-bit call gates switch to RSP0 with a null SS") {
    set_descriptor(kFree, gate32(kCode64, 0x2345'6789, 0xec));
    put64(kGdt + kFree + 8, 0xffff'8000);
    flat(3, true);
    CHECK(far_call(*cx, kFree | 3, 0, 8, kNext));
    CHECK(state.rip == 0xffff'8000'2345'6789);
    CHECK(state.gpr[Rsp] == 0xd000 - 32);
    CHECK(stack(0) == kNext);
    CHECK(stack(1) == (kCode64User | 3));
    CHECK(stack(2) == kStack3);
    CHECK(stack(3) == (kData3 | 3));
    CHECK(state.segment[Ss].selector == 0);
    CHECK(far_return(*cx, 8, 0));
    CHECK(state.cpl == 3);
    CHECK(state.gpr[Rsp] == kStack3);
    put64(kGdt + kFree + 8, 0x1f00'0000'0000); // upper type field
    CHECK(faulted(far_call(*cx, kFree | 3, 0, 8, kNext), Vector::GP, kFree));
    CHECK(faulted(far_call(*cx, kTssSelector, 0, 8, kNext), Vector::GP, kTssSelector));
}

TEST_CASE("real mode: far call, return, and the way into protected mode") {
    Rig rig;
    auto& state = rig.state;
    state.segment[Cs] = {0x10000, 0xffff, 0x1000, 0x93};
    state.segment[Ss].base = 0x20000;
    state.gpr[Rsp] = 0x1'0002;
    CHECK(far_call(*rig.cx, 0x3000, 0x44, 2, 0x55));
    CHECK(state.segment[Cs].base == 0x30000);
    CHECK(state.gpr[Rsp] == 0x1'fffe); // only SP counts
    CHECK(rig.get<std::uint16_t>(0x2fffe) == 0x55);
    CHECK(rig.get<std::uint16_t>(0x20000) == 0x1000);
    CHECK(far_return(*rig.cx, 2, 0));
    CHECK(state.segment[Cs].base == 0x10000);
    rig.fill_gdt();
    CHECK(write_control(*rig.cx, 0, state.cr0 | CR0_PE));
    CHECK(state.segment[Cs].base == 0x10000);
    CHECK(far_jump(*rig.cx, kCode0, 0x123456, 4, 0));
    CHECK(state.segment[Cs].base == 0);
    CHECK(state.segment[Cs].limit == 0xffffffff);
    CHECK(state.segment[Cs].default_big());
}

TEST_CASE("V86 mode: INT n by IOPL, and redirected by VME") {
    Rig rig;
    rig.protect(3);
    auto& state = rig.state;
    auto& cx = *rig.cx;
    state.rflags = FLAG_VM | 0x202;
    for (auto& segment : state.segment)
        segment = {0x30000, 0xffff, 0x3000, 0xf3};
    state.gpr[Rsp] = 0x1000;
    CHECK(rig.faulted(software_interrupt(cx, 0x21, 2), Vector::GP, 0));
    std::uint64_t image = 0;
    CHECK(rig.faulted(pushf_image(cx, 2, image), Vector::GP, 0));
    CHECK(rig.faulted(cli(cx), Vector::GP, 0));
    state.cr4 = CR4_VME;
    rig.put<std::uint16_t>(kTss + 102, 0x88); // redirection map at 0x68
    state.tr.limit = 0x88 + 0x2000;
    rig.put<std::uint32_t>(0x21 * 4, 0x5000'0666);
    CHECK(cli(cx));
    CHECK((state.rflags & FLAG_VIF) == 0);
    CHECK(sti(cx));
    CHECK((state.rflags & FLAG_VIF) != 0);
    CHECK(software_interrupt(cx, 0x21, 2));
    CHECK(state.segment[Cs].base == 0x50000);
    CHECK(state.rip == 0x666);
    CHECK((state.rflags & (FLAG_VM | FLAG_VIF | FLAG_IF)) == (FLAG_VM | FLAG_IF));
    CHECK(rig.get<std::uint16_t>(0x30ffe) == 0x3202); // VIF shows as IF, IOPL as 3
    CHECK(iret(cx, 2, 0));
    CHECK((state.rflags & FLAG_VIF) != 0);
    CHECK(state.rip == 2);
    rig.put<std::uint8_t>(kTss + 0x68 + 0x21 / 8, 0x02); // back to protected mode: needs IOPL 3
    CHECK(rig.faulted(software_interrupt(cx, 0x21, 2), Vector::GP, 0));
}

TEST_CASE_FIXTURE(LegacyRig, "CALL to a TSS and IRET back: a nested 32-bit task") {
    constexpr std::uint64_t kNew = 0xa000;
    set_descriptor(kFree, descriptor(kNew, 0x67, 0x89, 0));
    put<std::uint32_t>(kNew + 0x20, 0x7777); // EIP
    put<std::uint32_t>(kNew + 0x24, 2);
    for (unsigned i = 0; i < 8; ++i)
        put<std::uint32_t>(kNew + 0x28 + i * 4, 0x100 + i);
    for (unsigned i = 0; i < 6; ++i)
        put<std::uint32_t>(kNew + 0x48 + i * 4, i == 1 ? kCode0 : kData0);
    state.gpr[Rbx] = 0xabcd;
    state.dr7 = 0x400 | 0x3;
    CHECK(far_call(*cx, kFree, 0, 4, kNext));
    CHECK(state.rip == 0x7777);
    CHECK(state.gpr[Rbx] == 0x103);
    CHECK(state.gpr[Rsp] == 0x104);
    CHECK(state.tr.selector == kFree);
    CHECK((state.rflags & FLAG_NT) != 0);
    CHECK((state.cr0 & CR0_TS) != 0);
    CHECK(state.dr7 == 0x402);
    CHECK(get<std::uint32_t>(kNew) == kTssSelector);          // back link
    CHECK((get64(kGdt + kFree) >> 40 & 0xff) == 0x8b);        // busy
    CHECK((get64(kGdt + kTssSelector) >> 40 & 0xff) == 0x8b); // still busy
    CHECK(get<std::uint32_t>(kTss + 0x20) == kNext);
    CHECK(get<std::uint32_t>(kTss + 0x28 + 12) == 0xabcd);
    CHECK(faulted(far_jump(*cx, kTssSelector, 0, 4, 0), Vector::GP, kTssSelector)); // busy
    CHECK(iret(*cx, 4, 0x7778));
    CHECK(state.tr.selector == kTssSelector);
    CHECK(state.rip == kNext);
    CHECK(state.gpr[Rbx] == 0xabcd);
    CHECK((get64(kGdt + kFree) >> 40 & 0xff) == 0x89);
    CHECK((get<std::uint32_t>(kNew + 0x24) & FLAG_NT) == 0);
    CHECK(get<std::uint32_t>(kNew + 0x20) == 0x7778);
}

TEST_CASE_FIXTURE(LegacyRig,
                  "task switches: descriptor checks, faults in the new task, task gate") {
    constexpr std::uint64_t kNew = 0xa000;
    set_descriptor(kFree, descriptor(kNew, 0x66, 0x89, 0));
    CHECK(faulted(far_jump(*cx, kFree, 0, 4, 0), Vector::TS, kFree)); // too short
    set_descriptor(kFree, descriptor(kNew, 0x67, 0x09, 0));
    CHECK(faulted(far_jump(*cx, kFree, 0, 4, 0), Vector::NP, kFree));
    set_descriptor(kFree, descriptor(kNew, 0x67, 0x89, 0));
    put<std::uint32_t>(kNew + 0x20, 0x7777);
    put<std::uint32_t>(kNew + 0x48 + 4, kCode0);
    put<std::uint32_t>(kNew + 0x48 + 8, kCode0); // SS = code
    CHECK(faulted(far_jump(*cx, kFree, 0, 4, kNext), Vector::TS, kCode0));
    CHECK(state.rip == 0x7777); // the new task's fault
    CHECK((get64(kGdt + kTssSelector) >> 40 & 0xff) == 0x89);

    protect();
    set_descriptor(kFree, descriptor(kNew, 0x67, 0x89, 0));
    put<std::uint32_t>(kNew + 0x48 + 8, kData0);
    put<std::uint32_t>(kNew + 0x38, 0x5000); // ESP
    put64(kIdt + 13 * 8, gate32(kFree, 0, 0x85));
    cx->gp(0x1230);
    CHECK(deliver());
    CHECK(state.tr.selector == kFree);
    CHECK(state.gpr[Rsp] == 0x4ffc);
    CHECK(stack(0) == 0x1230); // the error code, on the new stack
    CHECK((get<std::uint32_t>(kTss + 0x24) & FLAG_RF) != 0);
}

TEST_CASE_FIXTURE(LegacyRig, "a 16-bit TSS loads four segments and keeps the upper halves") {
    constexpr std::uint64_t kNew = 0xa000;
    set_descriptor(kFree, descriptor(kNew, 0x2b, 0x81, 0));
    put<std::uint16_t>(kNew + 0x0e, 0x4321);
    put<std::uint16_t>(kNew + 0x12 + 6, 0x9999); // BX
    for (unsigned i = 0; i < 4; ++i)
        put<std::uint16_t>(kNew + 0x22 + i * 2, i == 1 ? kCode0 : kData0);
    state.gpr[Rbx] = 0xaaaa'0000;
    CHECK(far_jump(*cx, kFree, 0, 4, kNext));
    CHECK(state.rip == 0x4321);
    CHECK(state.gpr[Rbx] == 0xaaaa'9999);
    CHECK_FALSE(state.segment[Fs].present());
}
