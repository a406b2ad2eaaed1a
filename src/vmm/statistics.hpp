// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "cpu/vcpu.hpp"
#include "cpu/x86/event_log.hpp"

namespace doppel::vmm {

struct VcpuFigures {
    cpu::VcpuStats stats;
    const cpu::x86::EventLog* events = nullptr; // nullptr: the engine does not see them
    std::uint64_t cpu_time_ns = 0;
    std::uint64_t halt_sleeps = 0;
};

/// What --stats prints: one "name: value" per line, sums over all vCPUs, then the process's own.
std::string format_statistics(std::string_view engine, std::uint64_t vm_time_ns,
                              std::span<const VcpuFigures> vcpus);

} // namespace doppel::vmm
