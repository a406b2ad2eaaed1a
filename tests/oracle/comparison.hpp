// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Runs cases on both and tells where they differ.
#include <memory>
#include <string>
#include <vector>

#include "tests/oracle/guest_cpu.hpp"
#include "tests/oracle/host_cpu.hpp"

namespace doppel::oracle {

/// Owner thread only.
class Comparison {
public:
    static base::Result<std::unique_ptr<Comparison>> create(const VcpuFactory& engine);

    /// Queues; runs the batch when it is full.
    void add(const Case& test);
    /// Runs what is queued.
    void flush();

    std::uint64_t cases() const { return cases_; }
    std::uint64_t faults() const { return faults_; } // cases that ended in another exception
    std::uint64_t differences() const { return differences_; }
    /// A description of each of the first few.
    const std::vector<std::string>& reports() const { return reports_; }

private:
    Comparison() = default;
    std::unique_ptr<HostCpu> host_;
    std::unique_ptr<GuestCpu> guest_;
    std::vector<Case> queue_;
    std::uint64_t cases_ = 0, faults_ = 0, differences_ = 0;
    std::vector<std::string> reports_;
    std::vector<std::uint64_t> seen_; // opcodes reported already
};

} // namespace doppel::oracle
