// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Does the KVM of this host run kernels? Some /dev/kvm work without hardware virtualization: user
/// code runs at full speed there, and ring 0 in an emulator that lacks many instructions. Small
/// guests execute in ring 0 what every kernel executes early; a count of how fast they do it.
///
/// May take seconds and, on a broken KVM, for ever: to be called in a process that can be killed.
#include <string>
#include <vector>

#include "base/result.hpp"
#include "cpu/kvm/kvm_system.hpp"

namespace doppel::cpu::kvm {

struct SelfTest {
    std::vector<std::string> failed;     // "int3", "SSE", … in the order of the tests
    double million_instructions_s = 0.0; // of a loop in ring 0, by CPU time
    static constexpr double kEnough = 50.0;

    bool runs_kernels() const { return failed.empty() && million_instructions_s >= kEnough; }
    /// Why not: "in ring 0 it fails at int3, SSE and executes 1.5 million instructions a second".
    std::string reason() const;
};

/// Errors: there is no usable /dev/kvm at all.
base::Result<SelfTest> self_test(Syscalls& syscalls = Syscalls::host());

} // namespace doppel::cpu::kvm
