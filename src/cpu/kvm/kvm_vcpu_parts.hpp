// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Part of KvmVcpu.
#include "cpu/kvm/kvm_vcpu.hpp"
#include "cpu/x86/system/system.hpp"

namespace doppel::cpu::kvm {

/// The system layer serves what the kernel leaves to us: CPUID tables, MSRs it does not know,
/// RESET.
struct KvmVcpu::Parts {
    Parts(const x86::VcpuWiring& wiring, unsigned vcpu_count)
        : board{wiring}, system{make_context(state, board, wiring, vcpu_count)} {}

    x86::CpuState state;
    x86::WiredBoard board;
    x86::SystemContext system;
};

} // namespace doppel::cpu::kvm
