// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Between CpuState and the structures of KVM's API (Linux 6.1 Documentation/virt/kvm/api.rst).
/// Pure functions; any thread.
#include <linux/kvm.h>

#include <cstdint>
#include <optional>
#include <span>

#include "cpu/x86/cpu_state.hpp"

namespace doppel::cpu::kvm {

kvm_regs to_regs(const x86::CpuState& state);
void from_regs(const kvm_regs& regs, x86::CpuState& state);

/// CR8 and IA32_APIC_BASE belong to the interrupt controller: they are taken over from `kernel` as
/// it stands, and left alone on the way back. With PDPTE registers where PAE paging uses them.
kvm_sregs2 to_sregs(const x86::CpuState& state, const kvm_sregs2& kernel);
void from_sregs(const kvm_sregs2& sregs, x86::CpuState& state);
kvm_debugregs to_debugregs(const x86::CpuState& state);
void from_debugregs(const kvm_debugregs& registers, x86::CpuState& state);

/// On a CPU without XSAVE the kernel fills the same structure from FXSAVE.
struct XsaveRegion { // kvm_xsave as C sees it
    std::uint32_t region[1024];
};
XsaveRegion to_xsave(const x86::CpuState& state);
void from_xsave(const XsaveRegion& area, x86::CpuState& state);

/// What was to be delivered when the vCPU stopped; the state as returned is before all of it.
struct InFlight {
    std::optional<std::uint8_t> interrupt; // acknowledged by an interrupt controller
    bool nmi = false;                      // injected or pending
};
/// Shadows, NMI blocking, pending #DB. Exceptions other than #DB are dropped: their instruction is
/// executed again and raises them again.
InFlight from_events(const kvm_vcpu_events& events, x86::CpuState& state);
/// `kernel` as it stands, with the same taken from `state`; `keep` says whether what KVM has in
/// flight stays.
enum class Injected : std::uint8_t { Drop, Keep };
kvm_vcpu_events to_events(const x86::CpuState& state, const kvm_vcpu_events& kernel, Injected keep);

std::uint32_t to_mp_state(x86::Activity activity);
x86::Activity from_mp_state(std::uint32_t mp_state);

/// Every MSR that CpuState has and KVM may hold: number and place.
struct MsrPlace {
    std::uint32_t index;
    std::uint64_t* value;
};
constexpr std::size_t kMaxMsrs = 96;
/// Fills `places` and returns how many there are.
std::size_t msr_places(x86::CpuState& state, std::span<MsrPlace, kMaxMsrs> places);

} // namespace doppel::cpu::kvm
