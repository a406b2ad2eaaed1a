// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/exceptions.hpp"

#include <doctest/doctest.h>

#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;
using doppel::cpu::CpuEvent;

namespace {

struct LongRig : Rig {
    LongRig() { long_mode(); }
    /// The frame that a 64-bit handler finds, `errors` = 1 with an error code.
    std::uint64_t pushed(unsigned slot) { return get64(state.gpr[Rsp] + slot * 8); }
};
struct LegacyRig : Rig {
    LegacyRig() { protect(); }
    std::uint32_t pushed(unsigned slot) { return get<std::uint32_t>(state.gpr[Rsp] + slot * 4); }
};

constexpr std::uint64_t handler(unsigned vector) { return 0x20000 + vector * 16; }

} // namespace

TEST_CASE_FIXTURE(LongRig, "64-bit: a fault at CPL 0 pushes five words and an error code") {
    state.gpr[Rsp] = kStack0 + 5; // is aligned to 16
    state.rflags = 0x10302;       // RF, TF, IF
    cx->raise(Vector::PF, 2);
    cx->fault.cr2 = 0x1234;
    CHECK(deliver());
    CHECK(state.rip == handler(14));
    CHECK(state.cr2 == 0x1234);
    CHECK(state.gpr[Rsp] == kStack0 - 48);
    CHECK(pushed(0) == 2);
    CHECK(pushed(1) == kCode);
    CHECK(pushed(2) == kCode64);
    CHECK(pushed(3) == 0x10302); // faults push RF set
    CHECK(pushed(4) == kStack0 + 5);
    CHECK(pushed(5) == kData0);
    CHECK(state.rflags == 2);
    CHECK(state.cpl == 0);
    CHECK(state.segment[Ss].selector == kData0); // stays without a change of privilege
}

TEST_CASE_FIXTURE(LongRig, "64-bit: from CPL 3 the stack is RSP0 and SS null") {
    flat(3, true);
    state.rflags = 0x202;
    cx->gp(0x18);
    CHECK(deliver());
    CHECK(state.cpl == 0);
    CHECK(state.gpr[Rsp] == 0xd000 - 48);
    CHECK(pushed(0) == 0x18);
    CHECK(pushed(2) == (kCode64User | 3));
    CHECK(pushed(3) == 0x10202);
    CHECK(pushed(4) == kStack3);
    CHECK(pushed(5) == (kData3 | 3));
    CHECK(state.segment[Ss].selector == 0);
    CHECK_FALSE(state.segment[Ss].present());
    CHECK(state.segment[Cs].selector == kCode64);
}

TEST_CASE_FIXTURE(LongRig, "64-bit: IST takes its stack even without a change of privilege") {
    set_gate64(2, kCode64, handler(2), 0x8e, 1);
    CHECK(deliver_interrupt(*cx, 2));
    CHECK(state.gpr[Rsp] == 0xd800 - 40);
    CHECK(pushed(0) == kCode);
    CHECK(pushed(2) == 2); // an interrupt: RF is not set
    CHECK(pushed(3) == kStack0);
}

TEST_CASE_FIXTURE(LongRig, "trap gates leave IF alone") {
    set_gate64(32, kCode64, handler(32), 0x8f);
    state.rflags = 0x202;
    CHECK(deliver_interrupt(*cx, 32));
    CHECK(state.rflags == 0x202);
}

TEST_CASE_FIXTURE(LongRig, "64-bit gates: every check has its error code") {
    struct Case {
        const char* what;
        std::uint64_t low;
        Vector vector;
        std::uint32_t error;
    };
    const auto gate = [](std::uint16_t selector, unsigned access) {
        return gate32(selector, 0x20200, access);
    };
    set_descriptor(kFree, descriptor(0, 0xfffff, 0x1b, 0xa));      // not present
    set_descriptor(kFree + 8, descriptor(0, 0xfffff, 0x9b, 0xc));  // 32-bit code
    set_descriptor(kFree + 16, descriptor(0, 0xfffff, 0x9b, 0xe)); // L and D
    const Case cases[] = {
        {"not present", gate(kCode64, 0x0e), Vector::NP, 32 * 8 + 3},
        {"task gate", gate(kCode64, 0x85), Vector::GP, 32 * 8 + 3},
        {"16-bit gate", gate(kCode64, 0x86), Vector::GP, 32 * 8 + 3},
        {"code segment", gate(kCode64, 0x9e), Vector::GP, 32 * 8 + 3},
        {"null selector", gate(0, 0x8e), Vector::GP, 1},
        {"beyond the GDT", gate(0x1000, 0x8e), Vector::GP, 0x1001},
        {"data segment", gate(kData0, 0x8e), Vector::GP, kData0 | 1},
        {"code of CPL 3", gate(kCode64User, 0x8e), Vector::GP, kCode64User | 1},
        {"32-bit code", gate(kFree + 8, 0x8e), Vector::GP, (kFree + 8) | 1},
        {"L and D", gate(kFree + 16, 0x8e), Vector::GP, (kFree + 16) | 1},
        {"code not present", gate(kFree, 0x8e), Vector::NP, kFree | 1},
    };
    for (const Case& test : cases) {
        CAPTURE(test.what);
        long_mode();
        put64(kIdt + 32 * 16, test.low);
        CHECK(deliver_interrupt(*cx, 32)); // the fault of the delivery is delivered
        CHECK(state.rip == handler(static_cast<unsigned>(test.vector)));
        CHECK(pushed(0) == test.error);
        CHECK(pushed(1) == kCode);
    }
}

TEST_CASE_FIXTURE(LongRig, "INT n checks the gate's DPL and has EXT clear") {
    flat(3, true);
    const bool done = software_interrupt(*cx, 0x80, kCode + 2);
    CHECK(faulted(done, Vector::GP, 0x80 * 8 + 2));
    set_gate64(0x80, kCode64, handler(0x80), 0xee);
    CHECK(software_interrupt(*cx, 0x80, kCode + 2));
    CHECK(state.rip == handler(0x80));
    CHECK(pushed(0) == kCode + 2);
    flat(3, true);
    CHECK(faulted(int3(*cx, kCode + 1), Vector::GP, 3 * 8 + 2));
    flat(3, true);
    CHECK(int1(*cx, kCode + 1)); // privileged: no DPL check
    CHECK(state.rip == handler(1));
}

TEST_CASE_FIXTURE(LongRig, "double faults and triple faults follow table 7-5") {
    struct Case {
        Vector first;
        unsigned broken; // gate that is not present: gives #NP (contributory)
        unsigned taken;  // vector that is delivered in the end
    };
    constexpr Case cases[] = {
        {Vector::GP, 13, 8}, // contributory, contributory
        {Vector::PF, 14, 8}, // page fault, contributory
        {Vector::UD, 6, 11}, // benign: delivered one after the other
        {Vector::DE, 0, 8},  {Vector::DB, 1, 11}, {Vector::AC, 17, 11},
    };
    for (const Case& test : cases) {
        CAPTURE(static_cast<int>(test.first));
        long_mode();
        set_gate64(test.broken, kCode64, 0, 0x0e);
        cx->raise(test.first, 0);
        CHECK(deliver());
        CHECK(state.rip == handler(test.taken));
        CHECK(pushed(0) == (test.taken == 8 ? 0 : test.broken * 8 + 3));
    }
    long_mode();
    set_gate64(13, kCode64, 0, 0x0e);
    set_gate64(8, kCode64, 0, 0x0e);
    cx->gp(0);
    CHECK_FALSE(deliver());
    CHECK(state.activity == Activity::Shutdown);
    CHECK(service_events(*cx) == Next::Shutdown);
}

TEST_CASE_FIXTURE(LongRig, "a page fault on the kernel stack is a double fault; CR2 is the last") {
    set_gate64(8, kCode64, handler(8), 0x8e, 1);
    flat(3, true);
    put64(kTss + 4, 0x500000); // RSP0 is not mapped
    cx->raise(Vector::PF, 4);
    cx->fault.cr2 = 0x1000;
    CHECK(deliver());
    CHECK(state.rip == handler(8));
    CHECK(state.cr2 == 0x500000 - 8);
    CHECK(state.gpr[Rsp] == 0xd800 - 48);
}

TEST_CASE_FIXTURE(LongRig, "a non-canonical stack in the TSS is #SS; TSS limit is #TS") {
    flat(3, true);
    put64(kTss + 4, 1ull << 55);
    set_gate64(12, kCode64, handler(12), 0x8e, 1);
    CHECK(deliver_interrupt(*cx, 32));
    CHECK(state.rip == handler(12));
    CHECK(pushed(0) == 1);
    flat(3, true);
    state.tr.limit = 10;
    set_gate64(10, kCode64, handler(10), 0x8e); // also needs RSP0: double fault, then triple
    set_gate64(8, kCode64, handler(8), 0x8e);
    CHECK_FALSE(deliver_interrupt(*cx, 32));
}

TEST_CASE_FIXTURE(LegacyRig, "32-bit: the frame of an inner stack, 16-bit gates") {
    flat(3);
    state.rflags = 0x3202;
    CHECK(deliver_interrupt(*cx, 32));
    CHECK(state.gpr[Rsp] == 0xd000 - 20);
    CHECK(pushed(0) == kCode);
    CHECK(pushed(1) == (kCode3 | 3));
    CHECK(pushed(2) == 0x3202);
    CHECK(pushed(3) == kStack3);
    CHECK(pushed(4) == (kData3 | 3));
    CHECK(state.segment[Ss].selector == kData0);
    CHECK(state.rflags == 0x3002);
    flat(0);
    put64(kIdt + 33 * 8, gate32(kCode0, 0x12345, 0x86));
    CHECK(deliver_interrupt(*cx, 33));
    CHECK(state.rip == 0x2345);
    CHECK(state.gpr[Rsp] == kStack0 - 6);
    CHECK(get<std::uint16_t>(kStack0 - 6) == (kCode & 0xffff));
    CHECK(get<std::uint16_t>(kStack0 - 4) == kCode0);
}

TEST_CASE_FIXTURE(LegacyRig, "32-bit: the inner stack's descriptor is checked with #TS and #SS") {
    struct Case {
        std::uint32_t ss;
        std::uint64_t descriptor;
        Vector vector;
        std::uint32_t error;
    };
    const std::uint64_t data = descriptor(0, 0xfffff, 0x93, 0xc);
    const Case cases[] = {
        {0, data, Vector::TS, 1},
        {kFree | 1, data, Vector::TS, kFree | 1},
        {0x2000, data, Vector::TS, 0x2001},
        {kFree, descriptor(0, 0xfffff, 0x91, 0xc), Vector::TS, kFree | 1}, // read-only
        {kFree, descriptor(0, 0xfffff, 0xf3, 0xc), Vector::TS, kFree | 1}, // DPL 3
        {kFree, descriptor(0, 0xfffff, 0x13, 0xc), Vector::SS, kFree | 1}, // not present
    };
    for (const Case& test : cases) {
        protect(3);
        set_descriptor(kFree, test.descriptor);
        put<std::uint32_t>(kTss + 8, test.ss);
        // Let the fault's own handler run at CPL 3, on the stack there is.
        const unsigned vector = static_cast<unsigned>(test.vector);
        put64(kIdt + vector * 8, gate32(kCode3, handler(vector) & 0xffffffff, 0x8e));
        CHECK(deliver_interrupt(*cx, 32));
        CHECK(state.rip == handler(vector));
        CHECK(pushed(0) == test.error);
    }
}

TEST_CASE_FIXTURE(LegacyRig, "from V86 mode the segments are pushed and cleared") {
    put64(kIdt + 32 * 8, gate32(kCode0, 0x20200, 0x8e));
    state.rflags = 0x20202 | FLAG_IOPL;
    state.cpl = 3;
    for (unsigned i = 0; i < kSegments; ++i)
        state.segment[i] = {0x1000 * (i + 1), 0xffff, static_cast<std::uint16_t>(0x100 * (i + 1)),
                            0xf3};
    state.rip = 0x123;
    state.gpr[Rsp] = 0x456;
    CHECK(deliver_interrupt(*cx, 32));
    CHECK(state.cpl == 0);
    CHECK(state.gpr[Rsp] == 0xd000 - 36);
    const std::uint32_t expected[] = {
        0x123, 0x200, 0x23202, 0x456, 0x300,
        0x100, 0x400, 0x500,   0x600}; // EIP CS EFLAGS ESP SS ES DS FS GS
    for (unsigned i = 0; i < 9; ++i)
        CHECK(pushed(i) == expected[i]);
    CHECK((state.rflags & FLAG_VM) == 0);
    CHECK_FALSE(state.segment[Ds].present());
    CHECK(state.segment[Ds].selector == 0);
    // …and IRET goes back there.
    CHECK(iret(*cx, 4, 0));
    CHECK(state.cpl == 3);
    CHECK(state.rflags == (0x20202 | FLAG_IOPL));
    CHECK(state.segment[Gs].base == 0x6000);
    CHECK(state.segment[Cs].selector == 0x200);
    CHECK(state.gpr[Rsp] == 0x456);
}

TEST_CASE("real mode: the vector table, 16-bit frames, no error codes") {
    Rig rig;
    auto& state = rig.state;
    state.rip = 0x1234;
    state.segment[Cs] = {0x20000, 0xffff, 0x2000, 0x93};
    state.segment[Ss].base = 0x30000;
    state.gpr[Rsp] = 0x100;
    state.rflags = 0x302;
    rig.put<std::uint32_t>(13 * 4, 0x4000'5678);
    rig.cx->gp(0);
    CHECK(rig.deliver());
    CHECK(state.rip == 0x5678);
    CHECK(state.segment[Cs].base == 0x40000);
    CHECK(state.gpr[Rsp] == 0x100 - 6);
    CHECK(rig.get<std::uint16_t>(0x300fa) == 0x1234);
    CHECK(rig.get<std::uint16_t>(0x300fc) == 0x2000);
    CHECK(rig.get<std::uint16_t>(0x300fe) == 0x302);
    CHECK(state.rflags == 2);
    state.rip = 0x20;
    CHECK(iret(*rig.cx, 2, 0));
    CHECK(state.rip == 0x1234);
    CHECK(state.segment[Cs].base == 0x20000);
    CHECK(state.rflags == 0x302);
    state.idtr.limit = 0x10; // every vector is outside: #GP, #DF, shutdown
    CHECK_FALSE(software_interrupt(*rig.cx, 0x21, 0));
    CHECK_FALSE(rig.deliver());
    CHECK(state.activity == Activity::Shutdown);
}

TEST_CASE_FIXTURE(LongRig, "interrupts wait for IF, the STI shadow and MOV SS") {
    board.vector = 40;
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(board.vector == 40); // IF is clear
    CHECK(begin_instruction(*cx, kCode));
    CHECK(sti(*cx));
    end_instruction(*cx);
    CHECK(needs_service(*cx));
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(board.vector == 40); // shadow
    CHECK_FALSE(step_free(*cx));
    CHECK(begin_instruction(*cx, kCode + 1));
    end_instruction(*cx);
    CHECK(needs_service(*cx));
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(board.vector == -1);
    CHECK(state.rip == handler(40));
    CHECK((state.rflags & FLAG_IF) == 0);
}

TEST_CASE_FIXTURE(LongRig, "HLT wakes by interrupt, NMI blocks NMI until IRET") {
    state.rflags |= FLAG_IF;
    CHECK(halt(*cx));
    state.rip = kCode + 1;
    CHECK(service_events(*cx) == Next::Halted);
    CHECK(service_events(*cx) == Next::Halted);
    board.event = CpuEvent::Nmi;
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(state.rip == handler(2));
    CHECK(state.nmi_blocked);
    CHECK(pushed(0) == kCode + 1);
    board.event = CpuEvent::Nmi;
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(board.event == CpuEvent::Nmi); // held back
    CHECK(iret(*cx, 8, 0));
    CHECK_FALSE(state.nmi_blocked);
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(board.event == CpuEvent::None);
    state.cpl = 3;
    CHECK(faulted(halt(*cx), Vector::GP, 0));
}

TEST_CASE_FIXTURE(LongRig, "single step traps after the instruction that began with TF") {
    state.rflags |= FLAG_TF;
    CHECK(begin_instruction(*cx, kCode));
    state.rip = kCode + 3;
    end_instruction(*cx);
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(state.rip == handler(1));
    CHECK((state.dr6 & 0x4000) != 0);
    CHECK(pushed(0) == kCode + 3);
    CHECK((pushed(2) & (FLAG_TF | FLAG_RF)) == FLAG_TF);
    CHECK((state.rflags & FLAG_TF) == 0);
    // IRET restores TF: the next instruction runs, then traps.
    CHECK(begin_instruction(*cx, state.rip));
    CHECK(iret(*cx, 8, 0));
    end_instruction(*cx);
    CHECK(state.pending_debug == 0);
    CHECK(begin_instruction(*cx, state.rip));
    end_instruction(*cx);
    CHECK(state.pending_debug == 0x4000);
}

TEST_CASE_FIXTURE(LongRig, "MOV SS holds the trap back for one instruction") {
    state.rflags |= FLAG_TF;
    CHECK(begin_instruction(*cx, kCode));
    set_mov_ss_shadow(*cx);
    end_instruction(*cx);
    CHECK(state.pending_debug == 0x4000);
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(state.rip == kCode); // nothing was delivered
    CHECK(begin_instruction(*cx, kCode + 2));
    state.rip = kCode + 4;
    end_instruction(*cx);
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(state.rip == handler(1));
}

TEST_CASE_FIXTURE(LongRig, "instruction breakpoints are faults that RF suppresses once") {
    state.dr[2] = kCode;
    state.dr7 |= 1 << 4;
    CHECK_FALSE(begin_instruction(*cx, kCode));
    CHECK(deliver());
    CHECK(state.rip == handler(1));
    CHECK((state.dr6 & 0xf) == 4);
    CHECK((pushed(2) & FLAG_RF) == 0);
    put64(state.gpr[Rsp] + 16, pushed(2) | FLAG_RF); // as the handler would do
    CHECK(iret(*cx, 8, 0));
    CHECK((state.rflags & FLAG_RF) != 0);
    CHECK(begin_instruction(*cx, kCode));
    end_instruction(*cx);
    CHECK((state.rflags & FLAG_RF) == 0);
    CHECK_FALSE(begin_instruction(*cx, kCode));
}

TEST_CASE_FIXTURE(LongRig, "DR7.GD catches MOV DR and is cleared by delivery") {
    state.dr7 |= 1 << 13;
    std::uint64_t value = 0;
    CHECK_FALSE(read_debug(*cx, 0, value));
    CHECK(deliver());
    CHECK((state.dr6 & 1 << 13) != 0);
    CHECK((state.dr7 & 1 << 13) == 0);
    CHECK(read_debug(*cx, 0, value));
}

TEST_CASE("INIT and SIPI bring up an application processor") {
    Rig rig;
    reset(*rig.cx, Bootstrap::No);
    CHECK(service_events(*rig.cx) == Next::Halted);
    rig.board.event = CpuEvent::Sipi;
    rig.board.sipi_vector = 0x9a;
    CHECK(service_events(*rig.cx) == Next::Execute);
    CHECK(rig.state.segment[Cs].selector == 0x9a00);
    CHECK(rig.state.segment[Cs].base == 0x9a000);
    CHECK(rig.state.rip == 0);
    rig.cx->vcpu_index = 1;
    rig.board.event = CpuEvent::Init;
    CHECK(service_events(*rig.cx) == Next::Halted);
    CHECK(rig.board.inits == 1);
    CHECK(rig.state.activity == Activity::WaitForSipi);
}

TEST_CASE("a SIPI that came together with its INIT starts the processor at once") {
    Rig rig;
    rig.cx->vcpu_index = 1;
    rig.board.event = CpuEvent::Init;
    rig.board.next_event = CpuEvent::Sipi;
    rig.board.sipi_vector = 0x9a;
    CHECK(service_events(*rig.cx) == Next::Execute);
    CHECK(rig.state.segment[Cs].base == 0x9a000);
}

TEST_CASE("RESET values of table 10-1") {
    Rig rig;
    const CpuState& s = rig.state;
    CHECK(s.cr0 == 0x6000'0010);
    CHECK(s.rip == 0xfff0);
    CHECK(s.segment[Cs].base == 0xffff'0000);
    CHECK(s.segment[Cs].selector == 0xf000);
    CHECK(s.rflags == 2);
    CHECK(s.gpr[Rdx] == rig.model.lookup(1, 0).eax);
    CHECK(s.dr6 == 0xffff'0ff0);
    CHECK(s.dr7 == 0x400);
    CHECK(s.idtr.limit == 0xffff);
    CHECK(s.pat == 0x0007'0406'0007'0406);
}

TEST_CASE_FIXTURE(LegacyRig, "the I/O permission bit map") {
    CHECK(check_io(*cx, 0x3f8, 1)); // CPL 0
    flat(3);
    CHECK(faulted(check_io(*cx, 0x3f8, 1), Vector::GP, 0)); // bit map base is 0, limit 0x67
    state.rflags |= FLAG_IOPL;
    CHECK(check_io(*cx, 0x3f8, 1));
    state.rflags &= ~FLAG_IOPL;
    put<std::uint16_t>(kTss + 102, 0x68);
    state.tr.limit = 0x68 + 0x2001;
    CHECK(check_io(*cx, 0x3f8, 4));
    put<std::uint8_t>(kTss + 0x68 + 0x3f8 / 8, 0x08);
    CHECK(check_io(*cx, 0x3f8, 2));
    CHECK(check_io(*cx, 0x3fa, 1));
    CHECK(faulted(check_io(*cx, 0x3fb, 1), Vector::GP, 0));
    CHECK(faulted(check_io(*cx, 0x3f8, 4), Vector::GP, 0));
    state.tr.limit = 0x68 + 0x3f8 / 8; // the second byte is outside
    CHECK(faulted(check_io(*cx, 0x3f8, 1), Vector::GP, 0));
}
