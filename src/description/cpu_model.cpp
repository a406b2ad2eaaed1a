// SPDX-License-Identifier: Apache-2.0
/// The models are levels of the x86-64 psABI (1.0 §3.1.1, table "Micro-Architecture Levels") on one
/// fictitious processor, with the system features that our engines have everywhere.
#include "description/cpu_model.hpp"

#include <array>
#include <bit>

#include <fmt/core.h>

#include "description/cpu_extensions.hpp"
#include "description/host_cpu.hpp"

namespace doppel::description {

namespace {

constexpr std::uint32_t bits(auto... positions) { return ((1u << positions) | ...); }

/// What a level adds to the one below it; registers of the leaves named.
struct Level {
    const char* name;
    const char* summary;
    std::uint32_t leaf1_ecx;
    std::uint32_t leaf7_ebx, leaf7_ecx, leaf7_edx;
    std::uint32_t xcr0;       // 0: no XSAVE
    std::uint32_t leafd1_eax; // XSAVEOPT, XSAVEC, XGETBV1, XSAVES
    std::uint32_t extended_ecx, extended_edx;
};

// CPUID bit positions, Intel SDM (June 2025) Vol. 2A, CPUID, tables 3-8 to 3-17.
// 01H:EDX of every model: FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE-36
// CLFSH MMX FXSR SSE SSE2.
constexpr std::uint32_t kLeaf1Edx =
    bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26);
constexpr std::uint32_t kX2Apic = bits(21), kTscDeadline = bits(24), kHypervisor = bits(31);
constexpr std::uint32_t kV1Ecx = kX2Apic | kTscDeadline | kHypervisor;
// SSE3, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, POPCNT
constexpr std::uint32_t kV2Ecx = kV1Ecx | bits(0, 9, 13, 17, 19, 20, 23);
// PCLMULQDQ, FMA, MOVBE, AES, XSAVE, AVX, F16C, RDRAND
constexpr std::uint32_t kV3Ecx = kV2Ecx | bits(1, 12, 22, 25, 26, 28, 29, 30);
// TSC_ADJUST; FCS and FDS are always zero
constexpr std::uint32_t kV1Leaf7 = bits(1, 13);
// FSGSBASE, SMEP, ERMS, INVPCID, SMAP
constexpr std::uint32_t kV2Leaf7 = kV1Leaf7 | bits(0, 7, 9, 10, 20);
// BMI1, AVX2, BMI2, RDSEED, ADX, CLFLUSHOPT, SHA
constexpr std::uint32_t kV3Leaf7 = kV2Leaf7 | bits(3, 5, 8, 18, 19, 23, 29);
// AVX512F, AVX512DQ, AVX512CD, AVX512BW, AVX512VL
constexpr std::uint32_t kV4Leaf7 = kV3Leaf7 | bits(16, 17, 28, 30, 31);
constexpr std::uint32_t kUmip = bits(2), kRdpid = bits(22);
// IBRS and IBPB, STIBP, ARCH_CAPABILITIES; FSRM
constexpr std::uint32_t kV1Leaf7Edx = bits(26, 27, 29), kV2Leaf7Edx = kV1Leaf7Edx | bits(4);
// LAHF in 64-bit mode, PREFETCHW; LZCNT
constexpr std::uint32_t kV1ExtendedEcx = 0, kV2ExtendedEcx = bits(0, 8),
                        kV3ExtendedEcx = kV2ExtendedEcx | bits(5);
// SYSCALL, NX, LM; 1-GiB pages, RDTSCP
constexpr std::uint32_t kV1ExtendedEdx = bits(11, 20, 29),
                        kV2ExtendedEdx = kV1ExtendedEdx | bits(26, 27);

constexpr std::array kLevels{
    Level{"x86-64-v1", "SSE2: any 64-bit processor", kV1Ecx, kV1Leaf7, 0, kV1Leaf7Edx, 0, 0,
          kV1ExtendedEcx, kV1ExtendedEdx},
    Level{"x86-64-v2", "SSE4.2, POPCNT, CMPXCHG16B, PCID (about 2009)", kV2Ecx, kV2Leaf7, kUmip,
          kV2Leaf7Edx, 0, 0, kV2ExtendedEcx, kV2ExtendedEdx},
    Level{"x86-64-v3", "AVX2, FMA, BMI2, AES, SHA, XSAVE (about 2015)", kV3Ecx, kV3Leaf7,
          kUmip | kRdpid, kV2Leaf7Edx, 7, 0xf, kV3ExtendedEcx, kV2ExtendedEdx},
    Level{"x86-64-v4", "AVX-512 (about 2017); needs an engine and a host that have it", kV3Ecx,
          kV4Leaf7, kUmip | kRdpid, kV2Leaf7Edx, 0xe7, 0xf, kV3ExtendedEcx, kV2ExtendedEdx},
};

constexpr std::uint8_t kPhysicalBits = 40;
constexpr std::uint32_t kParavirtualLeaf = 0x40000001, kNopIoDelay = bits(1);

/// Twelve characters in the registers of a vendor leaf (EBX, EDX, ECX there; EBX, ECX, EDX in the
/// hypervisor's).
constexpr std::uint32_t four(const char* text) {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i)
        value |= static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])) << (i * 8);
    return value;
}

/// One cache of leaf 04H; `kind` 1 data, 2 instruction, 3 unified.
constexpr CpuidEntry cache(std::uint32_t index, std::uint32_t kind, std::uint32_t level,
                           std::uint32_t ways, std::uint32_t sets) {
    constexpr std::uint32_t kLineBytes = 64, kSelfInitialising = 1 << 8;
    return {
        4,
        index,
        true,
        {kind | level << 5 | kSelfInitialising, (kLineBytes - 1) | (ways - 1) << 22, sets - 1, 0}};
}

void add_basic(CpuModel& model, const Level& level) {
    constexpr std::uint32_t kFamilyModelStepping = 0x000606a6;
    constexpr std::uint32_t kArat = bits(2); // the local APIC's timer never stops
    auto& all = model.cpuid;
    const std::uint32_t last = level.xcr0 != 0 ? 0xd : 0xb;
    all.push_back({0, 0, false, {last, four("Genu"), four("ntel"), four("ineI")}});
    all.push_back({1, 0, false, {kFamilyModelStepping, 8 << 8, level.leaf1_ecx, kLeaf1Edx}});
    all.push_back({2, 0, false, {0x00feff01, 0, 0, 0}}); // caches: see leaf 04H
    all.push_back(cache(0, 1, 1, 8, 64));                // 32 KiB
    all.push_back(cache(1, 2, 1, 8, 64));                // 32 KiB
    all.push_back(cache(2, 3, 2, 16, 1024));             // 1 MiB
    all.push_back(cache(3, 3, 3, 16, 16384));            // 16 MiB
    all.push_back({6, 0, false, {kArat, 0, 0, 0}});
    const bool spec_ctrl = (level.leaf7_edx & bits(26)) != 0;
    all.push_back(
        {7, 0, true, {spec_ctrl ? 2u : 0u, level.leaf7_ebx, level.leaf7_ecx, level.leaf7_edx}});
    // BHI_CTRL: Linux sets a bit of IA32_SPEC_CTRL instead of looping at every system call.
    if (spec_ctrl)
        all.push_back({7, 2, true, {0, 0, 0, bits(4)}});
    all.push_back({0xb, 0, true, {}}); // topology: filled in by the engine
    all.push_back({0xb, 1, true, {}});
}

/// Leaf 0DH (Vol. 1 §13.2); sizes for the current XCR0 are the engine's.
void add_xsave(CpuModel& model, const Level& level) {
    if (level.xcr0 == 0)
        return;
    struct Component {
        std::uint32_t number, size, offset;
    };
    constexpr std::array kComponents{Component{2, 256, 576}, Component{5, 64, 1088},
                                     Component{6, 512, 1152}, Component{7, 1024, 1664}};
    std::uint32_t end = 576;
    for (const auto& c : kComponents)
        if ((level.xcr0 >> c.number & 1) != 0)
            end = c.offset + c.size;
    model.cpuid.push_back({0xd, 0, true, {level.xcr0, 576, end, 0}});
    model.cpuid.push_back({0xd, 1, true, {level.leafd1_eax, 0, 0, 0}});
    for (const auto& c : kComponents)
        if ((level.xcr0 >> c.number & 1) != 0)
            model.cpuid.push_back({0xd, c.number, true, {c.size, c.offset, 0, 0}});
}

/// KVM's leaves (Linux documentation virt/kvm/x86/cpuid): NOP_IO_DELAY; what needs a device is
/// added by who has it (add_paravirtual_features()).
void add_hypervisor(CpuModel& model) {
    model.cpuid.push_back(
        {0x40000000, 0, false, {0x40000001, four("KVMK"), four("VMKV"), four("M\0\0")}});
    model.cpuid.push_back({kParavirtualLeaf, 0, false, {kNopIoDelay, 0, 0, 0}});
}

void add_extended(CpuModel& model, const Level& level) {
    auto& all = model.cpuid;
    all.push_back({0x80000000, 0, false, {0x80000008, 0, 0, 0}});
    all.push_back({0x80000001, 0, false, {0, 0, level.extended_ecx, level.extended_edx}});
    auto brand = fmt::format("Doppel Virtual CPU {}", level.name);
    brand.resize(48, '\0');
    for (std::uint32_t i = 0; i < 3; ++i) {
        const char* p = brand.data() + std::size_t{i} * 16;
        all.push_back(
            {0x80000002 + i, 0, false, {four(p), four(p + 4), four(p + 8), four(p + 12)}});
    }
    all.push_back({0x80000006, 0, false, {0, 0, 1024u << 16 | 8 << 12 | 64, 0}}); // L2, 1 MiB
    all.push_back({0x80000007, 0, false, {0, 0, 0, bits(8)}});                    // invariant TSC
    all.push_back({0x80000008, 0, false, {kPhysicalBits | 48u << 8, 0, 0, 0}});
}

CpuModel make(const Level& level) {
    CpuModel model;
    model.name = level.name;
    model.summary = level.summary;
    model.physical_bits = kPhysicalBits;
    add_basic(model, level);
    add_xsave(model, level);
    add_hypervisor(model);
    add_extended(model, level);
    return model;
}

base::Result<CpuModel> find_whole_model(std::string_view name) {
    if (name == "host")
        return host_cpu_model();
    std::string known;
    for (const auto& model : cpu_models()) {
        if (model.name == name)
            return model;
        known += (known.empty() ? "" : ", ") + model.name;
    }
    return base::fail(base::Errc::InvalidArgument, fmt::format("CPU model '{}' is unknown", name),
                      "use one of " + known + ", host");
}

} // namespace

CpuidRegisters CpuModel::lookup(std::uint32_t leaf, std::uint32_t subleaf) const noexcept {
    for (const auto& entry : cpuid)
        if (entry.leaf == leaf && (!entry.has_subleaves || entry.subleaf == subleaf))
            return entry.registers;
    return {};
}

void CpuModel::add_paravirtual_features(std::uint32_t features) noexcept {
    for (auto& entry : cpuid)
        if (entry.leaf == kParavirtualLeaf)
            entry.registers.eax |= features;
}

std::span<const CpuModel> cpu_models() {
    static const std::array<CpuModel, kLevels.size()> models{make(kLevels[0]), make(kLevels[1]),
                                                             make(kLevels[2]), make(kLevels[3])};
    return models;
}

base::Result<CpuModel> find_cpu_model(std::string_view name) {
    const std::size_t comma = name.find(',');
    CpuModel model = DOPPEL_TRY(find_whole_model(name.substr(0, comma)));
    if (comma != std::string_view::npos)
        DOPPEL_TRY_VOID(take_away(model, name.substr(comma + 1)));
    return model;
}

} // namespace doppel::description
