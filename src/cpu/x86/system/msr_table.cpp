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
    {0x00000000, Tolerant, Intel, "IA32_P5_MC_ADDR", nullptr, 0, 0},
    {0x00000001, Tolerant, Intel, "IA32_P5_MC_TYPE", nullptr, 0, 0},
    {IA32_TSC, Special, Always, "IA32_TIME_STAMP_COUNTER", nullptr, 0, 0},
    {0x00000017, Constant, Intel, "IA32_PLATFORM_ID", nullptr, 0, 0},
    {0x0000002a, Tolerant, Intel, "MSR_EBL_CR_POWERON", nullptr, 0, 0},
    {0x00000034, Constant, Intel, "MSR_SMI_COUNT", nullptr, 0, 0},
    {0x0000003a, Constant, Intel, "IA32_FEATURE_CONTROL", nullptr, 0, 1}, // locked, no VMX
    {IA32_TSC_ADJUST, Special, TscAdjust, "IA32_TSC_ADJUST", nullptr, 0, 0},
    {0x00000048, Plain, SpecCtrl, "IA32_SPEC_CTRL", &S::spec_ctrl, kSpecCtrl, 0},
    {0x00000049, Command, SpecCtrl, "IA32_PRED_CMD", nullptr, 0x1, 0},
    {0x00000079, Command, Always, "IA32_BIOS_UPDT_TRIG", nullptr, kAll, 0},
    {0x0000008b, Tolerant, Always, "IA32_BIOS_SIGN_ID", nullptr, 0, kMicrocodeRevision},
    {0x000000ce, Constant, Intel, "MSR_PLATFORM_INFO", nullptr, 0, 0},
    {0x000000e2, Tolerant, Intel, "MSR_PKG_CST_CONFIG_CONTROL", nullptr, 0, 0},
    {0x000000fe, Constant, Always, "IA32_MTRRCAP", nullptr, 0, kMtrrCap},
    {0x0000010a, Constant, ArchCapabilities, "IA32_ARCH_CAPABILITIES", nullptr, 0,
     kArchCapabilities},
    {0x0000010b, Command, SpecCtrl, "IA32_FLUSH_CMD", nullptr, 0x1, 0},
    {0x0000011e, Tolerant, Intel, "MSR_BBL_CR_CTL3", nullptr, 0, 0xbe70'2111},
    {0x00000140, Plain, Intel, "MSR_MISC_FEATURES_ENABLES", nullptr, 0, 0},
    {0x00000174, Plain, Always, "IA32_SYSENTER_CS", &S::sysenter_cs, kLow32, 0},
    {0x00000175, Address, Always, "IA32_SYSENTER_ESP", &S::sysenter_esp, kAll, 0},
    {0x00000176, Address, Always, "IA32_SYSENTER_EIP", &S::sysenter_eip, kAll, 0},
    {0x00000179, Constant, Always, "IA32_MCG_CAP", nullptr, 0, kMcgCap},
    {0x0000017a, Plain, Always, "IA32_MCG_STATUS", &S::mcg_status, 0x7, 0},
    {0x00000198, Constant, Intel, "IA32_PERF_STATUS", nullptr, 0, 0},
    {0x00000199, Tolerant, Intel, "IA32_PERF_CTL", nullptr, 0, 0},
    {0x0000019a, Tolerant, Intel, "IA32_CLOCK_MODULATION", nullptr, 0, 0},
    {0x0000019b, Tolerant, Intel, "IA32_THERM_INTERRUPT", nullptr, 0, 0},
    {0x0000019c, Tolerant, Intel, "IA32_THERM_STATUS", nullptr, 0, 0},
    {0x000001a0, Plain, Intel, "IA32_MISC_ENABLE", &S::misc_enable, kMiscEnableWritable, 0},
    {0x000001a2, Constant, Intel, "MSR_TEMPERATURE_TARGET", nullptr, 0, 0},
    {0x000001b0, Tolerant, Intel, "IA32_ENERGY_PERF_BIAS", nullptr, 0, 0},
    {IA32_DEBUGCTL, Plain, Always, "IA32_DEBUGCTL", &S::debugctl, DEBUGCTL_BTF, 0},
    {0x000001db, Constant, Always, "LASTBRANCHFROMIP", nullptr, 0, 0},
    {0x000001dc, Constant, Always, "LASTBRANCHTOIP", nullptr, 0, 0},
    {0x000001dd, Constant, Always, "LASTINTFROMIP", nullptr, 0, 0},
    {0x000001de, Constant, Always, "LASTINTTOIP", nullptr, 0, 0},
    {IA32_PAT, Special, Always, "IA32_PAT", nullptr, 0, 0},
    {IA32_MTRR_DEF_TYPE, Special, Always, "IA32_MTRR_DEF_TYPE", nullptr, 0, 0},
    {0x00000da0, Plain, Xsaves, "IA32_XSS", &S::xss, 0, 0}, // no supervisor components
    {IA32_EFER, Special, Always, "IA32_EFER", nullptr, 0, 0},
    {0xc0000081, Plain, LongMode, "IA32_STAR", &S::star, kAll, 0},
    {0xc0000082, Address, LongMode, "IA32_LSTAR", &S::lstar, kAll, 0},
    {0xc0000083, Address, LongMode, "IA32_CSTAR", &S::cstar, kAll, 0},
    {0xc0000084, Plain, LongMode, "IA32_FMASK", &S::fmask, kLow32, 0},
    {IA32_FS_BASE, Special, LongMode, "IA32_FS_BASE", nullptr, 0, 0},
    {IA32_GS_BASE, Special, LongMode, "IA32_GS_BASE", nullptr, 0, 0},
    {0xc0000102, Address, LongMode, "IA32_KERNEL_GS_BASE", &S::kernel_gs_base, kAll, 0},
    {0xc0000103, Plain, TscAux, "IA32_TSC_AUX", &S::tsc_aux, kLow32, 0},
    {0xc0000104, Tolerant, Amd, "TSC_RATIO", nullptr, 0, std::uint64_t{1} << 32},
    {0xc0010010, Tolerant, Amd, "SYSCFG", nullptr, 0, 0},
    {0xc0010015, Tolerant, Amd, "HWCR", nullptr, 0, 1u << 24}, // TscFreqSel: P0, as Linux wants
    {0xc001001a, Tolerant, Amd, "TOP_MEM", nullptr, 0, 0},
    {0xc001001d, Tolerant, Amd, "TOP_MEM2", nullptr, 0, 0},
    {0xc001001f, Tolerant, Amd, "NB_CFG", nullptr, 0, 0},
    {0xc0010055, Tolerant, Amd, "INT_PENDING_MSG", nullptr, 0, 0},
    {0xc0010058, Tolerant, Amd, "MMIO_CFG_BASE", nullptr, 0, 0},
    {0xc0010061, Tolerant, Amd, "PSTATE_CUR_LIMIT", nullptr, 0, 0},
    {0xc0010062, Tolerant, Amd, "PSTATE_CTL", nullptr, 0, 0},
    {0xc0010063, Tolerant, Amd, "PSTATE_STATUS", nullptr, 0, 0},
    {0xc0010114, Tolerant, Amd, "VM_CR", nullptr, 0, 1u << 4}, // SVM disabled
    {0xc0010140, Tolerant, Amd, "OSVW_ID_LENGTH", nullptr, 0, 0},
    {0xc0010141, Tolerant, Amd, "OSVW_STATUS", nullptr, 0, 0},
    {0xc0011020, Tolerant, Amd, "LS_CFG", nullptr, 0, 0},
    {0xc0011021, Tolerant, Amd, "IC_CFG", nullptr, 0, 0},
    {0xc0011022, Tolerant, Amd, "DC_CFG", nullptr, 0, 0},
    {0xc0011023, Tolerant, Amd, "BU_CFG", nullptr, 0, 0},
    {0xc0011029, Tolerant, Amd, "DE_CFG", nullptr, 0, 0x2}, // LFENCE is serialising
    {0xc001102a, Tolerant, Amd, "BU_CFG2", nullptr, 0, 0},
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
