// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "base/result.hpp"
#include "cpu/x86/board_ports.hpp"
#include "cpu/x86/vcpu.hpp"
#include "description/machine.hpp"

namespace doppel::vmm {

/// Creates the vCPUs of one VM on one engine. Control thread only.
class EngineFactory {
public:
    virtual ~EngineFactory() = default;
    virtual base::Result<std::unique_ptr<cpu::x86::Vcpu>>
    create_vcpu(const cpu::x86::VcpuWiring& wiring) = 0;
};

/// `auto` takes the translator. Errors: Unsupported with a hint.
base::Result<std::unique_ptr<EngineFactory>> create_engine(const description::Machine& machine,
                                                           memory::GuestMemory& memory);

} // namespace doppel::vmm
