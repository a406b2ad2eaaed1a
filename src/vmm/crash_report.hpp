// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "cpu/x86/vcpu.hpp"

namespace doppel::vmm {

/// For a person: why the guest's CPU shut down (triple fault) and where it stood. The vCPU is
/// stopped.
std::string crash_report(unsigned index, cpu::x86::Vcpu& vcpu);

} // namespace doppel::vmm
