// SPDX-License-Identifier: Apache-2.0
/// RESET, INIT and SIPI. Intel SDM (June 2025) Vol. 3A table 10-1, §10.4.
#include "cpu/x86/system/cpuid.hpp"
#include "cpu/x86/system/exceptions.hpp"
#include "cpu/x86/system/paging.hpp"

namespace doppel::cpu::x86 {

namespace {

/// memset() is not to be called here, and g++ makes one of any loop or `= {}` this long.
void clear(void* start, std::size_t bytes) {
    asm volatile("rep stosb" : "+D"(start), "+c"(bytes) : "a"(0) : "memory");
}

constexpr std::uint64_t kCr0AtReset = CR0_CD | CR0_NW | CR0_ET;

Segment real_mode_segment(std::uint16_t selector, std::uint64_t base) {
    return {.base = base,
            .limit = 0xffff,
            .selector = selector,
            .access = Segment::kPresent | Segment::kS | 3};
}

/// What RESET and INIT have in common.
void reset_execution(SystemContext& cx) {
    CpuState& state = cx.state;
    clear(state.gpr.data(), sizeof state.gpr);
    state.gpr[Rdx] = cpuid_leaf(cx, 1, 0).eax;
    state.rip = 0xfff0;
    state.rflags = 2;
    state.cr2 = state.cr3 = state.cr4 = 0;
    state.efer = 0;
    for (Segment& segment : state.segment)
        segment = real_mode_segment(0, 0);
    state.segment[Cs] = real_mode_segment(0xf000, 0xffff'0000);
    state.ldtr = {.limit = 0xffff, .access = Segment::kPresent | 2};
    state.tr = {.limit = 0xffff, .access = Segment::kPresent | 11};
    state.gdtr = state.idtr = {.base = 0, .limit = 0xffff};
    state.cpl = 0;
    state.sti_shadow = state.mov_ss_shadow = state.nmi_blocked = false;
    clear(state.dr.data(), sizeof state.dr);
    state.dr6 = 0xffff'0ff0;
    state.dr7 = 0x400;
    state.pending_debug = 0;
    cx.debug_hits = 0;
    cx.stepping = cx.step_trap = cx.shadowed = cx.resume = false;
}

/// FCW = 40H and tags "valid zero" differ from FNINIT's: the x87 component is in use.
void reset_fpu(CpuState& state) {
    std::byte* area = state.xsave.bytes.data();
    constexpr std::uint16_t fcw = 0x40;
    constexpr std::uint32_t mxcsr = 0x1f80;
    constexpr std::uint64_t in_use = 1;
    clear(area, XsaveArea::kBytes);
    __builtin_memcpy(area, &fcw, sizeof fcw);
    area[4] = std::byte{0xff};
    __builtin_memcpy(area + 24, &mxcsr, sizeof mxcsr);
    __builtin_memcpy(area + 512, &in_use, sizeof in_use);
}

void everything_changed(SystemContext& cx) {
    cx.tlb.switch_to(0);
    flush_tlb(cx, {.kind = TlbFlush::Kind::All});
    cx.changes = ~0u;
}

} // namespace

void reset(SystemContext& cx, Bootstrap bootstrap) {
    CpuState& state = cx.state;
    clear(&state, sizeof state);
    reset_execution(cx);
    reset_fpu(state);
    state.cr0 = kCr0AtReset;
    state.xcr0 = 1;
    state.pat = 0x0007'0406'0007'0406;
    state.misc_enable = 1;
    state.activity = bootstrap == Bootstrap::Yes ? Activity::Running : Activity::WaitForSipi;
    everything_changed(cx);
}

void init(SystemContext& cx, Bootstrap bootstrap) {
    CpuState& state = cx.state;
    const std::uint64_t cache_bits = state.cr0 & (CR0_CD | CR0_NW);
    reset_execution(cx);
    state.cr0 = CR0_ET | cache_bits;
    state.activity = bootstrap == Bootstrap::Yes ? Activity::Running : Activity::WaitForSipi;
    everything_changed(cx);
}

void start_up(SystemContext& cx, std::uint8_t vector) {
    CpuState& state = cx.state;
    state.segment[Cs] =
        real_mode_segment(static_cast<std::uint16_t>(vector << 8), std::uint64_t{vector} << 12);
    state.rip = 0;
    state.activity = Activity::Running;
    cx.changes |= change::kMode | change::kReset | change::kActivity;
}

void state_changed(SystemContext& cx) {
    everything_changed(cx);
    const bool pcide = (cx.state.cr4 & CR4_PCIDE) != 0;
    cx.tlb.switch_to(pcide ? static_cast<std::uint16_t>(cx.state.cr3 & 0xfff) : std::uint16_t{0});
    cx.stepping = cx.step_trap = cx.shadowed = cx.resume = false;
    cx.debug_hits = 0;
}

} // namespace doppel::cpu::x86
