// SPDX-License-Identifier: Apache-2.0
#include "machine/boot_state.hpp"

#include "machine/pc_map.hpp"

namespace doppel::machine {

using namespace cpu::x86;

namespace {

using Mode = firmware::BootState::Mode;

// Intel SDM (June 2025) Vol. 3A §3.4.5.1: accessed code, execute/read; accessed data, read/write.
constexpr std::uint16_t kCode = 0xb, kData = 0x3, kBusyTss32 = 0xb;
constexpr std::uint16_t kFlat = Segment::kS | Segment::kPresent | Segment::kGranular;

Segment flat_segment(std::uint16_t selector, std::uint16_t access) {
    return {.base = 0,
            .limit = 0xffff'ffff,
            .selector = selector,
            .access = static_cast<std::uint16_t>(kFlat | access)};
}

Segment real_segment(std::uint16_t selector, std::uint16_t type) {
    return {.base = std::uint64_t{selector} * 16,
            .limit = 0xffff,
            .selector = selector,
            .access = static_cast<std::uint16_t>(Segment::kS | Segment::kPresent | type)};
}

void set_data_segments(CpuState& state, const Segment& segment) {
    for (const auto index : {Es, Ss, Ds, Fs, Gs})
        state.segment[index] = segment;
}

void set_protected(const firmware::BootState& boot, CpuState& state) {
    const bool is_long = boot.mode == Mode::Long64;
    state.segment[Cs] = flat_segment(
        boot.code_segment,
        static_cast<std::uint16_t>(kCode | (is_long ? Segment::kLong : Segment::kDefaultBig)));
    set_data_segments(state, flat_segment(boot.data_segment, kData | Segment::kDefaultBig));
    state.tr = {.base = 0,
                .limit = 0x67,
                .selector = 0,
                .access = static_cast<std::uint16_t>(kBusyTss32 | Segment::kPresent)};
    state.gdtr = {boot.gdt_base, boot.gdt_limit};
    state.cr0 = CR0_PE | CR0_ET;
    if (is_long) {
        state.cr3 = boot.cr3;
        state.cr4 = CR4_PAE;
        state.efer = EFER_LME | EFER_LMA;
        state.cr0 |= CR0_PG;
    }
}

} // namespace

void apply_boot_state(const firmware::BootState& boot, CpuState& state) {
    state.gpr = {};
    state.gpr[Rax] = boot.rax;
    state.gpr[Rbx] = boot.rbx;
    state.gpr[Rdx] = boot.rdx;
    state.gpr[Rsi] = boot.rsi;
    state.gpr[Rsp] = boot.rsp;
    state.rip = boot.rip;
    state.rflags = 2;
    if (boot.mode == Mode::Real16) {
        state.segment[Cs] = real_segment(boot.code_segment, kCode);
        set_data_segments(state, real_segment(boot.data_segment, kData));
        state.idtr = {0, 0x3ff};
        return;
    }
    set_protected(boot, state);
}

void apply_memory_types(CpuState& state, unsigned physical_bits) {
    constexpr std::uint64_t kWriteBack = 6, kAllWriteBack = 0x0606'0606'0606'0606;
    constexpr std::uint64_t kFixedEnabled = 1u << 10, kEnabled = 1u << 11, kValid = 1u << 11;
    constexpr std::size_t kVga = 2; // IA32_MTRR_FIX16K_A0000
    static_assert(pc::kLowMemoryEnd == 0xa0000 && pc::kExtendedBase == 0xc0000);
    state.mtrr_fixed.fill(kAllWriteBack);
    state.mtrr_fixed[kVga] = 0; // uncacheable
    const auto hole = pc::kHighBase - pc::kLowRamLimit;
    static_assert(((pc::kHighBase - pc::kLowRamLimit) & (pc::kHighBase - pc::kLowRamLimit - 1)) ==
                  0);
    state.mtrr_variable[0] = pc::kLowRamLimit; // uncacheable
    state.mtrr_variable[1] = ((std::uint64_t{1} << physical_bits) - hole) | kValid;
    state.mtrr_def_type = kWriteBack | kFixedEnabled | kEnabled;
}

} // namespace doppel::machine
