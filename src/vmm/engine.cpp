// SPDX-License-Identifier: Apache-2.0
#include "vmm/engine.hpp"

#include "cpu/x86/frontend/translator_vcpu.hpp"
#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"

namespace doppel::vmm {

using base::Result;

namespace {

class InterpreterFactory final : public EngineFactory {
public:
    explicit InterpreterFactory(unsigned cpus) : cpus_{cpus} {}
    Result<std::unique_ptr<cpu::x86::Vcpu>>
    create_vcpu(const cpu::x86::VcpuWiring& wiring) override {
        return DOPPEL_TRY(cpu::x86::InterpreterVcpu::create(wiring, cpus_, &rendezvous_));
    }

private:
    const unsigned cpus_;
    cpu::Rendezvous rendezvous_;
};

class TranslatorFactory final : public EngineFactory {
public:
    TranslatorFactory(std::unique_ptr<cpu::x86::TranslatorMachine> machine, unsigned cpus)
        : machine_{std::move(machine)}, cpus_{cpus} {}
    Result<std::unique_ptr<cpu::x86::Vcpu>>
    create_vcpu(const cpu::x86::VcpuWiring& wiring) override {
        return DOPPEL_TRY(cpu::x86::TranslatorVcpu::create(*machine_, wiring, cpus_));
    }

private:
    std::unique_ptr<cpu::x86::TranslatorMachine> machine_;
    const unsigned cpus_;
};

} // namespace

Result<std::unique_ptr<EngineFactory>> create_engine(const description::Machine& machine,
                                                     memory::GuestMemory& memory) {
    if (machine.engine == description::Engine::Interpreter)
        return std::make_unique<InterpreterFactory>(machine.cpus);
    const cpu::x86::TranslatorOptions options{.check = machine.checking};
    auto shared = DOPPEL_TRY(cpu::x86::TranslatorMachine::create(memory, options));
    return std::make_unique<TranslatorFactory>(std::move(shared), machine.cpus);
}

} // namespace doppel::vmm
