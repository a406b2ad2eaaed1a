// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The ways into and out of translated code, generated once at the start of code memory.
#include <array>
#include <cstddef>

#include "cpu/translator/emit/assembler.hpp"
#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/shared_checks.hpp"

namespace doppel::cpu::x86::frontend {

struct Stubs {
    /// Length of an exit: `mov r14d, offset of the Site; jmp stub`, and then the Site; where r14
    /// is needed, `mov [exit_site], …`. A call would be shorter, but its return address, never
    /// returned to, makes the host mispredict the return from `enter` and those of its callers.
    static constexpr std::size_t exit_bytes(Exit why) { return why == Exit::Miss ? 13 : 11; }
    const std::uint8_t* base = nullptr; // of code memory
    /// Loads everything but vectors from the frame, runs from header.resume until an exit, stores
    /// everything. Vectors, x87 and MXCSR stay the guest's.
    using Enter = Exit (*)(CpuState* frame);
    Enter enter = nullptr;
    /// Called by translated code: r13 = first byte of a stack range, xor stack_page, r14 = 4096 -
    /// its length. Makes its page the stack page, and sets CF. Otherwise ZF: the page is in the TLB
    /// for writing, but the range crosses its end.
    const std::uint8_t* stack_refill = nullptr;
    /// Target of exits for Exit::Branch: looks in the shared branches first. But one in many asks
    /// the dispatcher, who enters the target where the branch has looked: what runs often is found
    /// there, what runs once does not take its place.
    const std::uint8_t* shared_branch = nullptr;
    static constexpr std::uint64_t kSharedBranchWait = 31;
    /// Likewise, but looks in the branch cache before that: r13 = target. The flags are in the
    /// slot, or in the register.
    const std::uint8_t* branch = nullptr;
    const std::uint8_t* branch_with_flags = nullptr;
    /// For returns whose call has left no landing: looks in the branch cache.
    const std::uint8_t* landing = nullptr;
    /// What Frame::flag_maker names when the flags are in the slot. Otherwise it names code that
    /// brings them into the register, touches nothing else and jumps to made_register.
    const std::uint8_t* made_slot = nullptr;
    const std::uint8_t* made_register = nullptr;
    SharedChecks shared;
    /// Targets of exits (Stale, HostFault: without a Site).
    std::array<std::array<const std::uint8_t*, 3>, static_cast<std::size_t>(Exit::Count)> exits{};

    const std::uint8_t* exit(Exit why, FlagPlace flags) const {
        return exits[static_cast<std::size_t>(why)][static_cast<std::size_t>(flags)];
    }
};

/// At the very start of code memory.
Stubs emit_stubs(translator::Assembler& to);
void put_site(translator::Assembler& to, const Site& site, std::size_t bytes);
/// For `why`, with the first `bytes` of `site`.
void emit_exit(translator::Assembler& to, Exit why, const std::uint8_t* stub, const Stubs& stubs,
               const Site& site, std::size_t bytes);

} // namespace doppel::cpu::x86::frontend
