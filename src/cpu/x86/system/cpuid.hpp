// SPDX-License-Identifier: Apache-2.0
#pragma once
/// CPUID: the model's tables with their run-time parts, and what the model means to instructions.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// eax, ecx -> eax, ebx, ecx, edx. Never faults.
void cpuid(SystemContext& cx);
description::CpuidRegisters cpuid_leaf(const SystemContext& cx, std::uint32_t leaf,
                                       std::uint32_t subleaf);

/// What the decoder's feature of an instruction is checked against.
FeatureSet features_of(const description::CpuModel& model);
ModelTraits traits_of(const description::CpuModel& model);

} // namespace doppel::cpu::x86
