// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Every model-specific register that lives in CpuState or has a constant answer, as data.
/// Intel SDM (June 2025) Vol. 4 table 2-2; AMD APM Vol. 2 appendix A; BKDG/PPR for those from
/// 0xc0010000.
#include <cstdint>

#include "cpu/x86/cpu_state.hpp"

namespace doppel::cpu::x86 {

enum class MsrKind : std::uint8_t {
    Plain,    // a member; bits outside `mask` are #GP(0)
    Address,  // a member that must stay canonical
    Constant, // reads `value`; writing is #GP(0)
    Tolerant, // reads `value`; writes are dropped
    Command,  // write-only, without effect here; bits outside `mask` are #GP(0)
    Special,  // msr.cpp knows it
};

/// Which CPUs have it.
enum class MsrGate : std::uint8_t {
    Always,
    Intel,
    Amd,
    SpecCtrl,
    ArchCapabilities,
    Xsaves,
    TscAux,
    TscAdjust,
    LongMode
};

struct MsrRow {
    std::uint32_t index;
    MsrKind kind;
    MsrGate gate;
    const char* name;
    std::uint64_t CpuState::* member; // Plain and Address
    std::uint64_t mask;               // writable bits
    std::uint64_t value;              // what it reads, if constant
};

inline constexpr std::uint32_t IA32_TSC = 0x10, IA32_APIC_BASE = 0x1b, IA32_TSC_ADJUST = 0x3b,
                               IA32_PAT = 0x277, IA32_MTRR_DEF_TYPE = 0x2ff, IA32_EFER = 0xc0000080,
                               IA32_FS_BASE = 0xc0000100, IA32_GS_BASE = 0xc0000101,
                               IA32_MTRR_PHYSBASE0 = 0x200, IA32_MC0_CTL = 0x400,
                               IA32_DEBUGCTL = 0x1d9;

/// By binary search; nullptr when there is no such row.
const MsrRow* find_msr(std::uint32_t index);

} // namespace doppel::cpu::x86
