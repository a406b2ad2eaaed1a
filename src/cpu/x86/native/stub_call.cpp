// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/native/stub_call.hpp"

#include <array>
#include <csignal>
#include <mutex>
#include <ucontext.h>

// Only r12 (the StubCall) and rsp are ours while the instruction runs. The control words of C++ are
// put back before anything else may compute; vzeroupper is harmless where AVX is off, so it is used
// only with it.
asm(R"(
    .text
    .p2align 4
    .globl doppel_native_call
    .type doppel_native_call, @function
doppel_native_call:
    pushq %rbx
    pushq %r12
    subq $24, %rsp
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    movq %rdi, %r12
    movq %rsp, 72(%r12)
    movq 32(%r12), %rdi
    movq 40(%r12), %rbx
    movq 48(%r12), %rsi
    movl 64(%r12), %eax
    xorl %edx, %edx
    xrstor64 (%rdi)
    movq 8(%r12), %rcx
    movq 16(%r12), %rdx
    movq 24(%r12), %rax
    addb $0x7f, %al
    sahf
    movq 0(%r12), %rax
    call *%rsi
    .globl doppel_native_returned
doppel_native_returned:
    movq %rax, 0(%r12)
    movq %rcx, 8(%r12)
    movq %rdx, 16(%r12)
    lahf
    seto %al
    movzwl %ax, %eax
    movq %rax, 24(%r12)
    .globl doppel_native_trapped
doppel_native_trapped:
    movq 72(%r12), %rsp
    movq 32(%r12), %rdi
    movl 64(%r12), %eax
    xorl %edx, %edx
    xsave64 (%rdi)
    fninit
    fldcw 4(%rsp)
    ldmxcsr (%rsp)
    testb $4, 64(%r12)
    jz 1f
    vzeroupper
1:  addq $24, %rsp
    popq %r12
    popq %rbx
    ret
    .size doppel_native_call, . - doppel_native_call
)");

extern "C" {
void doppel_native_call(doppel::cpu::x86::native::StubCall* call);
extern const char doppel_native_returned[];
extern const char doppel_native_trapped[];
}

namespace doppel::cpu::x86::native {
namespace {

static_assert(offsetof(StubCall, flags) == 24 && offsetof(StubCall, xsave) == 32 &&
              offsetof(StubCall, memory) == 40 && offsetof(StubCall, code) == 48 &&
              offsetof(StubCall, components) == 64 && offsetof(StubCall, host_stack) == 72);

constexpr std::array kSignals = {SIGFPE, SIGILL};
std::array<struct sigaction, kSignals.size()> previous;

void pass_on(int signal, siginfo_t* info, void* context) {
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
        if (kSignals[i] != signal)
            continue;
        const struct sigaction& old = previous[i];
        if ((old.sa_flags & SA_SIGINFO) != 0)
            return old.sa_sigaction(signal, info, context);
        if (old.sa_handler == SIG_IGN)
            return;
        if (old.sa_handler != SIG_DFL)
            return old.sa_handler(signal);
        ::signal(signal, SIG_DFL); // returning runs the instruction again, which ends the process
    }
}

/// In a stub the word at rsp is its return address, and r12 the StubCall.
void on_trap(int signal, siginfo_t* info, void* context) {
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const auto* stack = reinterpret_cast<const std::uint64_t*>(registers[REG_RSP]);
    if (*stack != reinterpret_cast<std::uint64_t>(doppel_native_returned))
        return pass_on(signal, info, context);
    auto* call = reinterpret_cast<StubCall*>(registers[REG_R12]);
    call->trap = static_cast<std::uint64_t>(registers[REG_TRAPNO]) + 1;
    registers[REG_RIP] = reinterpret_cast<greg_t>(doppel_native_trapped);
}

} // namespace

void call_stub(StubCall& call) { doppel_native_call(&call); }

void install_trap_handlers() {
    static std::mutex mutex;
    const std::scoped_lock lock{mutex};
    struct sigaction action{};
    action.sa_sigaction = on_trap;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
        struct sigaction current{};
        sigaction(kSignals[i], nullptr, &current);
        if ((current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == on_trap)
            continue;
        previous[i] = current;
        sigaction(kSignals[i], &action, nullptr);
    }
}

} // namespace doppel::cpu::x86::native
