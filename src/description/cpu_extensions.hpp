// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The instruction-set extensions in which CPU models and hosts differ. Pure data; any thread.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.hpp"
#include "description/cpu_model.hpp"

namespace doppel::description {

enum class CpuidWord : std::uint8_t { Eax, Ebx, Ecx, Edx };

/// A bit of CPUID; Intel SDM (June 2025) Vol. 2A, CPUID; AMD APM Vol. 3 appendix E.
struct Extension {
    const char* name;   // in upper case
    std::uint32_t leaf; // 1, 7 or 8000'0001H; the only or the first subleaf
    CpuidWord where;
    std::uint8_t bit;
    bool offered = true;         // by our engines
    bool always_offered = false; // whatever the host has
    bool optional = false;       // no level of the x86-64 psABI asks for it: can be taken away

    /// A host must have it for a guest to have it.
    bool is_hosts() const { return offered && !always_offered; }
};

std::span<const Extension> extensions();

bool has(const CpuidRegisters& registers, const Extension& extension);

/// Does nothing to a model without it; otherwise the model's name becomes NAME,-extension.
void take_away(CpuModel& model, const Extension& extension);

/// `list` is "-sha,-aes": optional extensions, in any case of letters. Errors: InvalidArgument,
/// naming the word that is wrong and those that can be taken away.
base::Result<void> take_away(CpuModel& model, std::string_view list);

/// The highest frozen model that a host with these extensions runs, less the optional ones that it
/// lacks.
std::string best_cpu_model(const std::function<bool(const Extension&)>& host_has);

} // namespace doppel::description
