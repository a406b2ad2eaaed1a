// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <random>

#include "cpu/kvm/kvm_apic.hpp"
#include "cpu/kvm/kvm_state.hpp"
#include "cpu/x86/cpu_state_schema.hpp"

using namespace doppel;
using namespace doppel::cpu::kvm;
using namespace doppel::cpu::x86;

namespace {

Segment segment(std::uint16_t selector, std::uint16_t access, std::uint64_t base) {
    return {.base = base, .limit = 0xffff'ffff, .selector = selector, .access = access};
}

/// Long mode at CPL 3, every member with a value of its own.
CpuState busy_state() {
    std::mt19937_64 random{7};
    CpuState state;
    for (auto& gpr : state.gpr)
        gpr = random();
    state.rip = 0x7fff'1234'5678;
    state.rflags = FLAG_IF | FLAG_ZF | FLAG_AC | 2;
    state.cr0 = CR0_PG | CR0_PE | CR0_WP | CR0_NE | CR0_ET;
    state.cr2 = random();
    state.cr3 = 0x1234'5000;
    state.cr4 = CR4_PAE | CR4_OSFXSR | CR4_PGE;
    state.efer = EFER_LMA | EFER_LME | EFER_SCE | EFER_NXE;
    constexpr std::uint16_t kCode3 = 0x00fb | Segment::kLong | Segment::kGranular;
    constexpr std::uint16_t kData3 = 0x00f3 | Segment::kDefaultBig | Segment::kGranular;
    state.segment = {segment(0x23, kData3, 0),        segment(0x2b, kCode3, 0),
                     segment(0x33, kData3, 0),        segment(0, 0, 0), // ds: null
                     segment(0, 0x00f3, 0x7f00'0000), segment(0, 0x10f3, 0x8000'0000)};
    state.ldtr = {.base = 0x5000, .limit = 0xfff, .selector = 0x60, .access = 0x82};
    state.tr = {.base = 0x6000, .limit = 0x67, .selector = 0x48, .access = 0x8b};
    state.gdtr = {0xffff'8000'0000'1000, 0x7f};
    state.idtr = {0xffff'8000'0000'2000, 0xfff};
    state.cpl = 3;
    state.dr = {1, 2, 3, 4};
    state.dr6 = 0xffff'0ff1;
    state.dr7 = 0x401;
    for (auto& byte : state.xsave.bytes)
        byte = static_cast<std::byte>(random());
    const std::uint32_t mxcsr[2] = {0x1fa0, 0};
    std::memcpy(state.xsave.bytes.data() + 24, mxcsr, sizeof mxcsr);
    std::memset(state.xsave.bytes.data() + 416, 0, 96 + 64);
    state.xsave.bytes[512] = std::byte{7};
    return state;
}

/// Into the structures and back into a fresh state.
CpuState round_trip(const CpuState& state) {
    CpuState back;
    from_regs(to_regs(state), back);
    from_sregs(to_sregs(state, {}), back);
    from_debugregs(to_debugregs(state), back);
    from_xsave(to_xsave(state), back);
    from_events(to_events(state, {}, Injected::Drop), back);
    back.activity = from_mp_state(to_mp_state(state.activity));
    std::array<MsrPlace, kMaxMsrs> from{}, to{};
    auto copy = state;
    const auto count = msr_places(copy, from);
    REQUIRE(msr_places(back, to) == count);
    for (std::size_t i = 0; i < count; ++i)
        *to[i].value = *from[i].value;
    back.xcr0 = state.xcr0;
    back.tsc_offset = state.tsc_offset;
    back.pdpte = state.pdpte;
    return back;
}

std::vector<std::byte> bytes_of(const CpuState& state) {
    state::Encoder encoder;
    save_cpu_state(encoder, state);
    return {encoder.bytes().begin(), encoder.bytes().end()};
}

} // namespace

TEST_CASE("a state that went through KVM's structures is the same to the last byte") {
    auto state = busy_state();
    std::array<MsrPlace, kMaxMsrs> places{};
    const auto count = msr_places(state, places);
    std::mt19937_64 random{8};
    for (std::size_t i = 0; i < count; ++i)
        *places[i].value = random() & 0x7;
    CHECK(bytes_of(round_trip(state)) == bytes_of(state));
}

TEST_CASE("so are real mode, virtual-8086 mode, and a null stack segment") {
    CpuState real;
    real.segment[Cs] = {.base = 0xffff'0000, .limit = 0xffff, .selector = 0xf000, .access = 0x93};
    real.rip = 0xfff0;
    CHECK(bytes_of(round_trip(real)) == bytes_of(real));

    CpuState v86;
    v86.cr0 = CR0_PE;
    v86.rflags = FLAG_VM | 2;
    v86.cpl = 3;
    v86.segment[Ss] = {.base = 0x1230, .limit = 0xffff, .selector = 0x123, .access = 0xf3};
    CHECK(round_trip(v86).cpl == 3);

    auto null_stack = busy_state();
    null_stack.segment[Ss] = {};
    null_stack.cpl = 0;
    CHECK(round_trip(null_stack).cpl == 0);
    CHECK_FALSE(round_trip(null_stack).segment[Ss].present());
}

TEST_CASE("PDPTE registers travel with PAE paging only") {
    CpuState pae;
    pae.cr0 = CR0_PE | CR0_PG;
    pae.cr4 = CR4_PAE;
    pae.pdpte = {0x1001, 0x2001, 0x3001, 0x4001};
    auto sregs = to_sregs(pae, {});
    CHECK(sregs.flags == KVM_SREGS2_FLAGS_PDPTRS_VALID);
    CpuState back;
    from_sregs(sregs, back);
    CHECK(back.pdpte == pae.pdpte);
    CHECK(to_sregs(busy_state(), {}).flags == 0);
}

TEST_CASE("CR8 and IA32_APIC_BASE stay the kernel's") {
    kvm_sregs2 kernel{};
    kernel.cr8 = 5;
    kernel.apic_base = 0xfee0'0d00;
    const auto sregs = to_sregs(busy_state(), kernel);
    CHECK(sregs.cr8 == 5);
    CHECK(sregs.apic_base == 0xfee0'0d00);
}

TEST_CASE("shadows, NMI blocking and pending debug traps survive") {
    for (unsigned bits = 0; bits < 8; ++bits) {
        CpuState state;
        state.sti_shadow = (bits & 1) != 0;
        state.mov_ss_shadow = (bits & 2) != 0;
        state.nmi_blocked = (bits & 4) != 0;
        state.pending_debug = bits == 7 ? 0x4001 : 0;
        CpuState back;
        const auto flying = from_events(to_events(state, {}, Injected::Drop), back);
        CHECK(bytes_of(back) == bytes_of(state));
        CHECK_FALSE(flying.interrupt.has_value());
        CHECK_FALSE(flying.nmi);
    }
}

TEST_CASE("what KVM was about to deliver counts as not delivered") {
    kvm_vcpu_events events{};
    CpuState state;
    SUBCASE("an interrupt") {
        events.interrupt.injected = 1;
        events.interrupt.nr = 0x41;
        CHECK(from_events(events, state).interrupt == 0x41);
        CHECK(to_events(state, events, Injected::Keep).interrupt.injected == 1);
        CHECK(to_events(state, events, Injected::Drop).interrupt.injected == 0);
    }
    SUBCASE("INT n: the instruction is executed again") {
        events.interrupt.injected = 1;
        events.interrupt.soft = 1;
        CHECK_FALSE(from_events(events, state).interrupt.has_value());
    }
    SUBCASE("an NMI") {
        events.nmi.injected = events.nmi.masked = 1;
        CHECK(from_events(events, state).nmi);
        CHECK_FALSE(state.nmi_blocked);
        CHECK(to_events(state, events, Injected::Keep).nmi.masked == 1);
    }
    SUBCASE("a debug trap, with its bits beside or already in DR6") {
        events.exception.nr = 1;
        events.exception.pending = events.exception_has_payload = 1;
        events.exception_payload = 0x4000;
        from_events(events, state);
        CHECK(state.pending_debug == 0x4000);
        events.exception.pending = events.exception_has_payload = 0;
        events.exception.injected = 1;
        state.dr6 = 0xffff'0ff2;
        from_events(events, state);
        CHECK(state.pending_debug == 2);
    }
    SUBCASE("a page fault: the access is made again") {
        events.exception.nr = 14;
        events.exception.injected = 1;
        from_events(events, state);
        CHECK(state.pending_debug == 0);
        CHECK(to_events(state, events, Injected::Keep).exception.injected == 0);
    }
}

TEST_CASE("activities") {
    for (const auto activity : {Activity::Running, Activity::Halted, Activity::WaitForSipi})
        CHECK(from_mp_state(to_mp_state(activity)) == activity);
    CHECK(from_mp_state(KVM_MP_STATE_UNINITIALIZED) == Activity::WaitForSipi);
    CHECK(from_mp_state(KVM_MP_STATE_SIPI_RECEIVED) == Activity::Running);
}

TEST_CASE("an APIC's registers stand at 16-byte steps") {
    cpu::ApicImage image;
    for (std::uint32_t i = 0; i < image.registers.size(); ++i)
        image.registers[i] = 0x100 + i;
    const auto lapic = to_lapic(image);
    std::uint32_t word = 0;
    std::memcpy(&word, lapic.regs + 0xf0, sizeof word); // SVR
    CHECK(word == 0x10f);
    CHECK(from_lapic(lapic).registers == image.registers);
}

TEST_CASE("a one-shot count that has expired is not started again") {
    cpu::ApicImage image;
    image.registers[0x32] = 0x51;   // one-shot, unmasked
    image.registers[0x38] = 100000; // initial count
    CHECK(from_lapic(to_lapic(image)).registers[0x38] == 0);
    image.registers[0x39] = 5; // still counting
    CHECK(from_lapic(to_lapic(image)).registers[0x38] == 100000);
    image.registers[0x32] |= 1u << 17; // periodic
    image.registers[0x39] = 0;
    CHECK(from_lapic(to_lapic(image)).registers[0x38] == 100000);
}

TEST_CASE("an interrupt that was not begun goes from in service back to requested") {
    cpu::ApicImage image;
    image.registers[0x12] = 1u << 1; // vector 41h in service
    CHECK(take_back(image, 0x41));
    CHECK(image.registers[0x12] == 0);
    CHECK(image.registers[0x22] == 1u << 1);
    CHECK_FALSE(take_back(image, 0x41)); // the PIC's, then
}

TEST_CASE("a one-shot count that ended while nobody looked is told from one that was delivered") {
    cpu::ApicImage image;
    image.registers[0x32] = 0x41;
    image.registers[0x38] = 1000;
    image.registers[0x39] = 7;
    CHECK(timer_counts(image));
    CHECK_FALSE(timer_ended_silently(image));
    image.registers[0x39] = 0;
    CHECK_FALSE(timer_counts(image));
    CHECK(timer_ended_silently(image));
    request_timer(image);
    CHECK(image.registers[0x22] == 1u << 1);
    CHECK_FALSE(timer_ended_silently(image));
    image.registers[0x22] = 0;
    image.registers[0x12] = 1u << 1; // in service
    CHECK_FALSE(timer_ended_silently(image));
    image.registers[0x12] = 0;
    for (const std::uint32_t other : {1u << 16 | 0x41, 1u << 17 | 0x41, 2u << 17 | 0x41}) {
        image.registers[0x32] = other; // masked, periodic, by deadline
        CHECK_FALSE(timer_ended_silently(image));
    }
}
