// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/cpuid.hpp"

#include "cpu/x86/system/msr_table.hpp"
#include "cpu/x86/system/xsave.hpp"

namespace doppel::cpu::x86 {

namespace {

using description::CpuidEntry;
using description::CpuidRegisters;

enum class Register : std::uint8_t { Eax, Ebx, Ecx, Edx };

/// Where CPUID announces what the decoder calls a feature. Intel SDM (June 2025) Vol. 2A, CPUID.
struct FeatureBit {
    std::uint32_t leaf;
    std::uint8_t subleaf;
    IsaFeature feature;
    Register where;
    std::uint8_t bit;
};

using enum IsaFeature;
constexpr std::uint32_t kExtended = 0x8000'0001;
constexpr FeatureBit kFeatureBits[] = {
    {1, 0, Fpu, Register::Edx, 0},
    {1, 0, Tsc, Register::Edx, 4},
    {1, 0, Msr, Register::Edx, 5},
    {1, 0, Cx8, Register::Edx, 8},
    {1, 0, Sep, Register::Edx, 11},
    {1, 0, Cmov, Register::Edx, 15},
    {1, 0, Clflush, Register::Edx, 19},
    {1, 0, Mmx, Register::Edx, 23},
    {1, 0, Fxsr, Register::Edx, 24},
    {1, 0, Sse, Register::Edx, 25},
    {1, 0, Sse2, Register::Edx, 26},
    {1, 0, Sse3, Register::Ecx, 0},
    {1, 0, Pclmulqdq, Register::Ecx, 1},
    {1, 0, Monitor, Register::Ecx, 3},
    {1, 0, Vmx, Register::Ecx, 5},
    {1, 0, Ssse3, Register::Ecx, 9},
    {1, 0, Fma, Register::Ecx, 12},
    {1, 0, Cx16, Register::Ecx, 13},
    {1, 0, Sse41, Register::Ecx, 19},
    {1, 0, Sse42, Register::Ecx, 20},
    {1, 0, Movbe, Register::Ecx, 22},
    {1, 0, Popcnt, Register::Ecx, 23},
    {1, 0, Aes, Register::Ecx, 25},
    {1, 0, Xsave, Register::Ecx, 26},
    {1, 0, Avx, Register::Ecx, 28},
    {1, 0, F16c, Register::Ecx, 29},
    {1, 0, Rdrand, Register::Ecx, 30},
    {7, 0, Fsgsbase, Register::Ebx, 0},
    {7, 0, Bmi1, Register::Ebx, 3},
    {7, 0, Avx2, Register::Ebx, 5},
    {7, 0, Bmi2, Register::Ebx, 8},
    {7, 0, Invpcid, Register::Ebx, 10},
    {7, 0, Rdseed, Register::Ebx, 18},
    {7, 0, Adx, Register::Ebx, 19},
    {7, 0, Smap, Register::Ebx, 20},
    {7, 0, Clflushopt, Register::Ebx, 23},
    {7, 0, Clwb, Register::Ebx, 24},
    {7, 0, Sha, Register::Ebx, 29},
    {7, 0, Gfni, Register::Ecx, 8},
    {7, 0, Vaes, Register::Ecx, 9},
    {7, 0, Vpclmulqdq, Register::Ecx, 10},
    {7, 0, Rdpid, Register::Ecx, 22},
    {0xd, 1, Xsaveopt, Register::Eax, 0},
    {0xd, 1, Xsavec, Register::Eax, 1},
    {0xd, 1, Xsaves, Register::Eax, 3},
    {kExtended, 0, LahfLm, Register::Ecx, 0},
    {kExtended, 0, Svm, Register::Ecx, 2},
    {kExtended, 0, Lzcnt, Register::Ecx, 5},
    {kExtended, 0, Prefetchw, Register::Ecx, 8},
    {kExtended, 0, Syscall, Register::Edx, 11},
    {kExtended, 0, Rdtscp, Register::Edx, 27},
    {kExtended, 0, LongMode, Register::Edx, 29},
    {kExtended, 0, Femms, Register::Edx, 31},
};

CpuidRegisters look_up(const CpuidEntry* entries, std::size_t count, std::uint32_t leaf,
                       std::uint32_t subleaf) {
    for (std::size_t i = 0; i < count; ++i)
        if (entries[i].leaf == leaf && (!entries[i].has_subleaves || entries[i].subleaf == subleaf))
            return entries[i].registers;
    return {};
}

std::uint32_t pick(const CpuidRegisters& registers, Register where) {
    switch (where) {
    case Register::Eax: return registers.eax;
    case Register::Ebx: return registers.ebx;
    case Register::Ecx: return registers.ecx;
    case Register::Edx: return registers.edx;
    }
    return 0;
}

/// Bits of an APIC id that number the vCPUs: one package, one thread per core.
std::uint32_t id_bits(std::uint32_t count) {
    std::uint32_t bits = 0;
    while ((1u << bits) < count)
        ++bits;
    return bits;
}

void fill_leaf1(const SystemContext& cx, CpuidRegisters& out) {
    constexpr std::uint32_t kOsxsave = 1u << 27, kHtt = 1u << 28, kApic = 1u << 9;
    constexpr std::uint64_t kApicEnable = 1u << 11;
    const std::uint32_t ids = 1u << id_bits(cx.vcpu_count);
    out.ebx = (out.ebx & 0xffff) | (ids & 0xff) << 16 | (cx.vcpu_index & 0xff) << 24;
    if (cx.vcpu_count > 1)
        out.edx |= kHtt;
    // A disabled APIC is as if there were none (Vol. 3A §12.4.3).
    if (std::uint64_t base = 0;
        cx.board.read_msr(IA32_APIC_BASE, base) && (base & kApicEnable) == 0)
        out.edx &= ~kApic;
    out.ecx &= ~kOsxsave;
    if ((cx.state.cr4 & CR4_OSXSAVE) != 0)
        out.ecx |= kOsxsave;
}

/// EAX 25:14 = ids that share the cache, less one; 31:26 = ids of cores in the package, less one.
void fill_leaf4(const SystemContext& cx, CpuidRegisters& out) {
    if ((out.eax & 0x1f) == 0)
        return;
    const std::uint32_t others = (1u << id_bits(cx.vcpu_count)) - 1;
    const bool shared = (out.eax >> 5 & 7) == 3;
    out.eax |= (others & 0x3f) << 26 | (shared ? (others & 0xfff) << 14 : 0);
}

void fill_leafb(const SystemContext& cx, std::uint32_t subleaf, CpuidRegisters& out) {
    constexpr std::uint32_t kThreads = 1, kCores = 2;
    out = {.ecx = subleaf & 0xff, .edx = cx.vcpu_index};
    if (subleaf == 0) {
        out.ebx = 1;
        out.ecx |= kThreads << 8;
    } else if (subleaf == 1) {
        out.eax = id_bits(cx.vcpu_count);
        out.ebx = cx.vcpu_count;
        out.ecx |= kCores << 8;
    }
}

void fill_leafd(const SystemContext& cx, std::uint32_t subleaf, CpuidRegisters& out) {
    if (subleaf == 0)
        out.ebx = xsave_size(cx.state.xcr0);
    else if (subleaf == 1)
        out.ebx = xsave_compacted_size(cx.state.xcr0 | cx.state.xss);
}

} // namespace

CpuidRegisters cpuid_leaf(const SystemContext& cx, std::uint32_t leaf, std::uint32_t subleaf) {
    CpuidRegisters out = look_up(cx.cpuid_entries, cx.cpuid_count, leaf, subleaf);
    const bool has_topology =
        leaf == 0xb && look_up(cx.cpuid_entries, cx.cpuid_count, 0, 0).eax >= 0xb;
    switch (leaf) {
    case 1: fill_leaf1(cx, out); break;
    case 4: fill_leaf4(cx, out); break;
    case 0xb:
        if (has_topology)
            fill_leafb(cx, subleaf, out);
        break;
    case 0xd:
        if (cx.features.has(Xsave))
            fill_leafd(cx, subleaf, out);
        break;
    case kExtended:
        if (!cx.traits.amd && !cx.code64()) // Intel shows SYSCALL in 64-bit mode only
            out.edx &= ~(1u << 11);
        break;
    default: break;
    }
    return out;
}

void cpuid(SystemContext& cx) {
    std::uint64_t* gpr = cx.state.gpr.data();
    const CpuidRegisters out =
        cpuid_leaf(cx, static_cast<std::uint32_t>(gpr[Rax]), static_cast<std::uint32_t>(gpr[Rcx]));
    gpr[Rax] = out.eax;
    gpr[Rbx] = out.ebx;
    gpr[Rcx] = out.ecx;
    gpr[Rdx] = out.edx;
}

FeatureSet features_of(const description::CpuModel& model) {
    const CpuidEntry* entries = model.cpuid.data();
    const std::size_t count = model.cpuid.size();
    FeatureSet set;
    set.add(None);
    for (const FeatureBit& row : kFeatureBits) {
        const CpuidRegisters registers = look_up(entries, count, row.leaf, row.subleaf);
        if ((pick(registers, row.where) >> row.bit & 1) != 0)
            set.add(row.feature);
    }
    return set;
}

namespace {

std::uint64_t cr4_of(const CpuidRegisters& one, const CpuidRegisters& seven) {
    const auto gated = [](std::uint32_t word, unsigned bit, std::uint64_t bits) {
        return (word >> bit & 1) != 0 ? bits : std::uint64_t{0};
    };
    return CR4_TSD | CR4_DE | CR4_PCE | gated(one.edx, 1, CR4_VME | CR4_PVI) |
           gated(one.edx, 3, CR4_PSE) | gated(one.edx, 6, CR4_PAE) | gated(one.edx, 7, CR4_MCE) |
           gated(one.edx, 13, CR4_PGE) | gated(one.edx, 24, CR4_OSFXSR) |
           gated(one.edx, 25, CR4_OSXMMEXCPT) | gated(one.ecx, 17, CR4_PCIDE) |
           gated(one.ecx, 26, CR4_OSXSAVE) | gated(seven.ebx, 0, CR4_FSGSBASE) |
           gated(seven.ebx, 7, CR4_SMEP) | gated(seven.ebx, 20, CR4_SMAP) |
           gated(seven.ecx, 2, CR4_UMIP);
}

} // namespace

ModelTraits traits_of(const description::CpuModel& model) {
    const auto leaf = [&](std::uint32_t number, std::uint32_t subleaf) {
        return look_up(model.cpuid.data(), model.cpuid.size(), number, subleaf);
    };
    const CpuidRegisters seven = leaf(7, 0), extended = leaf(kExtended, 0);
    constexpr std::uint32_t kAuthenticAmdEbx = 0x6874'7541; // "Auth"
    const auto bit = [](std::uint32_t word, unsigned number) { return (word >> number & 1) != 0; };
    ModelTraits traits;
    traits.cr4_allowed = cr4_of(leaf(1, 0), seven);
    traits.efer_allowed = (bit(extended.edx, 11) ? EFER_SCE : 0) |
                          (bit(extended.edx, 29) ? EFER_LME : 0) |
                          (bit(extended.edx, 20) ? EFER_NXE : 0) |
                          (bit(leaf(0x8000'0021, 0).eax, 8) ? EFER_AIBRSE : 0);
    const CpuidRegisters xsave = leaf(0xd, 0);
    traits.xcr0_allowed = (xsave.eax | std::uint64_t{xsave.edx} << 32) | 1;
    traits.physical_bits = model.physical_bits;
    traits.huge_pages = bit(extended.edx, 26);
    traits.spec_ctrl = bit(seven.edx, 26);
    traits.arch_capabilities = bit(seven.edx, 29);
    traits.tsc_adjust = bit(seven.ebx, 1);
    traits.amd = leaf(0, 0).ebx == kAuthenticAmdEbx;
    return traits;
}

} // namespace doppel::cpu::x86
