// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The architectural state of one x86-64 vCPU, shared by every engine: a VM saved on one continues
/// on another. Intel SDM (June 2025), AMD APM Vol. 2 rev. 3.43.
///
/// Between instructions `rip` is the next instruction (of a REP string instruction in progress: the
/// instruction itself, with rcx/rsi/rdi where it stands), so there is no hidden state.
/// Layout matters: the translator's frame contains this struct and reaches its head with short
/// displacements.
#include <array>
#include <cstddef>
#include <cstdint>

namespace doppel::cpu::x86 {

enum Gpr : std::uint8_t {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15
};
enum SegmentIndex : std::uint8_t { Es, Cs, Ss, Ds, Fs, Gs, kSegments };

/// Segment register with its hidden part. `access` is bits 8..23 of the descriptor's high dword
/// shifted to bit 0, without the limit bits: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14,
/// G 15. A null selector loaded in protected mode clears P (unusable).
struct Segment {
    std::uint64_t base = 0;
    std::uint32_t limit = 0; // in bytes, granularity applied
    std::uint16_t selector = 0;
    std::uint16_t access = 0;

    static constexpr std::uint16_t kTypeMask = 0x000f, kS = 0x0010, kDplMask = 0x0060,
                                   kPresent = 0x0080, kAvl = 0x1000, kLong = 0x2000,
                                   kDefaultBig = 0x4000, kGranular = 0x8000;
    constexpr unsigned type() const { return access & kTypeMask; }
    constexpr unsigned dpl() const { return (access & kDplMask) >> 5; }
    constexpr bool present() const { return (access & kPresent) != 0; }
    constexpr bool is_long() const { return (access & kLong) != 0; }
    constexpr bool default_big() const { return (access & kDefaultBig) != 0; }
    /// Data that can be written, and no 32-bit offset is beyond the limit; the base is any.
    constexpr bool reaches_everywhere() const {
        constexpr unsigned kCode = 8, kExpandDown = 4, kWritable = 2;
        return present() && (access & kS) != 0 && limit == 0xffff'ffff &&
               (type() & (kCode | kExpandDown | kWritable)) == kWritable;
    }
};

struct DescriptorTable {
    std::uint64_t base = 0;
    std::uint16_t limit = 0;
};

/// What the CPU is doing when it does not execute instructions.
enum class Activity : std::uint8_t { Running, Halted, WaitForSipi, Shutdown };

/// x87, SSE and AVX state in the standard (non-compacted) XSAVE format of Intel SDM Vol. 1 §13.4:
/// legacy region 0..511, header 512..575, YMM_Hi128 at 576. Room up to 832 bytes covers XCR0 = 7.
/// FOP, FIP and FDP of the legacy region are the guest's own (never those of a host instruction).
struct alignas(64) XsaveArea {
    static constexpr std::size_t kBytes = 832;
    std::array<std::byte, kBytes> bytes{};
};

struct CpuState {
    // --- hot: within 128 bytes of the start ---
    std::array<std::uint64_t, 16>
        gpr{}; // encoding order: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8…
    std::uint64_t rip = 0;
    std::uint64_t rflags = 2; // all of it, materialised whenever an engine is outside guest code

    // --- control ---
    std::uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0; // CR8 lives in the InterruptPort
    std::uint64_t efer = 0;
    std::uint64_t xcr0 = 1;
    std::array<Segment, kSegments> segment{}; // es cs ss ds fs gs
    Segment ldtr, tr;
    DescriptorTable gdtr, idtr;
    std::uint8_t cpl = 0; // cached SS.DPL (real mode 0, V86 3)

    Activity activity = Activity::Running;
    bool sti_shadow = false;    // interrupts wait for the end of the next instruction (STI)
    bool mov_ss_shadow = false; // likewise debug exceptions and NMI (MOV SS, POP SS)
    bool nmi_blocked = false;   // until IRET

    std::array<std::uint64_t, 4> dr{}; // DR0..DR3
    std::uint64_t dr6 = 0xffff0ff0, dr7 = 0x400;

    // --- MSRs ---
    std::uint64_t star = 0, lstar = 0, cstar = 0, fmask = 0, kernel_gs_base = 0;
    std::uint64_t sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
    std::uint64_t tsc_offset = 0; // guest TSC = scaled clock + tsc_offset
    std::uint64_t tsc_adjust = 0; // IA32_TSC_ADJUST
    std::uint64_t tsc_aux = 0;
    std::uint64_t pat = 0x0007'0406'0007'0406;
    std::uint64_t misc_enable = 1;
    std::uint64_t spec_ctrl = 0;
    std::uint64_t mtrr_def_type = 0;
    std::array<std::uint64_t, 11> mtrr_fixed{};
    std::array<std::uint64_t, 16> mtrr_variable{}; // base, mask, base, mask, …
    std::array<std::uint64_t, 32> mc_banks{};      // MCi_CTL, STATUS, ADDR, MISC of 8 banks
    std::uint64_t mcg_status = 0;
    std::uint64_t xss = 0;
    std::uint64_t debugctl = 0;
    std::array<std::uint64_t, 4> pdpte{}; // PDPTE registers of PAE paging (Vol. 3A §4.4.1)
    std::uint64_t pending_debug = 0;      // DR6 bits of #DB traps that wait for the next boundary

    XsaveArea xsave;
};

// --- bits, named as in the manuals ---
inline constexpr std::uint64_t CR0_PE = 1u << 0, CR0_MP = 1u << 1, CR0_EM = 1u << 2,
                               CR0_TS = 1u << 3, CR0_ET = 1u << 4, CR0_NE = 1u << 5,
                               CR0_WP = 1u << 16, CR0_AM = 1u << 18, CR0_NW = 1u << 29,
                               CR0_CD = 1u << 30, CR0_PG = 1u << 31;
inline constexpr std::uint64_t CR4_VME = 1u << 0, CR4_PVI = 1u << 1, CR4_TSD = 1u << 2,
                               CR4_DE = 1u << 3, CR4_PSE = 1u << 4, CR4_PAE = 1u << 5,
                               CR4_MCE = 1u << 6, CR4_PGE = 1u << 7, CR4_PCE = 1u << 8,
                               CR4_OSFXSR = 1u << 9, CR4_OSXMMEXCPT = 1u << 10, CR4_UMIP = 1u << 11,
                               CR4_LA57 = 1u << 12, CR4_FSGSBASE = 1u << 16, CR4_PCIDE = 1u << 17,
                               CR4_OSXSAVE = 1u << 18, CR4_SMEP = 1u << 20, CR4_SMAP = 1u << 21,
                               CR4_PKE = 1u << 22;
inline constexpr std::uint64_t EFER_SCE = 1u << 0, EFER_LME = 1u << 8, EFER_LMA = 1u << 10,
                               EFER_NXE = 1u << 11, EFER_FFXSR = 1u << 14,
                               EFER_AIBRSE = 1u << 21; // AMD: automatic IBRS
inline constexpr std::uint64_t FLAG_CF = 1u << 0, FLAG_PF = 1u << 2, FLAG_AF = 1u << 4,
                               FLAG_ZF = 1u << 6, FLAG_SF = 1u << 7, FLAG_TF = 1u << 8,
                               FLAG_IF = 1u << 9, FLAG_DF = 1u << 10, FLAG_OF = 1u << 11,
                               FLAG_IOPL = 3u << 12, FLAG_NT = 1u << 14, FLAG_RF = 1u << 16,
                               FLAG_VM = 1u << 17, FLAG_AC = 1u << 18, FLAG_VIF = 1u << 19,
                               FLAG_VIP = 1u << 20, FLAG_ID = 1u << 21;
inline constexpr std::uint64_t DEBUGCTL_BTF = 1u << 1; // single steps are branches
inline constexpr std::uint64_t kArithmeticFlags =
    FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF;

enum class Vector : std::uint8_t {
    DE = 0,
    DB = 1,
    NMI = 2,
    BP = 3,
    OF = 4,
    BR = 5,
    UD = 6,
    NM = 7,
    DF = 8,
    TS = 10,
    NP = 11,
    SS = 12,
    GP = 13,
    PF = 14,
    MF = 16,
    AC = 17,
    MC = 18,
    XM = 19
};

} // namespace doppel::cpu::x86
