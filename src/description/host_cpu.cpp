// SPDX-License-Identifier: Apache-2.0
#include "description/host_cpu.hpp"

#include <cpuid.h>

#include <array>
#include <string>

#include <fmt/core.h>

#include "description/cpu_extensions.hpp"

namespace doppel::description {

namespace {

constexpr std::uint32_t bits(auto... positions) { return ((1u << positions) | ...); }

constexpr std::uint32_t kExtended = 0x8000'0001;

CpuidRegisters host(std::uint32_t leaf, std::uint32_t subleaf = 0) {
    CpuidRegisters r;
    const std::uint32_t range = leaf & 0xffff'0000;
    if (leaf <= __get_cpuid_max(range, nullptr))
        __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    return r;
}

/// Where a hypervisor is below, a CPUID takes tens of microseconds: each leaf is asked for once.
bool host_has(const Extension& extension) {
    static const CpuidRegisters one = host(1), seven = host(7), extended = host(kExtended);
    const auto& leaf = extension.leaf == 1 ? one : extension.leaf == 7 ? seven : extended;
    return has(leaf, extension);
}

/// Those of the model's extensions that are so.
std::string extensions_of(const CpuModel& model, const auto& is_so) {
    std::string names;
    for (const auto& extension : extensions())
        if (has(model.lookup(extension.leaf, 0), extension) && is_so(extension))
            names += (names.empty() ? "" : ", ") + std::string{extension.name};
    return names;
}

std::string not_offered(const CpuModel& model) {
    return extensions_of(model, [](const Extension& extension) { return !extension.offered; });
}

std::string lacking_here(const CpuModel& model) {
    return extensions_of(model, [](const Extension& extension) {
        return extension.is_hosts() && !host_has(extension);
    });
}

/// System features that the engines provide themselves, whatever the host has: those of the highest
/// frozen model without AVX-512.
CpuidRegisters own_features(std::uint32_t leaf) {
    return find_cpu_model("x86-64-v3")->lookup(leaf, 0);
}

/// Of one feature word: what the engines do by themselves, and extensions the host has.
std::uint32_t word(std::uint32_t leaf, CpuidWord where, std::uint32_t own) {
    const CpuidRegisters here = host(leaf);
    std::uint32_t value = own;
    for (const auto& extension : extensions()) {
        if (extension.leaf != leaf || extension.where != where || extension.always_offered)
            continue;
        const std::uint32_t bit = 1u << extension.bit;
        value = extension.offered && has(here, extension) ? value | bit : value & ~bit;
    }
    return value;
}

void add_identity(CpuModel& model, bool amd) {
    const CpuidRegisters vendor = host(0), one = host(1);
    auto& all = model.cpuid;
    const bool avx = (one.ecx & bits(28)) != 0;
    all.push_back({0, 0, false, {avx ? 0xdu : 0xbu, vendor.ebx, vendor.ecx, vendor.edx}});
    std::uint32_t ecx = word(1, CpuidWord::Ecx, own_features(1).ecx);
    if (!avx)
        ecx &= ~bits(26);
    all.push_back({1, 0, false, {one.eax, 8 << 8, ecx, own_features(1).edx}});
    if (!amd)
        all.push_back({2, 0, false, host(2)});
    for (std::uint32_t i = 0; i < 4; ++i) {
        const std::uint32_t leaf = amd ? 0x8000'001d : 4;
        CpuidRegisters cache = host(leaf, i);
        cache.eax &= 0x3fff; // who shares it is the engine's
        all.push_back({leaf, i, true, cache});
    }
    all.push_back({6, 0, false, own_features(6)});
    const CpuidRegisters seven = own_features(7);
    const std::uint32_t edx = amd ? seven.edx & bits(4) : seven.edx; // AMD: no SPEC_CTRL leaf here
    all.push_back({7,
                   0,
                   true,
                   {amd ? 0u : 2u, word(7, CpuidWord::Ebx, seven.ebx),
                    word(7, CpuidWord::Ecx, seven.ecx), edx}});
    if (!amd)
        all.push_back({7, 2, true, find_cpu_model("x86-64-v3")->lookup(7, 2)});
    all.push_back({0xb, 0, true, {}});
    all.push_back({0xb, 1, true, {}});
    if (avx) {
        all.push_back({0xd, 0, true, {7, 576, 832, 0}});
        all.push_back({0xd, 1, true, {0xf, 0, 0, 0}});
        all.push_back({0xd, 2, true, {256, 576, 0, 0}});
    }
}

void add_hypervisor(CpuModel& model) {
    for (const std::uint32_t leaf : {0x4000'0000u, 0x4000'0001u})
        model.cpuid.push_back({leaf, 0, false, own_features(leaf)});
}

void add_extended(CpuModel& model, bool amd) {
    auto& all = model.cpuid;
    const CpuidRegisters own = own_features(kExtended);
    const CpuidRegisters vendor = host(0);
    // AMD repeats FPU … FXSR of leaf 01H here.
    const std::uint32_t legacy = amd ? own_features(1).edx & 0x0183'f3ff : 0;
    const std::uint32_t last = amd ? 0x8000'0021 : 0x8000'0008;
    all.push_back({0x8000'0000,
                   0,
                   false,
                   {last, amd ? vendor.ebx : 0, amd ? vendor.ecx : 0, amd ? vendor.edx : 0}});
    all.push_back(
        {kExtended,
         0,
         false,
         {amd ? host(1).eax : 0, 0, word(kExtended, CpuidWord::Ecx, own.ecx), own.edx | legacy}});
    for (std::uint32_t leaf = 0x8000'0002; leaf <= 0x8000'0006; ++leaf)
        all.push_back({leaf, 0, false, host(leaf)});
    all.push_back({0x8000'0007, 0, false, own_features(0x8000'0007)});
    // AMD: error pointers are always saved, no speculative store bypass.
    const std::uint32_t more = amd ? bits(2, 26) : 0;
    all.push_back({0x8000'0008, 0, false, {model.physical_bits | 48u << 8, more, 0, 0}});
    if (amd) // LFENCE serialises; a null selector clears its base; automatic IBRS
        all.push_back({0x8000'0021, 0, false, {bits(2, 6, 8), 0, 0, 0}});
}

} // namespace

CpuModel host_cpu_model() {
    constexpr std::uint32_t kAuthenticAmdEbx = 0x6874'7541; // "Auth"
    const bool amd = host(0).ebx == kAuthenticAmdEbx;
    CpuModel model;
    model.name = "host";
    model.summary = "this host's CPU, as far as the engines go; not migratable";
    add_identity(model, amd);
    add_hypervisor(model);
    add_extended(model, amd);
    return model;
}

base::Result<void> check_runs_here(const CpuModel& model) {
    const auto refuse = [&model](const std::string& names, const char* why) {
        return base::fail(base::Errc::Unsupported,
                          fmt::format("CPU model '{}' needs {}, {}", model.name, names, why),
                          fmt::format("use {} or host", default_cpu_model()));
    };
    if (const std::string names = not_offered(model); !names.empty())
        return refuse(names, "which the engines do not offer");
    if (const std::string names = lacking_here(model); !names.empty())
        return refuse(names, "which this host lacks");
    return {};
}

std::string default_cpu_model() {
    static const std::string name = best_cpu_model(host_has);
    return name;
}

} // namespace doppel::description
