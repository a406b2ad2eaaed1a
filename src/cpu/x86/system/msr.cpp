// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/msr.hpp"

#include "cpu/x86/system/control_registers.hpp"
#include "cpu/x86/system/msr_table.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint32_t kVariableMtrrs = 16, kMcBankRegisters = 32;

/// The fixed-range MTRRs have numbers with gaps; -1: none of them.
int fixed_mtrr(std::uint32_t index) {
    if (index == 0x250)
        return 0;
    if (index == 0x258 || index == 0x259)
        return static_cast<int>(index - 0x258) + 1;
    if (index >= 0x268 && index <= 0x26f)
        return static_cast<int>(index - 0x268) + 3;
    return -1;
}

/// One type per byte: UC, WC, WT, WP, WB, and for the PAT UC- (7).
bool memory_types_are_legal(std::uint64_t value, bool with_uc_minus) {
    for (unsigned i = 0; i < 8; ++i, value >>= 8) {
        const auto type = static_cast<unsigned>(value & 0xff);
        if (type > 7 || type == 2 || type == 3 || (type == 7 && !with_uc_minus))
            return false;
    }
    return true;
}

bool gate_open(const SystemContext& cx, MsrGate gate) {
    switch (gate) {
    case MsrGate::Always: return true;
    case MsrGate::Intel: return !cx.traits.amd;
    case MsrGate::Amd: return cx.traits.amd;
    case MsrGate::SpecCtrl: return cx.traits.spec_ctrl;
    case MsrGate::ArchCapabilities: return cx.traits.arch_capabilities;
    case MsrGate::Xsaves: return cx.features.has(IsaFeature::Xsaves);
    case MsrGate::TscAux:
        return cx.features.has(IsaFeature::Rdtscp) || cx.features.has(IsaFeature::Rdpid);
    case MsrGate::TscAdjust: return cx.traits.tsc_adjust;
    case MsrGate::LongMode: return cx.features.has(IsaFeature::LongMode);
    }
    return false;
}

void write_tsc(SystemContext& cx, std::uint64_t value) {
    const std::uint64_t step = value - guest_tsc(cx);
    cx.state.tsc_offset += step;
    cx.state.tsc_adjust += step;
}

void write_tsc_adjust(SystemContext& cx, std::uint64_t value) {
    cx.state.tsc_offset += value - cx.state.tsc_adjust;
    cx.state.tsc_adjust = value;
}

bool write_base(SystemContext& cx, SegmentIndex segment, std::uint64_t value) {
    if (!is_canonical(value))
        return false;
    cx.state.segment[segment].base = value;
    cx.changes |= change::kSegments;
    return true;
}

bool write_def_type(SystemContext& cx, std::uint64_t value) {
    if ((value & ~std::uint64_t{0xcff}) != 0 || !memory_types_are_legal(value & 0xff, false))
        return false;
    cx.state.mtrr_def_type = value;
    return true;
}

bool read_special(SystemContext& cx, std::uint32_t index, std::uint64_t& value) {
    switch (index) {
    case IA32_TSC: value = guest_tsc(cx); return true;
    case IA32_TSC_ADJUST: value = cx.state.tsc_adjust; return true;
    case IA32_PAT: value = cx.state.pat; return true;
    case IA32_MTRR_DEF_TYPE: value = cx.state.mtrr_def_type; return true;
    case IA32_EFER: value = cx.state.efer; return true;
    case IA32_FS_BASE: value = cx.state.segment[Fs].base; return true;
    case IA32_GS_BASE: value = cx.state.segment[Gs].base; return true;
    default: return false;
    }
}

bool write_special(SystemContext& cx, std::uint32_t index, std::uint64_t value) {
    switch (index) {
    case IA32_TSC:
    case IA32_TSC_ADJUST:
        index == IA32_TSC ? write_tsc(cx, value) : write_tsc_adjust(cx, value);
        static_cast<void>(cx.board.write_msr(index, value)); // for a clock that is made of the TSC
        return true;
    case IA32_PAT:
        if (!memory_types_are_legal(value, true))
            return false;
        cx.state.pat = value;
        return true;
    case IA32_MTRR_DEF_TYPE: return write_def_type(cx, value);
    case IA32_EFER: return write_efer(cx, value);
    case IA32_FS_BASE: return write_base(cx, Fs, value);
    case IA32_GS_BASE: return write_base(cx, Gs, value);
    default: return false;
    }
}

/// MTRRs and machine-check banks; false: none of these.
bool find_ranged(SystemContext& cx, std::uint32_t index, std::uint64_t*& place) {
    if (const int fixed = fixed_mtrr(index); fixed >= 0)
        place = &cx.state.mtrr_fixed[static_cast<unsigned>(fixed)];
    else if (index - IA32_MTRR_PHYSBASE0 < kVariableMtrrs)
        place = &cx.state.mtrr_variable[index - IA32_MTRR_PHYSBASE0];
    else if (index - IA32_MC0_CTL < kMcBankRegisters)
        place = &cx.state.mc_banks[index - IA32_MC0_CTL];
    else
        return false;
    return true;
}

bool ranged_value_is_legal(const SystemContext& cx, std::uint32_t index, std::uint64_t value) {
    if (fixed_mtrr(index) >= 0)
        return memory_types_are_legal(value, false);
    if (index - IA32_MTRR_PHYSBASE0 < kVariableMtrrs) {
        if (value >> cx.traits.physical_bits != 0)
            return false;
        const bool is_mask = index % 2 != 0;
        return is_mask ? (value & 0x7ff) == 0
                       : (value & 0xf00) == 0 && memory_types_are_legal(value & 0xff, false);
    }
    // IA32_MCi_CTL takes any mask; STATUS, ADDR and MISC only 0 (Vol. 3B §17.3.2.2).
    return index % 4 == 0 || value == 0;
}

bool read_row(SystemContext& cx, const MsrRow& row, std::uint64_t& value) {
    if (!gate_open(cx, row.gate))
        return false;
    switch (row.kind) {
    case MsrKind::Plain:
    case MsrKind::Address:
        value = row.member == nullptr ? row.value : cx.state.*row.member;
        return true;
    case MsrKind::Constant:
    case MsrKind::Tolerant: value = row.value; return true;
    case MsrKind::Command: return false;
    case MsrKind::Special: return read_special(cx, row.index, value);
    }
    return false;
}

bool write_row(SystemContext& cx, const MsrRow& row, std::uint64_t value) {
    if (!gate_open(cx, row.gate))
        return false;
    cx.changes |= change::kFastCalls;
    switch (row.kind) {
    case MsrKind::Plain:
        if ((value & ~row.mask) != 0)
            return false;
        if (row.member != nullptr)
            cx.state.*row.member = value;
        return true;
    case MsrKind::Address:
        if (!is_canonical(value))
            return false;
        cx.state.*row.member = value;
        return true;
    case MsrKind::Constant: return false;
    case MsrKind::Tolerant: return true;
    case MsrKind::Command: return (value & ~row.mask) == 0;
    case MsrKind::Special: return write_special(cx, row.index, value);
    }
    return false;
}

bool tsc_allowed(SystemContext& cx) {
    return (cx.state.cr4 & CR4_TSD) == 0 || cx.state.cpl == 0 || cx.gp(0);
}

void set_edx_eax(SystemContext& cx, std::uint64_t value) {
    cx.state.gpr[Rax] = value & 0xffff'ffff;
    cx.state.gpr[Rdx] = value >> 32;
}

} // namespace

bool read_msr(SystemContext& cx, std::uint32_t index, std::uint64_t& value) {
    if (const MsrRow* row = find_msr(index); row != nullptr)
        return read_row(cx, *row, value);
    if (std::uint64_t* place = nullptr; find_ranged(cx, index, place)) {
        value = *place;
        return true;
    }
    return cx.board.read_msr(index, value);
}

bool write_msr(SystemContext& cx, std::uint32_t index, std::uint64_t value) {
    if (const MsrRow* row = find_msr(index); row != nullptr)
        return write_row(cx, *row, value);
    if (std::uint64_t* place = nullptr; find_ranged(cx, index, place)) {
        if (!ranged_value_is_legal(cx, index, value))
            return false;
        *place = value;
        return true;
    }
    cx.changes |= change::kEvents; // the local APIC's registers are among the rest
    return cx.board.write_msr(index, value);
}

bool rdmsr(SystemContext& cx) {
    std::uint64_t value = 0;
    if (cx.state.cpl != 0 || !read_msr(cx, static_cast<std::uint32_t>(cx.state.gpr[Rcx]), value))
        return cx.gp(0);
    set_edx_eax(cx, value);
    return true;
}

bool wrmsr(SystemContext& cx) {
    const std::uint64_t value = (cx.state.gpr[Rax] & 0xffff'ffff) | cx.state.gpr[Rdx] << 32;
    if (cx.state.cpl != 0 || !write_msr(cx, static_cast<std::uint32_t>(cx.state.gpr[Rcx]), value))
        return cx.gp(0);
    return true;
}

std::uint64_t guest_tsc(SystemContext& cx) { return cx.board.tsc() + cx.state.tsc_offset; }

bool rdtsc(SystemContext& cx) {
    if (!tsc_allowed(cx))
        return false;
    set_edx_eax(cx, guest_tsc(cx));
    return true;
}

bool rdtscp(SystemContext& cx) {
    if (!tsc_allowed(cx))
        return false;
    set_edx_eax(cx, guest_tsc(cx));
    cx.state.gpr[Rcx] = cx.state.tsc_aux & 0xffff'ffff;
    return true;
}

/// No counters are offered (CPUID leaf 0AH is empty), so every index is out of range.
bool rdpmc(SystemContext& cx) { return cx.gp(0); }

} // namespace doppel::cpu::x86
