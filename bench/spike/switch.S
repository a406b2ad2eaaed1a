// SPDX-License-Identifier: Apache-2.0
// What it costs to change the TLB instance: cycles per switch followed by one checked load.
        .intel_syntax noprefix
        .text
        .macro lookup base:vararg
        rorx    r14, rdi, 12
        movzx   r14d, r14w
        mov     r13, \base
        xor     r13, rdi
        cmp     r13, 4088
        ja      1f
        .endm
// rdi = guest address, rsi = rounds, rdx / rcx = the two instances (tag arrays filled by the caller)
        .globl  switch_gs, switch_r15, switch_rsp, switch_none
switch_gs:
        push r13; push r14; push r15
0:      wrgsbase rdx
        lookup  qword ptr gs:[r14*8]
        mov     rdi, [rdi]
        wrgsbase rcx
        lookup  qword ptr gs:[r14*8]
        mov     rdi, [rdi]
        sub     rsi, 2
        jnz     0b
1:      pop r15; pop r14; pop r13
        ret
switch_r15:
        push r13; push r14; push r15
0:      mov     r15, rdx
        lookup  qword ptr [r15+r14*8]
        mov     rdi, [rdi]
        mov     r15, rcx
        lookup  qword ptr [r15+r14*8]
        mov     rdi, [rdi]
        sub     rsi, 2
        jnz     0b
1:      pop r15; pop r14; pop r13
        ret
// the frame moves with the instance: eight hot words are carried over
        .macro carry from, to
        .irp k, 0, 32
        vmovdqu ymm0, [\from+\k-128]
        vmovdqu [\to+\k-128], ymm0
        .endr
        .endm
switch_rsp:
        push r13; push r14; push r15
        mov     r15, rsp
0:      carry   rcx, rdx
        mov     rsp, rdx
        lookup  qword ptr [rsp+r14*8]
        mov     rdi, [rdi]
        carry   rdx, rcx
        mov     rsp, rcx
        lookup  qword ptr [rsp+r14*8]
        mov     rdi, [rdi]
        sub     rsi, 2
        jnz     0b
1:      mov     rsp, r15
        vzeroupper
        pop r15; pop r14; pop r13
        ret
switch_none:
        push r13; push r14; push r15
        mov     r15, rdx
0:      lookup  qword ptr [r15+r14*8]
        mov     rdi, [rdi]
        lookup  qword ptr [r15+r14*8]
        mov     rdi, [rdi]
        sub     rsi, 2
        jnz     0b
1:      pop r15; pop r14; pop r13
        ret
        .section .note.GNU-stack,"",@progbits
