// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One KVM vCPU with RAM and buses and nothing on them: the machine of a BareGuest.
#include <memory>
#include <vector>

#include "bus/address_space.hpp"
#include "cpu/kvm/kvm_machine.hpp"
#include "cpu/kvm/kvm_vcpu.hpp"

namespace doppel::cpu::kvm {

/// The board's end of InterruptPort where the local APICs are the kernel's and there is no PIC.
class NoInterrupts : public InterruptPort {
public:
    bool has_event() const noexcept override { return false; }
    bool intr_pending() noexcept override { return false; }
    std::optional<std::uint8_t> acknowledge_intr() noexcept override { return {}; }
    CpuEvent take_event(bool, bool, std::uint8_t&) noexcept override { return CpuEvent::None; }
    std::uint8_t cr8() const noexcept override { return 0; }
    void set_cr8(std::uint8_t) noexcept override {}
    std::optional<std::uint64_t> read_msr(std::uint32_t) noexcept override { return {}; }
    bool write_msr(std::uint32_t, std::uint64_t) noexcept override { return false; }
    std::uint64_t mmio_page() const noexcept override { return UINT64_MAX; }
    std::uint32_t mmio_read(std::uint32_t) noexcept override { return 0; }
    void mmio_write(std::uint32_t, std::uint32_t) noexcept override {}
    void init_reset() noexcept override {}
};

/// The guest's TSC is the host's.
class HostCounter final : public x86::TscSource {
public:
    std::uint64_t read() const noexcept override { return __builtin_ia32_rdtsc(); }
    std::uint64_t frequency_hz() const noexcept override { return 1'000'000'000; }
    bool is_host_tsc(std::uint64_t& offset) const noexcept override {
        offset = 0;
        return true;
    }
};

/// Owner thread only.
struct BareMachine {
    std::unique_ptr<memory::GuestMemory> memory;
    bus::AddressSpace pio{bus::AddressSpace::Kind::Pio};
    bus::AddressSpace mmio{bus::AddressSpace::Kind::Mmio};
    NoInterrupts interrupts;
    HostCounter tsc;
    description::CpuModel model;
    std::unique_ptr<KvmMachine> machine;
    std::vector<std::unique_ptr<KvmVcpu>> vcpus;

    /// Everything that this KVM offers, as a CPU model.
    static base::Result<std::unique_ptr<BareMachine>>
    create(Syscalls& syscalls, std::uint64_t ram_bytes, unsigned cpus = 1);
    x86::VcpuWiring wiring(unsigned index);
};

} // namespace doppel::cpu::kvm
