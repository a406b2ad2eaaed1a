// SPDX-License-Identifier: Apache-2.0
#pragma once
/// RDMSR, WRMSR, time-stamp counter. The numbers and masks are data: msr_table.cpp.
/// Intel SDM (June 2025) Vol. 4 chapter 2, AMD APM Vol. 2 appendix A.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// ecx -> edx:eax and back; CPL 0 is checked, unknown MSRs are #GP(0).
[[nodiscard]] bool rdmsr(SystemContext& cx);
[[nodiscard]] bool wrmsr(SystemContext& cx);
/// The same without registers and privilege; false: there is no such MSR or value. Control thread
/// may use it while the vCPU is stopped.
[[nodiscard]] bool read_msr(SystemContext& cx, std::uint32_t index, std::uint64_t& value);
[[nodiscard]] bool write_msr(SystemContext& cx, std::uint32_t index, std::uint64_t value);

/// edx:eax (RDTSCP: and ecx = TSC_AUX); #GP(0) with CR4.TSD and CPL > 0.
[[nodiscard]] bool rdtsc(SystemContext& cx);
[[nodiscard]] bool rdtscp(SystemContext& cx);
[[nodiscard]] bool rdpmc(SystemContext& cx);
std::uint64_t guest_tsc(SystemContext& cx);

} // namespace doppel::cpu::x86
