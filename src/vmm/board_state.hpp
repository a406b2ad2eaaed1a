// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A whole machine, without its RAM and clocks, to and from a SavedVm. Control thread, VM paused.
#include <memory>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "cpu/x86/vcpu.hpp"
#include "description/cpu_model.hpp"
#include "machine/pc.hpp"
#include "vmm/state_file/saved_vm.hpp"

namespace doppel::vmm {

/// Puts the states of all chips and vCPUs into `to`, and the CPU model's CPUID.
void save_board(machine::Pc& board, std::span<cpu::x86::Vcpu* const> vcpus,
                const description::CpuModel& model, SavedVm& to);

/// Into a machine that was made from the same description and has never run; after an error it must
/// not run. Errors: Corrupt; Unsupported when this host's or build's machine is another one.
base::Result<void> load_board(const SavedVm& from, const description::CpuModel& model,
                              machine::Pc& board, std::span<cpu::x86::Vcpu* const> vcpus);

} // namespace doppel::vmm
