// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/x86/cpu_state.hpp"
#include "firmware/loaders/loader.hpp"

namespace doppel::machine {

/// Puts what a loader asks for into the first CPU's state, which is as after RESET.
void apply_boot_state(const firmware::BootState& boot, cpu::x86::CpuState& state);

} // namespace doppel::machine
