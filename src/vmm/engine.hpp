// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "base/result.hpp"
#include "bus/doorbell.hpp"
#include "cpu/apic_host.hpp"
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
    /// Once all vCPUs are made: the engine's own local APICs; null when it uses the board's.
    /// Shared with the board.
    virtual std::shared_ptr<cpu::ApicHost> apic_host() { return {}; }
    /// Who notices writes to doorbells without a call of ours; null: nobody. Shared likewise.
    virtual std::shared_ptr<bus::DoorbellHost> doorbell_host() { return {}; }
};

/// `auto` takes kvm only where the self-test has shown that it runs kernels and where it offers the
/// CPU model, else the translator. `kvm` is taken at its word, with a warning. Errors: Unsupported
/// with a hint.
base::Result<std::unique_ptr<EngineFactory>> create_engine(const description::Machine& machine,
                                                           memory::GuestMemory& memory);

} // namespace doppel::vmm
