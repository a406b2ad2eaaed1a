// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/control_registers.hpp"

#include <doctest/doctest.h>

#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;

namespace {

struct LongRig : Rig {
    LongRig() { long_mode(); }
    bool set(unsigned index, std::uint64_t value) { return write_control(*cx, index, value); }
    bool gp(bool done) const { return faulted(done, Vector::GP, 0); }
    bool msr(std::uint32_t index, std::uint64_t value) {
        state.gpr[Rcx] = index;
        state.gpr[Rax] = value & 0xffffffff;
        state.gpr[Rdx] = value >> 32;
        return wrmsr(*cx);
    }
    bool msr(std::uint32_t index) {
        state.gpr[Rcx] = index;
        return rdmsr(*cx);
    }
    std::uint64_t edx_eax() const { return state.gpr[Rax] | state.gpr[Rdx] << 32; }
};

} // namespace

TEST_CASE_FIXTURE(LongRig, "CR0: combinations that MOV refuses") {
    CHECK(gp(set(0, state.cr0 | 1ull << 32)));
    CHECK(gp(set(0, CR0_PG | CR0_ET)));                // PG without PE
    CHECK(gp(set(0, state.cr0 | CR0_NW)));             // NW without CD
    CHECK(gp(set(0, state.cr0 & ~CR0_PG)));            // in 64-bit mode
    CHECK(set(0, state.cr0 | CR0_CD | CR0_NW | 0x80)); // undefined bits are dropped
    CHECK((state.cr0 & 0x80) == 0);
    flat(0); // compatibility mode
    CHECK(set(0, state.cr0 & ~CR0_PG));
    CHECK((state.efer & (EFER_LMA | EFER_LME)) == EFER_LME);
    CHECK(set(4, state.cr4 & ~CR4_PAE));
    CHECK(gp(set(0, state.cr0 | CR0_PG))); // LME without PAE
    CHECK(set(4, state.cr4 | CR4_PAE));
    state.segment[Cs].access |= Segment::kLong;
    CHECK(gp(set(0, state.cr0 | CR0_PG))); // CS.L
    state.segment[Cs].access &= static_cast<std::uint16_t>(~Segment::kLong);
    CHECK(set(0, state.cr0 | CR0_PG));
    CHECK((state.efer & EFER_LMA) != 0);
    state.cpl = 3;
    CHECK(gp(set(0, state.cr0)));
    CHECK(faulted(set(1, 0), Vector::UD));
}

TEST_CASE_FIXTURE(LongRig, "CR4: bits the model lacks, PAE in long mode, PCIDE") {
    CHECK(gp(set(4, state.cr4 | CR4_LA57)));
    CHECK(gp(set(4, state.cr4 | CR4_PKE)));
    CHECK(gp(set(4, state.cr4 | 1ull << 40)));
    CHECK(gp(set(4, state.cr4 & ~CR4_PAE)));
    state.cr3 |= 8;
    CHECK(gp(set(4, state.cr4 | CR4_PCIDE)));
    state.cr3 &= ~8ull;
    CHECK(set(4, state.cr4 | CR4_PCIDE));
    flat(0);
    CHECK(gp(set(0, state.cr0 & ~CR0_PG))); // with PCIDE
    Rig old{"x86-64-v1"};
    old.long_mode();
    CHECK(old.faulted(write_control(*old.cx, 4, old.state.cr4 | CR4_SMEP), Vector::GP, 0));
}

TEST_CASE_FIXTURE(LongRig, "CR3 and CR8") {
    CHECK(gp(set(3, 1ull << 40))); // beyond the physical width
    CHECK(gp(set(3, 1ull << 63))); // without PCIDE
    CHECK(set(3, kPml4 | 0x18));
    CHECK(state.cr3 == (kPml4 | 0x18));
    CHECK(set(8, 15));
    CHECK(board.tpr == 15);
    CHECK(gp(set(8, 16)));
    std::uint64_t value = 0;
    CHECK(read_control(*cx, 8, value));
    CHECK(value == 15);
}

TEST_CASE_FIXTURE(LongRig, "LMSW sets PE but never clears it; CLTS") {
    CHECK(lmsw(*cx, CR0_TS));
    CHECK((state.cr0 & (CR0_TS | CR0_PE)) == (CR0_TS | CR0_PE));
    CHECK(clts(*cx));
    CHECK((state.cr0 & CR0_TS) == 0);
}

TEST_CASE_FIXTURE(LongRig, "debug registers: fixed bits, DE, upper halves") {
    CHECK(write_debug(*cx, 7, 0xffffffff));
    CHECK(state.dr7 == 0xffff27ff);
    state.dr7 = 0x400;
    CHECK(write_debug(*cx, 6, 0));
    CHECK(state.dr6 == 0xffff0ff0);
    CHECK(gp(write_debug(*cx, 7, 1ull << 32)));
    CHECK(write_debug(*cx, 4, 1)); // DR6
    CHECK(state.dr6 == 0xffff0ff1);
    CHECK(set(4, state.cr4 | CR4_DE));
    CHECK(faulted(write_debug(*cx, 4, 1), Vector::UD));
}

TEST_CASE_FIXTURE(LongRig, "XSETBV takes what the model offers") {
    state.gpr[Rcx] = 0;
    state.gpr[Rdx] = 0;
    state.gpr[Rax] = 7;
    CHECK(faulted(xsetbv(*cx), Vector::UD)); // OSXSAVE
    CHECK(set(4, state.cr4 | CR4_OSXSAVE));
    CHECK(xsetbv(*cx));
    CHECK(state.xcr0 == 7);
    for (const std::uint64_t bad : {6u, 5u, 0xeu, 0xe7u}) {
        state.gpr[Rax] = bad;
        CHECK(gp(xsetbv(*cx)));
    }
    state.gpr[Rax] = 1;
    CHECK(xgetbv(*cx));
    CHECK(state.gpr[Rax] == 7);
    state.gpr[Rcx] = 2;
    CHECK(gp(xgetbv(*cx)));
    state.gpr[Rcx] = 1;
    CHECK(xgetbv(*cx)); // XINUSE: x87 after RESET
    CHECK(state.gpr[Rax] == 1);
}

TEST_CASE_FIXTURE(LongRig, "INVPCID's descriptor") {
    CHECK(gp(invpcid(*cx, 4, 0, 0)));
    CHECK(gp(invpcid(*cx, 1, 1, 0)));       // PCID without PCIDE
    CHECK(gp(invpcid(*cx, 2, 1 << 12, 0))); // reserved
    CHECK(gp(invpcid(*cx, 0, 0, 1ull << 50)));
    CHECK(invpcid(*cx, 2, 0, 1ull << 50));
    CHECK(invpcid(*cx, 0, 0, 0x1000));
}

TEST_CASE_FIXTURE(LongRig, "EFER by WRMSR") {
    CHECK(gp(msr(0xc0000080, state.efer | 1 << 12)));   // SVME
    CHECK(gp(msr(0xc0000080, state.efer & ~EFER_LME))); // while paging
    CHECK(msr(0xc0000080, state.efer & ~EFER_LMA));     // LMA is read-only
    CHECK((state.efer & EFER_LMA) != 0);
    CHECK(msr(0xc0000080, state.efer & ~EFER_NXE));
    CHECK((cx->changes & change::kMode) != 0);
}

TEST_CASE_FIXTURE(LongRig, "MSRs by kind") {
    CHECK(gp(msr(0x12345)));
    CHECK(gp(msr(0x12345, 0)));
    CHECK(msr(0x1b)); // the interrupt controller's
    CHECK(edx_eax() == 0xfee00900);
    CHECK(gp(msr(0xc0000082, 1ull << 50))); // LSTAR: canonical
    CHECK(msr(0xc0000082, 0xffff'8000'1234'5678));
    CHECK(msr(0xc0000082));
    CHECK(edx_eax() == 0xffff'8000'1234'5678);
    CHECK(msr(0xc0000101, 0x7000));
    CHECK(state.segment[Gs].base == 0x7000);
    CHECK(gp(msr(0xc0000103, 1ull << 32))); // TSC_AUX
    CHECK(gp(msr(0xfe, 0)));                // MTRRCAP is constant
    CHECK(gp(msr(0x277, 2)));               // PAT: reserved type
    CHECK(msr(0x277, 0x0007'0106'0007'0406));
    CHECK(gp(msr(0x200, 2)));
    CHECK(msr(0x200, 0xc000'0006));
    CHECK(msr(0x250, 0x0606'0606'0606'0606));
    CHECK(gp(msr(0x250, 7)));
    CHECK(msr(0x2ff, 0xc06));
    CHECK(gp(msr(0x2ff, 0x100)));
    CHECK(gp(msr(0x401, 1))); // MC0_STATUS takes only 0
    CHECK(msr(0x400, ~0ull));
    CHECK(gp(msr(0xc0010015))); // AMD's
    CHECK(gp(msr(0x49)));       // write-only
    CHECK(msr(0x49, 1));
    state.cpl = 3;
    CHECK(gp(msr(0x277)));
}

TEST_CASE_FIXTURE(LongRig, "TSC, TSC_ADJUST and their relation") {
    board.ticks = 5000;
    CHECK(rdtsc(*cx));
    CHECK(edx_eax() == 5000);
    CHECK(msr(0x10, 1000));
    CHECK(board.last_msr_written == 0x10); // its clock must follow
    CHECK(guest_tsc(*cx) == 1000);
    CHECK(state.tsc_adjust == 0 - 4000ull);
    CHECK(msr(0x3b, 0));
    CHECK(board.last_msr_written == 0x3b);
    CHECK(guest_tsc(*cx) == 5000);
    state.tsc_aux = 0x12;
    CHECK(rdtscp(*cx));
    CHECK(state.gpr[Rcx] == 0x12);
    CHECK(set(4, state.cr4 | CR4_TSD));
    state.cpl = 3;
    CHECK(gp(rdtsc(*cx)));
}

TEST_CASE("CPUID: run-time parts") {
    Rig rig;
    auto& cx = *rig.cx;
    CHECK((cpuid_leaf(cx, 1, 0).edx & 1u << 9) != 0); // APIC
    rig.board.apic_base &= ~(std::uint64_t{1} << 11);
    CHECK((cpuid_leaf(cx, 1, 0).edx & 1u << 9) == 0);
    cx.vcpu_index = 2;
    cx.vcpu_count = 6;
    CHECK((cpuid_leaf(cx, 1, 0).ebx >> 24) == 2);
    CHECK((cpuid_leaf(cx, 1, 0).ebx >> 16 & 0xff) == 8);
    CHECK((cpuid_leaf(cx, 1, 0).ecx & 1u << 27) == 0);
    CHECK((cpuid_leaf(cx, 1, 0).edx & 1u << 28) != 0);
    rig.state.cr4 |= CR4_OSXSAVE;
    CHECK((cpuid_leaf(cx, 1, 0).ecx & 1u << 27) != 0);
    CHECK(cpuid_leaf(cx, 0xb, 0).ebx == 1);
    CHECK(cpuid_leaf(cx, 0xb, 1).eax == 3);
    CHECK(cpuid_leaf(cx, 0xb, 1).ebx == 6);
    CHECK(cpuid_leaf(cx, 0xb, 2).ecx == 2);
    CHECK(cpuid_leaf(cx, 0xb, 2).edx == 2);
    CHECK(cpuid_leaf(cx, 0xd, 0).ebx == 576);
    rig.state.xcr0 = 7;
    CHECK(cpuid_leaf(cx, 0xd, 0).ebx == 832);
    CHECK(cpuid_leaf(cx, 0xd, 0).ecx == 832);
    CHECK(cpuid_leaf(cx, 0x4000'0000, 0).ebx == 0x4b4d564b);
    CHECK(cpuid_leaf(cx, 0x1234, 0).eax == 0);
    rig.state.gpr[Rax] = 0xffff'ffff'0000'0000;
    cpuid(cx);
    CHECK(rig.state.gpr[Rbx] == 0x756e6547); // "Genu"
}

TEST_CASE("features of the models") {
    const Rig v1{"x86-64-v1"}, v2{"x86-64-v2"}, v3;
    CHECK(v1.cx->features.has(IsaFeature::Sse2));
    CHECK(v1.cx->features.has(IsaFeature::None));
    CHECK_FALSE(v1.cx->features.has(IsaFeature::Sse3));
    CHECK_FALSE(v1.cx->features.has(IsaFeature::Invpcid));
    CHECK(v2.cx->features.has(IsaFeature::Sse42));
    CHECK_FALSE(v2.cx->features.has(IsaFeature::Avx));
    CHECK(v3.cx->features.has(IsaFeature::Avx2));
    CHECK(v3.cx->features.has(IsaFeature::Xsaves));
    CHECK_FALSE(v3.cx->features.has(IsaFeature::Monitor));
    CHECK_FALSE(v3.cx->features.has(IsaFeature::Vmx));
    CHECK((v3.cx->traits.cr4_allowed & CR4_SMAP) != 0);
    CHECK((v1.cx->traits.cr4_allowed & CR4_SMAP) == 0);
    CHECK(v3.cx->traits.xcr0_allowed == 7);
    CHECK(v3.cx->traits.huge_pages);
}
