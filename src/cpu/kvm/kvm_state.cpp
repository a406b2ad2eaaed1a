// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/kvm_state.hpp"

#include <algorithm>
#include <cstring>

namespace doppel::cpu::kvm {

using namespace x86;

namespace {

kvm_segment to_segment(const Segment& segment) {
    kvm_segment out{};
    out.base = segment.base;
    out.limit = segment.limit;
    out.selector = segment.selector;
    out.type = static_cast<std::uint8_t>(segment.type());
    out.present = segment.present();
    out.dpl = static_cast<std::uint8_t>(segment.dpl());
    out.db = segment.default_big();
    out.s = (segment.access & Segment::kS) != 0;
    out.l = segment.is_long();
    out.g = (segment.access & Segment::kGranular) != 0;
    out.avl = (segment.access & Segment::kAvl) != 0;
    out.unusable = !segment.present();
    return out;
}

Segment from_segment(const kvm_segment& kernel) {
    const auto flag = [](bool on, std::uint16_t bit) { return on ? bit : std::uint16_t{0}; };
    Segment out{.base = kernel.base, .limit = kernel.limit, .selector = kernel.selector};
    out.access = static_cast<std::uint16_t>(
        (kernel.type & 0xf) | flag(kernel.s != 0, Segment::kS) | (kernel.dpl & 3) << 5 |
        flag(kernel.present != 0 && kernel.unusable == 0, Segment::kPresent) |
        flag(kernel.avl != 0, Segment::kAvl) | flag(kernel.l != 0, Segment::kLong) |
        flag(kernel.db != 0, Segment::kDefaultBig) | flag(kernel.g != 0, Segment::kGranular));
    return out;
}

kvm_dtable to_table(const DescriptorTable& table) {
    kvm_dtable out{};
    out.base = table.base;
    out.limit = table.limit;
    return out;
}

/// PDPTE registers are in use with PAE paging outside long mode (SDM Vol. 3A §4.4.1).
bool uses_pdpte(const CpuState& state) {
    return (state.cr0 & CR0_PG) != 0 && (state.cr4 & CR4_PAE) != 0 && (state.efer & EFER_LMA) == 0;
}

constexpr std::size_t kHeader = 512; // of an XSAVE area: XSTATE_BV, XCOMP_BV

} // namespace

kvm_regs to_regs(const CpuState& state) {
    const auto& gpr = state.gpr;
    kvm_regs out{};
    out.rax = gpr[Rax];
    out.rbx = gpr[Rbx];
    out.rcx = gpr[Rcx];
    out.rdx = gpr[Rdx];
    out.rsi = gpr[Rsi];
    out.rdi = gpr[Rdi];
    out.rsp = gpr[Rsp];
    out.rbp = gpr[Rbp];
    out.r8 = gpr[R8];
    out.r9 = gpr[R9];
    out.r10 = gpr[R10];
    out.r11 = gpr[R11];
    out.r12 = gpr[R12];
    out.r13 = gpr[R13];
    out.r14 = gpr[R14];
    out.r15 = gpr[R15];
    out.rip = state.rip;
    out.rflags = state.rflags;
    return out;
}

void from_regs(const kvm_regs& regs, CpuState& state) {
    state.gpr = {regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
                 regs.r8,  regs.r9,  regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15};
    state.rip = regs.rip;
    state.rflags = regs.rflags;
}

kvm_sregs2 to_sregs(const CpuState& state, const kvm_sregs2& kernel) {
    kvm_sregs2 out{};
    out.cs = to_segment(state.segment[Cs]);
    out.ds = to_segment(state.segment[Ds]);
    out.es = to_segment(state.segment[Es]);
    out.fs = to_segment(state.segment[Fs]);
    out.gs = to_segment(state.segment[Gs]);
    out.ss = to_segment(state.segment[Ss]);
    out.tr = to_segment(state.tr);
    out.ldt = to_segment(state.ldtr);
    out.gdt = to_table(state.gdtr);
    out.idt = to_table(state.idtr);
    out.cr0 = state.cr0;
    out.cr2 = state.cr2;
    out.cr3 = state.cr3;
    out.cr4 = state.cr4;
    out.efer = state.efer;
    out.cr8 = kernel.cr8;
    out.apic_base = kernel.apic_base;
    if (uses_pdpte(state)) {
        out.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
        std::ranges::copy(state.pdpte, out.pdptrs);
    }
    return out;
}

void from_sregs(const kvm_sregs2& sregs, CpuState& state) {
    state.segment[Cs] = from_segment(sregs.cs);
    state.segment[Ds] = from_segment(sregs.ds);
    state.segment[Es] = from_segment(sregs.es);
    state.segment[Fs] = from_segment(sregs.fs);
    state.segment[Gs] = from_segment(sregs.gs);
    state.segment[Ss] = from_segment(sregs.ss);
    state.tr = from_segment(sregs.tr);
    state.ldtr = from_segment(sregs.ldt);
    state.gdtr = {sregs.gdt.base, sregs.gdt.limit};
    state.idtr = {sregs.idt.base, sregs.idt.limit};
    state.cr0 = sregs.cr0;
    state.cr2 = sregs.cr2;
    state.cr3 = sregs.cr3;
    state.cr4 = sregs.cr4;
    state.efer = sregs.efer;
    if ((sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0)
        std::ranges::copy(sregs.pdptrs, state.pdpte.begin());
    const bool is_v86 = (state.rflags & FLAG_VM) != 0;
    const bool is_real = (state.cr0 & CR0_PE) == 0;
    state.cpl = is_v86 ? 3 : is_real ? 0 : static_cast<std::uint8_t>(sregs.ss.dpl & 3);
}

kvm_debugregs to_debugregs(const CpuState& state) {
    kvm_debugregs out{};
    std::ranges::copy(state.dr, out.db);
    out.dr6 = state.dr6;
    out.dr7 = state.dr7;
    return out;
}

void from_debugregs(const kvm_debugregs& registers, CpuState& state) {
    std::ranges::copy(registers.db, state.dr.begin());
    state.dr6 = registers.dr6;
    state.dr7 = registers.dr7;
}

// --- x87 and vectors --------------------------------------------------------------------------

XsaveRegion to_xsave(const CpuState& state) {
    XsaveRegion out{};
    static_assert(sizeof out.region >= XsaveArea::kBytes);
    std::memcpy(out.region, state.xsave.bytes.data(), XsaveArea::kBytes);
    return out;
}

/// Components beyond XCR0 = 7 do not exist for our CPU models.
void from_xsave(const XsaveRegion& area, CpuState& state) {
    std::memcpy(state.xsave.bytes.data(), area.region, XsaveArea::kBytes);
    std::uint64_t header = 0;
    std::memcpy(&header, state.xsave.bytes.data() + kHeader, sizeof header);
    header &= 7;
    std::memcpy(state.xsave.bytes.data() + kHeader, &header, sizeof header);
    std::memset(state.xsave.bytes.data() + kHeader + 8, 0, 56); // no compaction
    // Bytes 416..511 are for software; bytes 28..31 are the host's MXCSR mask.
    std::memset(state.xsave.bytes.data() + 28, 0, 4);
    std::memset(state.xsave.bytes.data() + 416, 0, 96);
}

// --- events -----------------------------------------------------------------------------------

namespace {

constexpr std::uint64_t kDr6Hits = 0xe00f; // BT, BS, BD, B3..B0
constexpr auto kDebugVector = static_cast<std::uint8_t>(Vector::DB);

/// A #DB that waits (with its DR6 bits apart) or was being delivered (with them in DR6).
std::uint64_t debug_in_flight(const kvm_vcpu_events& events, std::uint64_t dr6) {
    if (events.exception.nr != kDebugVector)
        return 0;
    if (events.exception.pending != 0 && events.exception_has_payload != 0)
        return events.exception_payload & kDr6Hits;
    return events.exception.injected != 0 || events.exception.pending != 0 ? dr6 & kDr6Hits : 0;
}

} // namespace

InFlight from_events(const kvm_vcpu_events& events, CpuState& state) {
    state.sti_shadow = (events.interrupt.shadow & KVM_X86_SHADOW_INT_STI) != 0;
    state.mov_ss_shadow = (events.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
    state.nmi_blocked = events.nmi.masked != 0 && events.nmi.injected == 0;
    state.pending_debug = debug_in_flight(events, state.dr6);
    InFlight out;
    if (events.interrupt.injected != 0 && events.interrupt.soft == 0)
        out.interrupt = events.interrupt.nr;
    out.nmi = events.nmi.injected != 0 || events.nmi.pending != 0;
    return out;
}

kvm_vcpu_events to_events(const CpuState& state, const kvm_vcpu_events& kernel, Injected keep) {
    kvm_vcpu_events out{};
    if (keep == Injected::Keep) {
        out.interrupt = kernel.interrupt;
        out.nmi = kernel.nmi;
    }
    out.interrupt.shadow =
        static_cast<std::uint8_t>((state.sti_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
                                  (state.mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0));
    out.nmi.masked = state.nmi_blocked || out.nmi.injected != 0;
    out.flags =
        KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_PAYLOAD;
    if (state.pending_debug != 0) {
        out.exception.pending = 1;
        out.exception.nr = kDebugVector;
        out.exception_has_payload = 1;
        out.exception_payload = state.pending_debug;
    }
    return out;
}

/// An AP waits for its SIPI as it does after INIT.
std::uint32_t to_mp_state(Activity activity) {
    switch (activity) {
    case Activity::Halted: return KVM_MP_STATE_HALTED;
    case Activity::WaitForSipi: return KVM_MP_STATE_INIT_RECEIVED;
    default: return KVM_MP_STATE_RUNNABLE;
    }
}

Activity from_mp_state(std::uint32_t mp_state) {
    switch (mp_state) {
    case KVM_MP_STATE_HALTED:
    case KVM_MP_STATE_AP_RESET_HOLD: return Activity::Halted;
    case KVM_MP_STATE_UNINITIALIZED:
    case KVM_MP_STATE_INIT_RECEIVED: return Activity::WaitForSipi;
    default: return Activity::Running;
    }
}

// --- MSRs -------------------------------------------------------------------------------------

std::size_t msr_places(CpuState& state, std::span<MsrPlace, kMaxMsrs> places) {
    std::size_t count = 0;
    const auto add = [&](std::uint32_t index, std::uint64_t& value) {
        places[count++] = {index, &value};
    };
    add(0x174, state.sysenter_cs);
    add(0x175, state.sysenter_esp);
    add(0x176, state.sysenter_eip);
    add(0xc000'0081, state.star);
    add(0xc000'0082, state.lstar);
    add(0xc000'0083, state.cstar);
    add(0xc000'0084, state.fmask);
    add(0xc000'0102, state.kernel_gs_base);
    add(0xc000'0103, state.tsc_aux);
    add(0x3b, state.tsc_adjust); // by the host: the offset stays
    add(0x277, state.pat);
    add(0x1a0, state.misc_enable);
    add(0x48, state.spec_ctrl);
    add(0x1d9, state.debugctl);
    add(0xda0, state.xss);
    add(0x17a, state.mcg_status);
    add(0x2ff, state.mtrr_def_type);
    constexpr std::uint32_t kFixed[] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                        0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
    for (std::size_t i = 0; i < state.mtrr_fixed.size(); ++i)
        add(kFixed[i], state.mtrr_fixed[i]);
    for (std::uint32_t i = 0; i < state.mtrr_variable.size(); ++i)
        add(0x200 + i, state.mtrr_variable[i]);
    for (std::uint32_t i = 0; i < state.mc_banks.size(); ++i)
        add(0x400 + i, state.mc_banks[i]);
    return count;
}

} // namespace doppel::cpu::kvm
