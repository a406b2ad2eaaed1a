// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/cpuid.hpp"

#include "cpu/x86/system/xsave.hpp"

namespace doppel::cpu::x86 {

namespace {

using description::CpuidEntry;
using description::CpuidRegisters;

enum class Register : std::uint8_t { Eax, Ebx, Ecx, Edx };

/// Where CPUID announces what the decoder calls a feature. Intel SDM (June 2025) Vol. 2A, CPUID.
struct FeatureBit {
    IsaFeature feature;
    std::uint32_t leaf;
    std::uint32_t subleaf;
    Register where;
    std::uint8_t bit;
};

using enum IsaFeature;
constexpr std::uint32_t kExtended = 0x8000'0001;
constexpr FeatureBit kFeatureBits[] = {
    {Fpu, 1, 0, Register::Edx, 0},
    {Tsc, 1, 0, Register::Edx, 4},
    {Msr, 1, 0, Register::Edx, 5},
    {Cx8, 1, 0, Register::Edx, 8},
    {Sep, 1, 0, Register::Edx, 11},
    {Cmov, 1, 0, Register::Edx, 15},
    {Clflush, 1, 0, Register::Edx, 19},
    {Mmx, 1, 0, Register::Edx, 23},
    {Fxsr, 1, 0, Register::Edx, 24},
    {Sse, 1, 0, Register::Edx, 25},
    {Sse2, 1, 0, Register::Edx, 26},
    {Sse3, 1, 0, Register::Ecx, 0},
    {Pclmulqdq, 1, 0, Register::Ecx, 1},
    {Monitor, 1, 0, Register::Ecx, 3},
    {Vmx, 1, 0, Register::Ecx, 5},
    {Ssse3, 1, 0, Register::Ecx, 9},
    {Fma, 1, 0, Register::Ecx, 12},
    {Cx16, 1, 0, Register::Ecx, 13},
    {Sse41, 1, 0, Register::Ecx, 19},
    {Sse42, 1, 0, Register::Ecx, 20},
    {Movbe, 1, 0, Register::Ecx, 22},
    {Popcnt, 1, 0, Register::Ecx, 23},
    {Aes, 1, 0, Register::Ecx, 25},
    {Xsave, 1, 0, Register::Ecx, 26},
    {Avx, 1, 0, Register::Ecx, 28},
    {F16c, 1, 0, Register::Ecx, 29},
    {Rdrand, 1, 0, Register::Ecx, 30},
    {Fsgsbase, 7, 0, Register::Ebx, 0},
    {Bmi1, 7, 0, Register::Ebx, 3},
    {Avx2, 7, 0, Register::Ebx, 5},
    {Bmi2, 7, 0, Register::Ebx, 8},
    {Invpcid, 7, 0, Register::Ebx, 10},
    {Rdseed, 7, 0, Register::Ebx, 18},
    {Adx, 7, 0, Register::Ebx, 19},
    {Smap, 7, 0, Register::Ebx, 20},
    {Clflushopt, 7, 0, Register::Ebx, 23},
    {Clwb, 7, 0, Register::Ebx, 24},
    {Sha, 7, 0, Register::Ebx, 29},
    {Gfni, 7, 0, Register::Ecx, 8},
    {Vaes, 7, 0, Register::Ecx, 9},
    {Vpclmulqdq, 7, 0, Register::Ecx, 10},
    {Rdpid, 7, 0, Register::Ecx, 22},
    {Xsaveopt, 0xd, 1, Register::Eax, 0},
    {Xsavec, 0xd, 1, Register::Eax, 1},
    {Xsaves, 0xd, 1, Register::Eax, 3},
    {LahfLm, kExtended, 0, Register::Ecx, 0},
    {Svm, kExtended, 0, Register::Ecx, 2},
    {Lzcnt, kExtended, 0, Register::Ecx, 5},
    {Prefetchw, kExtended, 0, Register::Ecx, 8},
    {Syscall, kExtended, 0, Register::Edx, 11},
    {Rdtscp, kExtended, 0, Register::Edx, 27},
    {LongMode, kExtended, 0, Register::Edx, 29},
    {Femms, kExtended, 0, Register::Edx, 31},
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
    constexpr std::uint32_t kOsxsave = 1u << 27, kHtt = 1u << 28;
    const std::uint32_t ids = 1u << id_bits(cx.vcpu_count);
    out.ebx = (out.ebx & 0xffff) | (ids & 0xff) << 16 | (cx.vcpu_index & 0xff) << 24;
    if (cx.vcpu_count > 1)
        out.edx |= kHtt;
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
