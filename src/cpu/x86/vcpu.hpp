// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Typed access to an x86 vCPU of any engine.
#include "cpu/vcpu.hpp"
#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/event_log.hpp"

namespace doppel::cpu::x86 {

/// Where a guest is: for a profile.
struct GuestPlace {
    std::uint64_t rip = 0;
    std::uint64_t cr3 = 0;
    bool user = false;
    bool operator==(const GuestPlace&) const = default;
};

class Vcpu : public cpu::Vcpu {
public:
    /// The live state; valid and writable while run() is not executing. A writer calls
    /// state_changed() afterwards, so that the engine drops what it has cached (TLB, modes).
    virtual CpuState& state() = 0;
    virtual void state_changed() = 0;
    /// GuestMemory::harvest_dirty_log() has marked pages: an engine that keeps permissions to write
    /// without a look at the page's state drops them. While run() is not executing.
    virtual void drop_write_permissions() {}
    /// What it was interrupted by; nullptr: the engine does not see it. While run() is not
    /// executing.
    virtual const EventLog* events() const { return nullptr; }
    /// While run() is executing, by a signal handler on its thread, which was interrupted at
    /// `host_pc`: the instruction that is being executed, or one shortly before it.
    virtual GuestPlace place(const void* /*host_pc*/) noexcept {
        const CpuState& now = state();
        return {.rip = now.rip, .cr3 = now.cr3, .user = now.cpl == 3};
    }
};

} // namespace doppel::cpu::x86
