// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Entry from C++ into one guest instruction that runs on the host CPU, and back.
#include <cstddef>
#include <cstdint>

#include "cpu/x86/cpu_state.hpp"

namespace doppel::cpu::x86::native {

/// What goes in and comes out. The instruction finds its memory operand at [rbx], its general
/// register operand in rax; x87 and vector registers are those of `xsave`.
struct StubCall {
    std::uint64_t rax = 0, rcx = 0, rdx = 0;
    std::uint64_t flags = 0; // AH = SF ZF AF PF CF, AL = OF
    XsaveArea* xsave = nullptr;
    std::byte* memory = nullptr;
    const std::byte* code = nullptr;
    std::uint64_t trap = 0;       // number of the exception the host raised + 1, or 0
    std::uint64_t components = 0; // of XSAVE
    std::uint64_t host_stack = 0;
};

/// Runs it. Exceptions #UD, #MF and #XM of the instruction end up in `trap`, with the registers as
/// they were and the exception flags set, as the CPU leaves them.
void call_stub(StubCall& call);

/// Installs the signal handlers call_stub() needs (SIGFPE, SIGILL); what they do not recognise goes
/// to the handlers that were there before. Any thread, any number of times.
void install_trap_handlers();

} // namespace doppel::cpu::x86::native
