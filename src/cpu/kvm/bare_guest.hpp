// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A guest without firmware, loader or board: one piece of code in long mode, tables around it. For
/// the self-test, and for tests.
#include <cstddef>
#include <cstdint>
#include <span>

#include "cpu/x86/cpu_state.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::cpu::kvm {

/// Where things are; everything below 4 GiB is mapped to itself, for both rings. All ports are open
/// to ring 3, and every gate has DPL 3. Needs 256 KiB of RAM at 0.
struct BareGuest {
    static constexpr std::uint64_t kStackTop = 0xf000, kUserStackTop = 0x1f000, kCode = 0x20000;
    static constexpr std::uint16_t kKernelCode = 0x08, kKernelData = 0x10, kUserData = 0x20 | 3,
                                   kUserCode = 0x28 | 3, kTss = 0x30;
    /// For SYSCALL and SYSRET.
    static constexpr std::uint64_t kStar = std::uint64_t{0x18} << 48 | std::uint64_t{0x08} << 32;

    /// The code and the tables. `unexpected` and the handlers are offsets into `code`.
    struct Handler {
        std::uint8_t vector;
        std::uint64_t offset;
    };
    static void place(memory::GuestMemory& memory, std::span<const std::byte> code,
                      std::uint64_t unexpected, std::span<const Handler> handlers);

    enum class Ring : std::uint8_t { Kernel = 0, User = 3 };
    /// A CPU that begins at `offset` of the code.
    static void enter(x86::CpuState& state, std::uint64_t offset, Ring ring);
};

} // namespace doppel::cpu::kvm
