// SPDX-License-Identifier: Apache-2.0
#pragma once
/// /dev/kvm: what the kernel offers before there is a VM.
#include <linux/kvm.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "cpu/kvm/ioctl.hpp"
#include "description/cpu_model.hpp"

namespace doppel::cpu::kvm {

/// Any thread.
class KvmSystem {
public:
    /// Errors: NotFound, PermissionDenied, Unsupported (an API that is not version 12, or without
    /// something that the engine is built on), each with a way out.
    static base::Result<KvmSystem> open(Syscalls& syscalls = Syscalls::host());

    /// KVM_CHECK_EXTENSION; 0 when it is not there.
    int capability(unsigned long number) const;
    std::span<const kvm_cpuid_entry2> supported_cpuid() const { return cpuid_; }
    std::size_t vcpu_map_bytes() const { return vcpu_map_bytes_; }
    base::Result<Descriptor> create_vm() const;

    /// What `model` promises and this KVM does not offer, as a list of CPUID bits; empty: all
    /// there.
    std::string missing_features(const description::CpuModel& model) const;

    /// Whether the kernel's IA32_SPEC_CTRL takes all that our models promise: IBRS, STIBP,
    /// BHI_CTRL. Elsewhere (every AMD CPU lacks the last) the system layer keeps that MSR, as with
    /// the other engines.
    bool has_speculation_control() const;

private:
    std::uint32_t offered(std::uint32_t leaf, std::uint32_t subleaf, unsigned place) const;
    explicit KvmSystem(Descriptor fd) : fd_{std::move(fd)} {}
    base::Result<void> check_capabilities() const;
    base::Result<void> read_cpuid();

    Descriptor fd_;
    std::vector<kvm_cpuid_entry2> cpuid_;
    std::size_t vcpu_map_bytes_ = 0;
};

} // namespace doppel::cpu::kvm
