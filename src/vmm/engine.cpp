// SPDX-License-Identifier: Apache-2.0
#include "vmm/engine.hpp"

#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"

namespace doppel::vmm {

using base::Result;

namespace {

class InterpreterFactory final : public EngineFactory {
public:
    explicit InterpreterFactory(unsigned cpus) : cpus_{cpus} {}
    Result<std::unique_ptr<cpu::x86::Vcpu>>
    create_vcpu(const cpu::x86::VcpuWiring& wiring) override {
        return DOPPEL_TRY(cpu::x86::InterpreterVcpu::create(wiring, cpus_));
    }

private:
    const unsigned cpus_;
};

} // namespace

Result<std::unique_ptr<EngineFactory>> create_engine(const description::Machine& machine,
                                                     memory::GuestMemory&) {
    return std::make_unique<InterpreterFactory>(machine.cpus);
}

} // namespace doppel::vmm
