// SPDX-License-Identifier: Apache-2.0
#include "vmm/engine.hpp"

#include <fmt/core.h>

#include "base/log.hpp"
#include "cpu/kvm/kvm_machine.hpp"
#include "cpu/kvm/kvm_vcpu.hpp"
#include "cpu/x86/frontend/translator_vcpu.hpp"
#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"
#include "vmm/kvm_verdict.hpp"

namespace doppel::vmm {

using base::Result;
using description::Engine;
using description::Machine;

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

class KvmFactory final : public EngineFactory {
public:
    KvmFactory(std::unique_ptr<cpu::kvm::KvmMachine> machine, memory::GuestMemory& memory,
               unsigned cpus)
        : machine_{std::move(machine)}, memory_{memory}, cpus_{cpus} {
        memory_.set_write_log(machine_.get());
    }
    ~KvmFactory() override { memory_.set_write_log(nullptr); }
    Result<std::unique_ptr<cpu::x86::Vcpu>>
    create_vcpu(const cpu::x86::VcpuWiring& wiring) override {
        return DOPPEL_TRY(cpu::kvm::KvmVcpu::create(*machine_, wiring, cpus_));
    }
    std::shared_ptr<cpu::ApicHost> apic_host() override { return machine_; }
    std::shared_ptr<bus::DoorbellHost> doorbell_host() override { return machine_; }

private:
    std::shared_ptr<cpu::kvm::KvmMachine> machine_; // the board is the other owner
    memory::GuestMemory& memory_;
    const unsigned cpus_;
};

/// Why KVM cannot have the machine's CPU model; empty: it can.
Result<std::string> missing_features(const cpu::kvm::KvmSystem& system, const Machine& machine) {
    const auto model = DOPPEL_TRY(description::find_cpu_model(machine.cpu_model));
    return system.missing_features(model);
}

Result<std::unique_ptr<EngineFactory>> create_kvm(const Machine& machine,
                                                  memory::GuestMemory& memory) {
    auto system = DOPPEL_TRY(cpu::kvm::KvmSystem::open());
    if (const auto missing = DOPPEL_TRY(missing_features(system, machine)); !missing.empty())
        return base::fail(base::Errc::Unsupported,
                          fmt::format("engine kvm: CPU model '{}' has what this host's KVM does "
                                      "not offer ({})",
                                      machine.cpu_model, missing),
                          "use a smaller --cpu, such as x86-64-v1, or --engine translator");
    if (const auto verdict = kvm_verdict(); !verdict.runs_kernels)
        base::log_warning(
            "engine kvm: this host's KVM does not run kernels ({}); only small guests "
            "will work, --engine translator runs all",
            verdict.reason);
    auto shared = DOPPEL_TRY(cpu::kvm::KvmMachine::create(std::move(system), memory));
    return std::make_unique<KvmFactory>(std::move(shared), memory, machine.cpus);
}

/// What `auto` means here: kvm where it runs kernels and has the CPU model.
Engine choose(const Machine& machine) {
    if (machine.checking || machine.time == description::TimeMode::Virtual ||
        !machine.profiling.path.empty())
        return Engine::Translator;
    const auto system = cpu::kvm::KvmSystem::open();
    if (!system) {
        base::log_info("engine translator, because {}", system.error().message());
        return Engine::Translator;
    }
    if (const auto missing = missing_features(*system, machine); !missing || !missing->empty()) {
        base::log_info("engine translator, because this host's KVM does not offer {}",
                       missing.value_or("the CPU model"));
        return Engine::Translator;
    }
    if (const auto verdict = kvm_verdict(); !verdict.runs_kernels) {
        base::log_info("engine translator, because this host's KVM does not run kernels ({})",
                       verdict.reason);
        return Engine::Translator;
    }
    return Engine::Kvm;
}

/// So little that it is full often.
constexpr std::uint64_t kChaoticCodeBytes = 2 << 20;

} // namespace

Result<std::unique_ptr<EngineFactory>> create_engine(const Machine& machine,
                                                     memory::GuestMemory& memory) {
    const auto engine = machine.engine == Engine::Auto ? choose(machine) : machine.engine;
    if (engine == Engine::Interpreter)
        return std::make_unique<InterpreterFactory>(machine.cpus);
    if (engine == Engine::Kvm)
        return create_kvm(machine, memory);
    cpu::x86::TranslatorOptions options{.tuning = machine.translation.tuning,
                                        .jit_dump = machine.translation.jit_dump,
                                        .check = machine.checking};
    // A profile is made of what runs in the VM's own process.
    options.tuning.direct = options.tuning.direct && machine.profiling.path.empty();
    options.chaos = machine.translation.chaos;
    options.code_bytes =
        options.chaos != 0 ? kChaoticCodeBytes : std::uint64_t{machine.translation.cache_mib} << 20;
    auto shared = DOPPEL_TRY(cpu::x86::TranslatorMachine::create(memory, options));
    return std::make_unique<TranslatorFactory>(std::move(shared), machine.cpus);
}

} // namespace doppel::vmm
