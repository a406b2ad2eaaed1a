// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The numbered-field form of CpuState, the same for every engine.
#include "base/result.hpp"
#include "cpu/x86/cpu_state.hpp"
#include "state/codec.hpp"

namespace doppel::cpu::x86 {

void save_cpu_state(state::Encoder& to, const CpuState& state);

/// All or nothing: `state` changes only if what was read could be a CPU's state. Errors: Corrupt,
/// naming the field. Everything an engine relies on is checked (what the host would fault on, what
/// no sequence of guest instructions can produce).
base::Result<void> load_cpu_state(state::Decoder& from, CpuState& state);

/// The checks alone.
base::Result<void> validate_cpu_state(const CpuState& state);

} // namespace doppel::cpu::x86
