// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Why a vCPU stopped running guest code. PIO, MMIO and interrupts are not among them: engines
/// handle these inside run().
#include <variant>

#include "base/result.hpp"

namespace doppel::cpu {

struct HaltExit {};     // HLT with nothing pending: wait for the InterruptPort, then run again
struct ShutdownExit {}; // triple fault; the state is as at the third fault
struct ResetExit {};    // the guest asked this CPU for a reset (not the board's reset port)
struct DebugExit {};    // a host-side breakpoint or single step
struct KickExit {};     // Vcpu::kick()
struct LimitExit {};    // the InstructionMeter has nothing left
struct ErrorExit {
    base::Error error; // this VM cannot go on (engine failure)
};

using VmExit =
    std::variant<HaltExit, ShutdownExit, ResetExit, DebugExit, KickExit, LimitExit, ErrorExit>;

} // namespace doppel::cpu
