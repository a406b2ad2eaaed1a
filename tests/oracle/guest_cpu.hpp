// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The subject: runs cases on a vCPU of any engine, at CPL 3 with paging, with page tables that map
/// the areas of case.hpp as the host's process has them, and an IDT whose handlers halt.
#include <functional>
#include <memory>
#include <span>

#include "base/result.hpp"
#include "cpu/x86/board_ports.hpp"
#include "cpu/x86/vcpu.hpp"
#include "tests/oracle/case.hpp"

namespace doppel::oracle {

using VcpuFactory = std::function<base::Result<std::unique_ptr<cpu::x86::Vcpu>>(
    const cpu::x86::VcpuWiring& wiring)>;

/// The engine by its name ("interpreter"). Errors: InvalidArgument.
base::Result<VcpuFactory> find_engine(std::string_view name);

/// Owner thread only.
class GuestCpu {
public:
    static base::Result<std::unique_ptr<GuestCpu>> create(const VcpuFactory& factory,
                                                          std::span<const MemoryImage> images);
    ~GuestCpu();

    Outcome run(const Case& test);
    /// The memory after the last case.
    const MemoryImage& memory() const;

private:
    struct Parts;
    explicit GuestCpu(std::unique_ptr<Parts> parts);
    std::unique_ptr<Parts> parts_;
};

} // namespace doppel::oracle
