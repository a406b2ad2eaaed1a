// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/x86/cpu_state.hpp"
#include "firmware/loaders/loader.hpp"

namespace doppel::machine {

/// Puts what a loader asks for into the first CPU's state, which is as after RESET.
void apply_boot_state(const firmware::BootState& boot, cpu::x86::CpuState& state);

/// The MTRRs as firmware programs them in every CPU (Intel SDM Vol. 3A §13.11): write-back, but for
/// the VGA window and for everything between the end of low RAM and 4 GiB.
void apply_memory_types(cpu::x86::CpuState& state, unsigned physical_bits);

} // namespace doppel::machine
