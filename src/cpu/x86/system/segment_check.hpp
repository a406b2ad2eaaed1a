// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Checks of a cached segment, shared by data accesses and the stacks of far transfers.
#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/system/tlb.hpp"

namespace doppel::cpu::x86 {

/// Present, and of a type that may be accessed so (Read and Write only).
bool type_allows(const Segment& segment, AccessType access);
/// [offset, offset + bytes) is within the limit, expand-down included. Legacy modes.
bool limit_allows(const Segment& segment, std::uint64_t offset, std::uint32_t bytes);

} // namespace doppel::cpu::x86
