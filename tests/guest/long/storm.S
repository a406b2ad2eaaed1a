/* SPDX-License-Identifier: Apache-2.0 */
/* Computations under a storm of timer interrupts give what they give in peace: registers, flags,
 * vector registers, REP strings, calls, indirect jumps, CPL 3 and system calls; no loop keeps an
 * interrupt out. Intel SDM (June 2025) Vol. 3A §7.5, §12.5.4.
 */
#include "guest.h"

#define TICK 0x51
#define PERIODIC 0x20000
#define PERIOD 20000

    /* Runs `label` (result in rax) with IF 0 and then in the storm; both must agree. */
    .macro BOTH_WAYS what, label
    cli
    call \label
    mov [peace], rax
    mov qword ptr [ticks], 0
    mov dword ptr [rbp + 0x380], PERIOD
    mov r15d, 40000
.Lagain\@:
    sti
    push r15
    call \label
    pop r15
    cli
    cmp rax, [peace]
    jne .Ldone\@
    cmp qword ptr [ticks], 40 /* enough of them have come */
    jae .Ldone\@
    dec r15d
    jz .Ldone\@
    cmp r15d, 40000 - 400
    ja .Lagain\@
    cmp qword ptr [ticks], 1 /* on a busy host even the first takes its time */
    jb .Lagain\@
.Ldone\@:
    mov dword ptr [rbp + 0x380], 0
    sti
    nop
    nop
    cli
    CHECK "\what", rax, [peace]
    mov rax, [ticks]
    cmp rax, 1
    setae al
    movzx eax, al
    CHECK "\what: interrupted", rax, 1
    .endm

    /* The loop ends only when the handler moves rip behind it. */
    .macro ENDLESS what, insn:vararg
    mov qword ptr [escape], offset .Lout\@
    mov qword ptr [ticks], 0
    mov dword ptr [rbp + 0x320], TICK
    mov dword ptr [rbp + 0x380], PERIOD
    sti
    \insn
.Lout\@:
    cli
    mov qword ptr [escape], 0
    CHECK "\what", [ticks], 1
    .endm
    .macro SPIN_JMP
1:  jmp 1b
    .endm
    .macro SPIN_TWO
1:  jmp 2f
    nop
2:  jmp 1b
    .endm
    .macro SPIN_CONDITION
    xor eax, eax
1:  test eax, eax
    jz 1b
    .endm
    .macro SPIN_INDIRECT
    lea rax, [rip + 1f]
1:  jmp rax
    .endm
    .macro SPIN_CALL
1:  call nothing
    jmp 1b
    .endm
    .macro SPIN_MEMORY
1:  cmp dword ptr [never], 1
    jne 1b
    .endm
    .macro SPIN_LOCKED
1:  lock inc dword ptr [scratch]
    jmp 1b
    .endm
    .macro SPIN_FALLING /* a long block without a branch, then back */
1:  .fill 600, 1, 0x90
    jmp 1b
    .endm
    .macro SPIN_REP
1:  lea rdi, [rip + scratch]
    mov ecx, 4096
    rep stosb
    jmp 1b
    .endm

    .text
    .globl main
main:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    SET_CR4 CR4_OSFXSR
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    mov dword ptr [rbp + 0x3e0], 0xb
    HOOK TICK, on_tick
    BEGIN "no loop keeps an interrupt out"
    ENDLESS "jmp to itself", SPIN_JMP
    ENDLESS "two blocks", SPIN_TWO
    ENDLESS "conditional", SPIN_CONDITION
    ENDLESS "indirect", SPIN_INDIRECT
    mov r14, rsp
    ENDLESS "call and ret", SPIN_CALL
    mov rsp, r14
    ENDLESS "waiting for memory", SPIN_MEMORY
    ENDLESS "locked", SPIN_LOCKED
    ENDLESS "straight on", SPIN_FALLING
    ENDLESS "rep stosb", SPIN_REP

    mov dword ptr [rbp + 0x320], TICK|PERIODIC
    BEGIN "the same in a storm"
    BOTH_WAYS "sixteen registers", mix_registers
    BOTH_WAYS "flags", carry_chain
    BOTH_WAYS "vector registers", mix_vectors
    BOTH_WAYS "x87", mix_x87
    BOTH_WAYS "strings", copy_and_sum
    BOTH_WAYS "recursion", fibonacci
    BOTH_WAYS "indirect jumps", jump_table
    BOTH_WAYS "code that changes", patch_and_run
    WRITE_MSR 0xc0000081, 0, UCODE32<<16|KCODE
    WRITE_MSR 0xc0000082, "offset on_syscall"
    WRITE_MSR 0xc0000084, FLAG_IF
    BOTH_WAYS "CPL 3 and system calls", user_loop
    BOTH_WAYS "page faults", fault_loop
    jmp finish

on_tick:
    inc qword ptr [ticks]
    mov dword ptr [rbp + 0xb0], 0
    mov rax, [escape]
    test rax, rax
    jz 1f
    mov [rdi + F_RIP], rax
1:  mov eax, 0x7fffffff
    add eax, 0x7fffffff /* flags the interrupted code must not see */
    ret

nothing:
    ret

mix_registers: /* rbp is the APIC's, and the stack pointer the stack's */
    push r14
    mov eax, 1
    mov ebx, 2
    mov edx, 3
    mov esi, 4
    mov edi, 5
    mov r8d, 6
    mov r9d, 7
    mov r10d, 8
    mov r11d, 9
    mov r12d, 10
    mov r13d, 11
    mov r14d, 12
    mov r15d, 13
    mov ecx, 5000
1:  lea rax, [rax + rbx * 4 + 1]
    xor rbx, rdx
    rol rdx, 7
    add rdx, rsi
    sub rsi, rdi
    imul rdi, r8
    ror r8, 11
    add r8, r9
    xor r9, r10
    add r10, r11
    not r11
    bswap r12
    add r12, r13
    xadd r13, r14
    rol r15, cl
    add r15, rax
    loop 1b
    xor rax, rbx
    xor rax, rdx
    xor rax, rsi
    xor rax, rdi
    xor rax, r8
    xor rax, r9
    xor rax, r10
    xor rax, r11
    xor rax, r12
    xor rax, r13
    xor rax, r14
    xor rax, r15
    pop r14
    ret

carry_chain: /* CF and the rest live across jumps and memory accesses */
    mov ecx, 20000
    xor eax, eax
    xor ebx, ebx
    mov rdx, 0x9e3779b97f4a7c15
    clc
1:  adc rax, rdx
    mov [scratch], rax
    jmp 2f
    nop
2:  mov rsi, [scratch]
    lea rdx, [rdx + rsi * 2]
    adc rbx, 0
    rcl rbx, 1
    seto dil
    lahf
    movzx edi, dil
    sahf
    lea rbx, [rbx + rdi]
    dec ecx
    jnz 1b
    add rax, rbx
    ret

mix_vectors:
    movups xmm0, [seeds]
    movups xmm1, [seeds + 16]
    movaps xmm2, xmm0
    movaps xmm15, xmm1
    mov ecx, 5000
1:  paddd xmm0, xmm1
    pxor xmm1, xmm15
    pshufd xmm15, xmm15, 0x39
    pmuludq xmm2, xmm1
    paddq xmm15, xmm2
    psrlq xmm2, 3
    por xmm2, xmm0
    dec ecx
    jnz 1b
    pxor xmm0, xmm1
    pxor xmm0, xmm2
    pxor xmm0, xmm15
    movq rax, xmm0
    ret

mix_x87:
    fninit
    fld1
    fldpi
    mov ecx, 3000
1:  fadd st(1), st
    fsqrt
    fxch st(1)
    fmul st, st(1)
    fld1
    faddp st(1), st
    fsqrt
    dec ecx
    jnz 1b
    faddp st(1), st
    fstp qword ptr [scratch]
    mov rax, [scratch]
    ret

copy_and_sum:
    lea rdi, [rip + scratch]
    mov ecx, 512
    mov rax, 0x0123456789abcdef
1:  mov [rdi + rcx * 8 - 8], rax
    rol rax, 5
    add rax, rcx
    loop 1b
    mov edx, 20
2:  lea rsi, [rip + scratch]
    lea rdi, [rip + scratch + 0x1003]
    mov ecx, 4096
    rep movsb
    lea rsi, [rip + scratch + 0x1003]
    lea rdi, [rip + scratch + 5]
    mov ecx, 400
    rep movsq
    lea rdi, [rip + scratch + 0x1003]
    mov ecx, 4096
    mov al, 0x42
    repne scasb
    mov eax, edi
    add [scratch + 64], rcx
    dec edx
    jnz 2b
    lea rsi, [rip + scratch]
    mov ecx, 512
    xor ebx, ebx
3:  lodsq
    rol rbx, 1
    add rbx, rax
    loop 3b
    mov rax, rbx
    ret

fibonacci:
    mov edi, 17
    call 1f
    ret
1:  cmp edi, 2
    jae 2f
    mov eax, edi
    ret
2:  push rdi
    dec edi
    call 1b
    pop rdi
    push rax
    sub edi, 2
    call 1b
    pop rdi
    add rax, rdi
    ret

jump_table:
    mov ecx, 20000
    mov eax, 12345
    lea rbx, [rip + table]
1:  imul eax, eax, 1103515245
    add eax, 12345
    mov edx, eax
    shr edx, 29
    jmp [rbx + rdx * 8]
case0: xor eax, 0x55
    jmp 2f
case1: add eax, 7
    jmp 2f
case2: rol eax, 3
    jmp 2f
case3: not eax
    jmp 2f
case4: sub eax, ecx
    jmp 2f
case5: neg eax
    jmp 2f
case6: bswap eax
    jmp 2f
case7: ror eax, 9
2:  dec ecx
    jnz 1b
    mov eax, eax
    ret

patch_and_run:
    mov ecx, 300
    xor eax, eax
1:  mov [rip + 2f + 1], ecx
    jmp 2f
2:  mov edx, 0
    lea rax, [rax + rax * 2]
    add rax, rdx
    loop 1b
    ret

    /* 200 system calls from CPL 3; the sum of what they return. */
user_loop:
    pushfq
    pop r11 /* IF as the caller has it */
    mov [kernel_sp], rsp
    mov rax, USER_BASE
    lea rcx, [rax + user_code]
    lea rsp, [rax + user_stack_top] /* an interrupt here would use it at CPL 0: no harm */
    sysretq
user_code:
    xor ebx, ebx
    mov r12d, 200
1:  mov eax, r12d
    syscall
    add rbx, rax
    dec r12d
    jnz 1b
    mov eax, 0
    syscall
    ud2
on_syscall:
    test eax, eax
    jz 2f
    lea rax, [rax + rax * 8]
    mov r8d, 50
1:  lea rax, [rax + r8]
    dec r8d
    jnz 1b
    sysretq
2:  mov rsp, [kernel_sp]
    mov rax, rbx
    push r11
    popfq
    ret

    /* Demand-maps the window's pages again and again. */
fault_loop:
    HOOK PF, on_page_fault
    xor ebx, ebx
    mov r12d, 100
1:  mov ecx, 16
2:  mov eax, ecx
    shl eax, 12
    mov rdx, WINDOW
    add rdx, rax
    mov qword ptr [window_pt + rcx * 8], 0
    invlpg [rdx]
    lea r8, [rcx + r12]
    add [rdx + 8], r8
    adc rbx, [rdx + 8]
    loop 2b
    dec r12d
    jnz 1b
    mov rax, rbx
    ret
on_page_fault:
    mov rax, cr2
    shr rax, 12
    and eax, 511
    lea rcx, [rax - 1]
    and ecx, 15
    shl ecx, 12
    add ecx, offset scratch + P + W
    mov qword ptr [window_pt + rax * 8], rcx
    and ecx, 0xfffff000
    mov qword ptr [rcx + 8], 0
    ret

    .data
    .balign 16
seeds: .quad 0x123456789abcdef0, 0x0fedcba987654321, 0x1111111122222222, 0x3333333344444444
table: .quad case0, case1, case2, case3, case4, case5, case6, case7
ticks: .quad 0
peace: .quad 0
escape: .quad 0
never: .quad 0
kernel_sp: .quad 0
