// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/self_test_guest.hpp"

namespace doppel::cpu::kvm::self_test_guest {

static_assert(kResultPort == 0x10 && kSpeedRounds == 300'000, "the code below has them as numbers");

// 1a000h: an XSAVE area; 1b000h: 16 bytes for CMPXCHG16B.
asm(R"(
    .pushsection .rodata
    .intel_syntax noprefix
    .balign 16
    .globl doppel_self_test_begin, doppel_self_test_end
    .globl doppel_self_test_int3, doppel_self_test_sse, doppel_self_test_xsave
    .globl doppel_self_test_sysret, doppel_self_test_cx16, doppel_self_test_speed
    .globl doppel_self_test_fail, doppel_self_test_on_int3, doppel_self_test_on_syscall
doppel_self_test_begin:
pass:
    xor eax, eax
    out 0x10, al
1:  hlt
    jmp 1b
doppel_self_test_fail:
    mov eax, 1
    out 0x10, al
1:  hlt
    jmp 1b

doppel_self_test_int3:
    xor ebx, ebx
    int3
    cmp ebx, 1
    jne doppel_self_test_fail
    jmp pass
doppel_self_test_on_int3:
    mov ebx, 1
    iretq

doppel_self_test_sse:
    mov eax, 3
    movd xmm0, eax
    pshufd xmm1, xmm0, 0
    paddd xmm1, xmm0
    movd eax, xmm1
    cmp eax, 6
    jne doppel_self_test_fail
    cvtsi2sd xmm2, eax
    mulsd xmm2, xmm2
    cvttsd2si eax, xmm2
    cmp eax, 36
    jne doppel_self_test_fail
    jmp pass

doppel_self_test_xsave:
    mov rax, cr4
    or eax, 0x40000
    mov cr4, rax
    xor ecx, ecx
    xgetbv
    or eax, 3
    xsetbv
    mov eax, 3
    xor edx, edx
    mov edi, 0x1a000
    xsave [rdi]
    xrstor [rdi]
    jmp pass

doppel_self_test_sysret:
    lea rcx, [rip + in_user_mode]
    mov r11d, 2
    sysretq
in_user_mode:
    mov eax, cs
    and eax, 3
    cmp eax, 3
    jne doppel_self_test_fail
    syscall
    jmp doppel_self_test_fail
doppel_self_test_on_syscall:
    mov eax, cs
    test eax, 3
    jnz doppel_self_test_fail
    jmp pass

doppel_self_test_cx16:
    mov esi, 0x1b000
    mov qword ptr [rsi], 1
    mov qword ptr [rsi + 8], 2
    mov eax, 1
    mov edx, 2
    mov ebx, 3
    mov ecx, 4
    lock cmpxchg16b [rsi]
    jne doppel_self_test_fail
    cmp qword ptr [rsi + 8], 4
    jne doppel_self_test_fail
    jmp pass

doppel_self_test_speed:
    mov ecx, 300000
1:  add rax, rcx
    dec ecx
    jnz 1b
    jmp pass
doppel_self_test_end:
    .att_syntax prefix
    .popsection
)");

} // namespace doppel::cpu::kvm::self_test_guest
