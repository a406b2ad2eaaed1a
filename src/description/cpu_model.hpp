// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Named CPU models: frozen CPUID tables, part of the guest ABI. Pure data; any thread.
/// What changes at run time (OSXSAVE, APIC id, leaf 0DH sizes, topology) is filled in by the engine
/// (Intel SDM Vol. 2A, CPUID).
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace doppel::description {

struct CpuidRegisters {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

struct CpuidEntry {
    std::uint32_t leaf = 0;
    std::uint32_t subleaf = 0; // ignored unless `has_subleaves`
    bool has_subleaves = false;
    CpuidRegisters registers;
};

struct CpuModel {
    std::string name;
    std::string summary; // one line for --cpu help
    std::vector<CpuidEntry> cpuid;
    std::uint8_t physical_bits = 40;

    /// What CPUID returns before the run-time parts: zeros for a subleaf that is not listed, the
    /// data of the highest basic leaf for a leaf above the maximum (Intel) is *not* imitated: zeros
    /// (AMD).
    CpuidRegisters lookup(std::uint32_t leaf, std::uint32_t subleaf) const noexcept;
    /// Bits of leaf 4000'0001H, EAX (Linux documentation virt/kvm/x86/cpuid), for what the board
    /// has: kvmclock and the like. On the board's own copy, before vCPUs are made.
    void add_paravirtual_features(std::uint32_t features) noexcept;
};

/// "x86-64-v1" … "x86-64-v4", and "host" (host_cpu.hpp); behind each, extensions to be left out:
/// "x86-64-v3,-sha". Errors: InvalidArgument naming the known models or extensions.
base::Result<CpuModel> find_cpu_model(std::string_view name);
/// The frozen ones.
std::span<const CpuModel> cpu_models();

} // namespace doppel::description
