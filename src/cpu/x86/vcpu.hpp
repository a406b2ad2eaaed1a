// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Typed access to an x86 vCPU of any engine.
#include "cpu/vcpu.hpp"
#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/event_log.hpp"

namespace doppel::cpu::x86 {

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
};

} // namespace doppel::cpu::x86
