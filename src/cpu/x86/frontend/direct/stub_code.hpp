// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The program of a StubProcess: one page of code, and what it shares with the VM's process. It has
/// no stack and no data of its own, as all other memory there is the guest's.
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/x86/cpu_state.hpp"

namespace doppel::cpu::x86::frontend {

/// Written by us, read by the stub: it cannot change it.
struct StubShared {
    struct Call { // of the host's kernel
        std::uint64_t number = 0;
        std::array<std::uint64_t, 6> arguments{};
    };
    static constexpr std::size_t kCalls = 200;

    XsaveArea vectors;                                // to be loaded by StubCode::enter …
    std::uint64_t rax = 0, rcx = 0, rdx = 0, rip = 0; // … and these behind them
    alignas(4096) std::uint64_t count = 0;            // of calls
    std::array<Call, kCalls> calls{};
    std::array<std::uint64_t, 32> scratch{}; // what calls point to
};
inline constexpr std::size_t kStubSharedBytes = 0x4000;
static_assert(sizeof(StubShared) <= kStubSharedBytes);
static_assert(offsetof(StubShared, rax) == 832 && offsetof(StubShared, count) == 0x1000);

/// Places in the stub, as distances from the beginning of its page; the shared memory is behind it.
struct StubCode {
    static constexpr std::size_t kPageBytes = 0x1000;
    static constexpr std::size_t kBytes = kPageBytes + kStubSharedBytes;
    // File descriptors it is started with.
    static constexpr int kRamFd = 3, kSharedFd = 4, kCopiesFd = 5;

    std::uint64_t start;   // maps the shared memory; stops
    std::uint64_t started; // rip then
    std::uint64_t int1;    // an INT1
    std::uint64_t work;    // makes the calls; stops at the end, or behind the first that fails
    std::uint64_t worked;  // rip then; rax: the last result; r12: calls that are left
    std::uint64_t enter;   // loads what there is to load and jumps to rip
    std::uint64_t end;
};
/// `keys`: of a CPU with protection keys that are in use (CPUID.7.ECX.OSPKE).
StubCode stub_code(bool keys);

/// An executable file of which the stub is the only page, at `address`.
std::vector<std::byte> stub_executable(std::uint64_t address);

} // namespace doppel::cpu::x86::frontend
