// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/msr_table.hpp"

#include <cstddef>

namespace doppel::cpu::x86 {

namespace {

using enum MsrKind;
using enum MsrGate;
using S = CpuState;

constexpr std::uint64_t kAll = ~std::uint64_t{0};
constexpr std::uint64_t kLow32 = 0xffff'ffff;
/// MCG_CAP: 8 banks, no MCG_CTL, no threshold, no software error recovery.
constexpr std::uint64_t kMcgCap = 8;
/// MTRRCAP: 8 variable ranges, fixed ranges, write-combining.
constexpr std::uint64_t kMtrrCap = 8 | 1 << 8 | 1 << 10;
constexpr std::uint64_t kSpecCtrl = 1u << 0 | 1u << 1 | 1u << 2 | 1u << 10; // …, BHI_DIS_S
/// RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO: guest code never runs on the CPU
/// as it is written, so the guest's own software mitigations would only cost.
constexpr std::uint64_t kArchCapabilities =
    1u << 0 | 1u << 1 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 8 | 1u << 13 | 1u << 14 |
    1u << 15 | 1u << 20 | 1u << 24 | 1u << 26 | 1u << 27 | std::uint64_t{1} << 62;
constexpr std::uint64_t kMicrocodeRevision = std::uint64_t{0x2b00'0603} << 32;
/// FAST_STRINGS, automatic thermal control, BTS and PEBS unavailable; XD disable, MONITOR and
/// CPUID limit stay off.
constexpr std::uint64_t kMiscEnableWritable = 1u << 0 | 1u << 3 | 1u << 16 | 1u << 18 | 1u << 22;

constexpr MsrRow kRows[] = {
    {0x00000000, "IA32_P5_MC_ADDR", Tolerant, Intel, nullptr, 0, 0},
    {0x00000001, "IA32_P5_MC_TYPE", Tolerant, Intel, nullptr, 0, 0},
    {IA32_TSC, "IA32_TIME_STAMP_COUNTER", Special, Always, nullptr, 0, 0},
    {0x00000017, "IA32_PLATFORM_ID", Constant, Intel, nullptr, 0, 0},
    {0x0000002a, "MSR_EBL_CR_POWERON", Tolerant, Intel, nullptr, 0, 0},
    {0x00000034, "MSR_SMI_COUNT", Constant, Intel, nullptr, 0, 0},
    {0x0000003a, "IA32_FEATURE_CONTROL", Constant, Intel, nullptr, 0, 1}, // locked, no VMX
    {IA32_TSC_ADJUST, "IA32_TSC_ADJUST", Special, TscAdjust, nullptr, 0, 0},
    {0x00000048, "IA32_SPEC_CTRL", Plain, SpecCtrl, &S::spec_ctrl, kSpecCtrl, 0},
    {0x00000049, "IA32_PRED_CMD", Command, SpecCtrl, nullptr, 0x1, 0},
    {0x00000079, "IA32_BIOS_UPDT_TRIG", Command, Always, nullptr, kAll, 0},
    {0x0000008b, "IA32_BIOS_SIGN_ID", Tolerant, Always, nullptr, 0, kMicrocodeRevision},
    {0x000000ce, "MSR_PLATFORM_INFO", Constant, Intel, nullptr, 0, 0},
    {0x000000e2, "MSR_PKG_CST_CONFIG_CONTROL", Tolerant, Intel, nullptr, 0, 0},
    {0x000000fe, "IA32_MTRRCAP", Constant, Always, nullptr, 0, kMtrrCap},
    {0x0000010a, "IA32_ARCH_CAPABILITIES", Constant, ArchCapabilities, nullptr, 0,
     kArchCapabilities},
    {0x0000010b, "IA32_FLUSH_CMD", Command, SpecCtrl, nullptr, 0x1, 0},
    {0x0000011e, "MSR_BBL_CR_CTL3", Tolerant, Intel, nullptr, 0, 0xbe70'2111},
    {0x00000140, "MSR_MISC_FEATURES_ENABLES", Plain, Intel, nullptr, 0, 0},
    {0x00000174, "IA32_SYSENTER_CS", Plain, Always, &S::sysenter_cs, kLow32, 0},
    {0x00000175, "IA32_SYSENTER_ESP", Address, Always, &S::sysenter_esp, kAll, 0},
    {0x00000176, "IA32_SYSENTER_EIP", Address, Always, &S::sysenter_eip, kAll, 0},
    {0x00000179, "IA32_MCG_CAP", Constant, Always, nullptr, 0, kMcgCap},
    {0x0000017a, "IA32_MCG_STATUS", Plain, Always, &S::mcg_status, 0x7, 0},
    {0x00000198, "IA32_PERF_STATUS", Constant, Intel, nullptr, 0, 0},
    {0x00000199, "IA32_PERF_CTL", Tolerant, Intel, nullptr, 0, 0},
    {0x0000019a, "IA32_CLOCK_MODULATION", Tolerant, Intel, nullptr, 0, 0},
    {0x0000019b, "IA32_THERM_INTERRUPT", Tolerant, Intel, nullptr, 0, 0},
    {0x0000019c, "IA32_THERM_STATUS", Tolerant, Intel, nullptr, 0, 0},
    {0x000001a0, "IA32_MISC_ENABLE", Plain, Intel, &S::misc_enable, kMiscEnableWritable, 0},
    {0x000001a2, "MSR_TEMPERATURE_TARGET", Constant, Intel, nullptr, 0, 0},
    {0x000001b0, "IA32_ENERGY_PERF_BIAS", Tolerant, Intel, nullptr, 0, 0},
    {IA32_DEBUGCTL, "IA32_DEBUGCTL", Plain, Always, &S::debugctl, 0x2, 0}, // BTF
    {0x000001db, "LASTBRANCHFROMIP", Constant, Always, nullptr, 0, 0},
    {0x000001dc, "LASTBRANCHTOIP", Constant, Always, nullptr, 0, 0},
    {0x000001dd, "LASTINTFROMIP", Constant, Always, nullptr, 0, 0},
    {0x000001de, "LASTINTTOIP", Constant, Always, nullptr, 0, 0},
    {IA32_PAT, "IA32_PAT", Special, Always, nullptr, 0, 0},
    {IA32_MTRR_DEF_TYPE, "IA32_MTRR_DEF_TYPE", Special, Always, nullptr, 0, 0},
    {0x00000da0, "IA32_XSS", Plain, Xsaves, &S::xss, 0, 0}, // no supervisor components
    {IA32_EFER, "IA32_EFER", Special, Always, nullptr, 0, 0},
    {0xc0000081, "IA32_STAR", Plain, LongMode, &S::star, kAll, 0},
    {0xc0000082, "IA32_LSTAR", Address, LongMode, &S::lstar, kAll, 0},
    {0xc0000083, "IA32_CSTAR", Address, LongMode, &S::cstar, kAll, 0},
    {0xc0000084, "IA32_FMASK", Plain, LongMode, &S::fmask, kLow32, 0},
    {IA32_FS_BASE, "IA32_FS_BASE", Special, LongMode, nullptr, 0, 0},
    {IA32_GS_BASE, "IA32_GS_BASE", Special, LongMode, nullptr, 0, 0},
    {0xc0000102, "IA32_KERNEL_GS_BASE", Address, LongMode, &S::kernel_gs_base, kAll, 0},
    {0xc0000103, "IA32_TSC_AUX", Plain, TscAux, &S::tsc_aux, kLow32, 0},
    {0xc0000104, "TSC_RATIO", Tolerant, Amd, nullptr, 0, std::uint64_t{1} << 32},
    {0xc0010010, "SYSCFG", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010015, "HWCR", Tolerant, Amd, nullptr, 0, 1u << 24}, // TscFreqSel: P0, as Linux wants
    {0xc001001a, "TOP_MEM", Tolerant, Amd, nullptr, 0, 0},
    {0xc001001d, "TOP_MEM2", Tolerant, Amd, nullptr, 0, 0},
    {0xc001001f, "NB_CFG", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010055, "INT_PENDING_MSG", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010058, "MMIO_CFG_BASE", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010061, "PSTATE_CUR_LIMIT", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010062, "PSTATE_CTL", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010063, "PSTATE_STATUS", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010114, "VM_CR", Tolerant, Amd, nullptr, 0, 1u << 4}, // SVM disabled
    {0xc0010140, "OSVW_ID_LENGTH", Tolerant, Amd, nullptr, 0, 0},
    {0xc0010141, "OSVW_STATUS", Tolerant, Amd, nullptr, 0, 0},
    {0xc0011020, "LS_CFG", Tolerant, Amd, nullptr, 0, 0},
    {0xc0011021, "IC_CFG", Tolerant, Amd, nullptr, 0, 0},
    {0xc0011022, "DC_CFG", Tolerant, Amd, nullptr, 0, 0},
    {0xc0011023, "BU_CFG", Tolerant, Amd, nullptr, 0, 0},
    {0xc0011029, "DE_CFG", Tolerant, Amd, nullptr, 0, 0x2}, // LFENCE is serialising
    {0xc001102a, "BU_CFG2", Tolerant, Amd, nullptr, 0, 0},
};
constexpr std::size_t kCount = sizeof kRows / sizeof kRows[0];

constexpr bool sorted() {
    for (std::size_t i = 1; i < kCount; ++i)
        if (kRows[i - 1].index >= kRows[i].index)
            return false;
    return true;
}
static_assert(sorted());

} // namespace

const MsrRow* find_msr(std::uint32_t index) {
    std::size_t low = 0, high = kCount;
    while (low < high) {
        const std::size_t middle = (low + high) / 2;
        if (kRows[middle].index < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low < kCount && kRows[low].index == index ? &kRows[low] : nullptr;
}

} // namespace doppel::cpu::x86
