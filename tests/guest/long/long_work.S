/* SPDX-License-Identifier: Apache-2.0 */
/* Work that takes its time, for a VM that is saved meanwhile: in each round CPL 3 goes on with a
 * computation in integer and vector registers, and the CPU halts until the timer of its APIC ticks,
 * by a count and by a TSC deadline in turn. Each round must have seen one tick, and the result is
 * known. ROUNDS of them; four times as many when there is a % in the command line.
 *
 * kvm: kvm-ring3
 */
#include "guest.h"

#define TICK 0x51
#define BY_TSC 0x40000
#define TSC_DEADLINE 0x6e0
#define ROUNDS 40
#define STEPS 20000

    .text
    .globl main
main:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    mov dword ptr [rbp + 0x3e0], 0xb /* divide by 1 */
    HOOK TICK, on_tick
    SET_CR4 CR4_OSFXSR
    call read_rounds

    BEGIN "rounds"
    xor r13d, r13d
    mov r14d, 1
1:  mov rax, r14
    TRY 5f
    ENTER_USER 2f
2:  test r13, r13
    jnz 3f
    pxor xmm0, xmm0
3:  mov ecx, STEPS
4:  imul rax, rax, 1664525
    add rax, 1013904223
    movq xmm1, rax
    paddq xmm0, xmm1
    pshufd xmm0, xmm0, 0x4e
    dec ecx
    jnz 4b
    ud2 /* leaves CPL 3 */
5:  CAUGHT "back from CPL 3", UD, NOERR, ANY, ANY
    mov r14, rax
    call wait_tick
    inc r13
    call say_round
    cmp r13, r15
    jb 1b
    CHECK "one tick each", [ticks], r15

    BEGIN "result"
    TRY 5f
    ENTER_USER 2f
2:  movq rbx, xmm0
    psrldq xmm0, 8
    movq rdx, xmm0
    ud2
5:  CAUGHT "back from CPL 3", UD, NOERR, ANY, ANY
    mov rsi, offset results
    cmp r15, ROUNDS
    je 6f
    add rsi, 24
6:  CHECK "rax", r14, [rsi]
    CHECK "xmm0, low", rbx, [rsi + 8]
    CHECK "xmm0, high", rdx, [rsi + 16]
    ret

    /* r15 = how many. Multiboot 1 §3.3: flags bit 2, command line at 16. */
read_rounds:
    mov r15d, ROUNDS
    mov ebx, [multiboot_info]
    test dword ptr [rbx], 4
    jz 2f
    mov esi, [rbx + 16]
1:  lodsb
    test al, al
    jz 2f
    cmp al, '%'
    jne 1b
    mov r15d, 4 * ROUNDS
2:  ret

    /* Arms the timer for about 20 ms and halts until it ticked. */
wait_tick:
    test r13b, 1
    jnz 1f
    mov dword ptr [rbp + 0x320], TICK
    mov dword ptr [rbp + 0x380], 20000000
    jmp 2f
1:  mov dword ptr [rbp + 0x320], TICK|BY_TSC
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, 40000000
    mov rdx, rax
    shr rdx, 32
    mov ecx, TSC_DEADLINE
    wrmsr
2:  sti
    hlt
    cli
    cmp [ticks], r13
    jbe 2b
    ret

on_tick:
    inc qword ptr [ticks]
    mov edx, APIC
    mov dword ptr [rdx + 0xb0], 0
    ret

say_round:
    mov esi, offset word_round
1:  lodsb
    test al, al
    jz 3f
    mov bl, al
2:  mov dx, COM1 + 5
    in al, dx
    test al, 0x20
    jz 2b
    mov dx, COM1
    mov al, bl
    out dx, al
    jmp 1b
3:  ret

    .section .rodata
word_round: .asciz "round\r\n"
    .balign 8
results:
    .quad 0xb5095c0eadbbbd01, 0xe1ddaa400a7e0780, 0x6a59a098ab4eb700
    .quad 0xbb0017040886f401, 0x70b56c06f8731e00, 0x8ef54a032b79dc00

    .bss
    .balign 8
ticks: .skip 8
