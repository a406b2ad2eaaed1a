// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What an x86 engine needs from the board besides memory and buses. Implemented by `machine`,
/// injected into every engine.
#include <cstdint>
#include <optional>

#include "base/clock.hpp"
#include "bus/address_space.hpp"
#include "cpu/instruction_meter.hpp"
#include "cpu/interrupt_port.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::description {
struct CpuModel;
}

namespace doppel::cpu::x86 {

/// MSRs that belong to the board (kvmclock, PV features). vCPU thread only.
class MsrPort {
public:
    virtual ~MsrPort() = default;
    /// Empty: no such MSR here (#GP(0) when no other place has it).
    virtual std::optional<std::uint64_t> read_msr(unsigned vcpu, std::uint32_t index) noexcept = 0;
    /// Also told of IA32_TSC and IA32_TSC_ADJUST, when the vCPU has taken the value.
    virtual bool write_msr(unsigned vcpu, std::uint32_t index, std::uint64_t value) noexcept = 0;
};

/// Time-stamp counter of the VM: ticks at `frequency_hz` of VM time. Guest RDTSC = read() + the
/// vCPU's tsc_offset. Any thread.
class TscSource {
public:
    virtual ~TscSource() = default;
    virtual std::uint64_t read() const noexcept = 0;
    virtual std::uint64_t frequency_hz() const noexcept = 0;
    /// True when read() is host RDTSC plus host_offset(), so that translated code may use RDTSC.
    virtual bool is_host_tsc(std::uint64_t& host_offset) const noexcept = 0;
};

/// Where RDRAND and RDSEED get their numbers. vCPU thread only.
class EntropySource {
public:
    virtual ~EntropySource() = default;
    /// False: there was none in time (CF = 0).
    virtual bool next(std::uint64_t& value) noexcept = 0;
};

/// Everything one vCPU is wired to; all outlive it, owned by the Machine.
struct VcpuWiring {
    unsigned index = 0; // = initial APIC id
    memory::GuestMemory* memory = nullptr;
    bus::AddressSpace* pio = nullptr;
    bus::AddressSpace* mmio = nullptr;
    InterruptPort* interrupts = nullptr;
    MsrPort* msrs = nullptr; // may be null
    const TscSource* tsc = nullptr;
    const description::CpuModel* model = nullptr;
    InstructionMeter* meter = nullptr; // null: instructions are not counted
    EntropySource* entropy = nullptr;  // null: the host CPU's
};

} // namespace doppel::cpu::x86
