/* SPDX-License-Identifier: Apache-2.0 */
/* A second CPU for 64-bit guests, and up to seven more: start_second_cpu brings all into long mode
 * with rbp = APIC and r14 = 1, 2, …; then they work through ORDERs, each of them.
 * Intel SDM (June 2025) Vol. 3A §10.4.4 (MP initialization example). */
#include "guest.h"

    .section .low_code, "ax"
    .code16
low_start:
    cli
    xor ax, ax
    mov ds, ax
    mov ax, cs
    mov [LOW_CODE + 0xff0], ax
    lgdtd cs:[low_gdt_pointer - low_start]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    ljmpd KCODE32, offset ap_start
    .balign 4
low_gdt_pointer:
    .word GDT_LAST + 7
    .long gdt
low_end:

    .text
    .code64
    .globl start_second_cpu, wait_ap
    /* Both 8259s are masked, the first CPU's APIC is on and rbp is its address. */
start_second_cpu:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    mov esi, offset low_start
    mov edi, LOW_CODE
    mov ecx, offset low_end - low_start
    rep movsb
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    mov dword ptr [rbp + 0x300], 0xc4500 /* INIT to all but self */
    mov eax, [rbp + 0x300]
    mov dword ptr [rbp + 0x300], 0xc4600 + LOW_CODE / 4096
    WAIT_FOR ap_alive, 1
    ret

    .code32
ap_start:
    mov eax, KDATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, 1
    lock xadd [ap_started], eax
    and eax, 7
    lea esi, [eax + 1]
    shl eax, 12
    lea esp, [ap_stacks + eax + 4096]
    call enter_long_mode
    .code64
    mov r14d, esi
    mov r15d, [obeyed]
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    mov eax, [rbp + 0x20]
    shr eax, 24
    mov [ap_id], eax
    lock inc dword ptr [ap_alive]
    /* Works through the orders of the first CPU; an order is obeyed when all have. */
orders:
    pause
    cmp [order], r15d
    je orders
    mov r15d, [order]
    push r14
    push r15
    mov rbx, [ap_work]
    call rbx
    pop r15
    pop r14
    mov eax, 1
    lock xadd [acks], eax
    inc eax
    cmp eax, [ap_alive]
    jb orders
    mov dword ptr [acks], 0
    inc dword ptr [obeyed]
    jmp orders

    /* Until the other CPUs are through with their order, or a long time has passed. */
wait_ap:
    mov ecx, 400000000
1:  pause
    mov eax, [order]
    cmp eax, [obeyed]
    je 2f
    dec ecx
    jnz 1b
    FAIL "the second CPU does not answer"
    jmp finish
2:  ret

    .bss
    .balign 8
    .globl ap_work, order, obeyed, ap_alive, ap_id
ap_work: .skip 8
order: .skip 8
obeyed: .skip 8
ap_alive: .skip 8
ap_id: .skip 8
ap_started: .skip 8
acks: .skip 8
    .balign 16
ap_stacks: .skip 8 * 4096
