// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/bare_machine.hpp"

namespace doppel::cpu::kvm {

namespace {

description::CpuModel offered_model(const KvmSystem& system) {
    description::CpuModel model;
    model.name = "all that KVM offers";
    for (const auto& entry : system.supported_cpuid())
        model.cpuid.push_back({entry.function,
                               entry.index,
                               (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0,
                               {entry.eax, entry.ebx, entry.ecx, entry.edx}});
    return model;
}

} // namespace

base::Result<std::unique_ptr<BareMachine>>
BareMachine::create(Syscalls& syscalls, std::uint64_t ram_bytes, unsigned cpus) {
    auto bare = std::make_unique<BareMachine>();
    const memory::RamRegion region{{0}, ram_bytes};
    bare->memory = DOPPEL_TRY(memory::GuestMemory::create({&region, 1}));
    auto system = DOPPEL_TRY(KvmSystem::open(syscalls));
    bare->model = offered_model(system);
    bare->machine = DOPPEL_TRY(KvmMachine::create(std::move(system), *bare->memory));
    for (unsigned i = 0; i < cpus; ++i)
        bare->vcpus.push_back(DOPPEL_TRY(KvmVcpu::create(*bare->machine, bare->wiring(i), cpus)));
    return bare;
}

x86::VcpuWiring BareMachine::wiring(unsigned index) {
    return {.index = index,
            .memory = memory.get(),
            .pio = &pio,
            .mmio = &mmio,
            .interrupts = &interrupts,
            .msrs = nullptr,
            .tsc = &tsc,
            .model = &model};
}

} // namespace doppel::cpu::kvm
