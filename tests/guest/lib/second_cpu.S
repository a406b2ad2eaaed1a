/* SPDX-License-Identifier: Apache-2.0 */
/* A second CPU for 64-bit guests: start_second_cpu brings it into long mode with rbp = APIC, then
 * it works through ORDERs. Intel SDM (June 2025) Vol. 3A §10.4.4 (MP initialization example). */
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
    mov esp, offset ap_stack_top
    call enter_long_mode
    .code64
    mov dword ptr [ap_alive], 1
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    mov eax, [rbp + 0x20]
    shr eax, 24
    mov [ap_id], eax
    /* Works through the orders of the first CPU. */
orders:
    pause
    mov eax, [order]
    cmp eax, [obeyed]
    je orders
    mov rbx, [ap_work]
    call rbx
    inc dword ptr [obeyed]
    jmp orders

    /* Until the second CPU is through with its order, or a long time has passed. */
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
    .skip 8192
    .balign 16
ap_stack_top:
