// SPDX-License-Identifier: Apache-2.0
#pragma once
/// For tests: a kernel that says yes to everything, remembers what it was told and can be told to
/// fail; and what a vCPU needs of a board.
#include <linux/kvm.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "bus/address_space.hpp"
#include "cpu/kvm/bare_machine.hpp"
#include "cpu/kvm/ioctl.hpp"
#include "cpu/kvm/kvm_machine.hpp"
#include "cpu/kvm/kvm_vcpu.hpp"
#include "description/cpu_model.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::cpu::kvm::test {

/// KVM without a kernel: every request succeeds and changes nothing.
class FakeKernel : public Syscalls {
public:
    unsigned long failing = 0; // this request fails, without its size bits
    int error = ENOMEM;
    unsigned long missing_capability = ~0ul;
    int open_error = 0;
    int api_version = KVM_API_VERSION;
    std::set<unsigned long> seen;
    std::function<void()> on_run = [] {}; // called in KVM_RUN, which then fails with
    int run_errno = EINTR;                // this; 0: an exit
    static constexpr std::size_t kRunBytes = 12288;

    static unsigned long bare(unsigned long request) { return request & 0xffff; }

    int open(const char*) override {
        if (open_error != 0)
            errno = open_error;
        return open_error != 0 ? -1 : new_fd();
    }
    void* map(int, std::size_t bytes) override {
        if (fails(~0ul))
            return MAP_FAILED;
        return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    int ioctl(int, unsigned long request, void* argument) override {
        seen.insert(bare(request));
        if (fails(bare(request)))
            return -1;
        switch (bare(request)) {
        case KVM_GET_API_VERSION & 0xffff: return api_version;
        case KVM_CHECK_EXTENSION & 0xffff:
            return reinterpret_cast<std::uintptr_t>(argument) == missing_capability ? 0 : 1;
        case KVM_GET_VCPU_MMAP_SIZE & 0xffff: return kRunBytes;
        case KVM_CREATE_VM & 0xffff:
        case KVM_CREATE_VCPU & 0xffff: return new_fd();
        case KVM_GET_MSRS & 0xffff:
        case KVM_SET_MSRS & 0xffff: {
            std::uint32_t count = 0;
            std::memcpy(&count, argument, sizeof count);
            return static_cast<int>(count);
        }
        case KVM_GET_SUPPORTED_CPUID & 0xffff: {
            const std::uint32_t none = 0;
            std::memcpy(argument, &none, sizeof none);
            return 0;
        }
        case KVM_RUN & 0xffff:
            on_run();
            errno = run_errno;
            return run_errno != 0 ? -1 : 0;
        default: return 0;
        }
    }

private:
    static int new_fd() { return ::memfd_create("fake-kvm", MFD_CLOEXEC); }
    bool fails(unsigned long request) {
        if (failing != request)
            return false;
        errno = error;
        return true;
    }
};

/// A PIC whose interrupts wait.
class WaitingPic final : public NoInterrupts {
public:
    std::vector<std::uint8_t> external;
    bool intr_pending() noexcept override { return !external.empty(); }
    std::optional<std::uint8_t> acknowledge_intr() noexcept override {
        if (external.empty())
            return std::nullopt;
        const auto vector = external.front();
        external.erase(external.begin());
        return vector;
    }
};

/// RAM, buses and the model that the machine below has.
struct Board {
    std::unique_ptr<memory::GuestMemory> memory;
    bus::AddressSpace pio{bus::AddressSpace::Kind::Pio};
    bus::AddressSpace mmio{bus::AddressSpace::Kind::Mmio};
    WaitingPic interrupts;
    HostCounter tsc;
    description::CpuModel model = *description::find_cpu_model("x86-64-v1");

    explicit Board(std::uint64_t ram_bytes) {
        const memory::RamRegion region{{0}, ram_bytes};
        memory = std::move(*memory::GuestMemory::create({&region, 1}));
    }
    x86::VcpuWiring wiring(unsigned index = 0) {
        return {.index = index,
                .memory = memory.get(),
                .pio = &pio,
                .mmio = &mmio,
                .interrupts = &interrupts,
                .msrs = nullptr,
                .tsc = &tsc,
                .model = &model};
    }
};

} // namespace doppel::cpu::kvm::test
