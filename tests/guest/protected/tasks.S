/* SPDX-License-Identifier: Apache-2.0 */
/* Task switches by jmp, call, task gate, interrupt and iret: state saved, loaded, busy bits, back
 * link, NT, CR0.TS, debug trap bit; faults of the new task.
 * Intel SDM (June 2025) Vol. 3A §8.2 (structures), §8.3 (switching, table 8-2), §8.4 (linking).
 *
 * qemu deviates: jmp: flags came back -- saves the flags without CF
 */
#include "guest.h"

#define OTHER 0x40 /* TSS */
#define GATE 0x48  /* task gate */
#define T_LINK 0
#define T_CR3 28
#define T_EIP 32
#define T_FLAGS 36
#define T_EAX 40
#define T_ECX 44
#define T_ESP 56
#define T_ES 72
#define T_CS 76
#define T_SS 80
#define T_DS 84
#define T_FS 88
#define T_GS 92
#define T_LDT 96
#define T_TRAP 100

    .macro BUSY what, selector, want
    movzx eax, byte ptr [gdt + \selector + 5]
    and eax, 2
    CHECK "\what", eax, \want
    .endm
    .macro NT_IS what, want
    pushfd
    pop eax
    and eax, FLAG_NT
    CHECK "\what", eax, \want
    .endm

    .text
    /* A TSS whose task starts at eax. */
new_task:
    mov edi, offset other
    xor edx, edx
    mov ecx, 26
    xchg eax, edx
    rep stosd
    mov edi, offset other
    mov [edi + T_EIP], edx
    mov dword ptr [edi + T_FLAGS], 2
    mov dword ptr [edi + T_EAX], 0x11111111
    mov dword ptr [edi + T_ECX], 0x22222222
    mov dword ptr [edi + T_ESP], offset other_stack
    mov dword ptr [edi + T_CS], KCODE
    mov dword ptr [edi + T_ES], KDATA
    mov dword ptr [edi + T_SS], KDATA
    mov dword ptr [edi + T_DS], KDATA
    mov word ptr [edi + T_TRAP + 2], 104
    DESCRIPTOR OTHER, "offset other", 103, 0x0089
    ret
    .macro TASK start
    mov eax, offset \start
    call new_task
    .endm

    .globl main
main:
    mov word ptr [gdt + GATE + 2], OTHER
    mov word ptr [gdt + GATE + 4], 0x8500
    BEGIN "jmp"
    TASK jump_back
    mov ebx, 0x5555
    mov esi, 0x6666
    mov ebp, esp
    stc
    ljmp OTHER, 0
    setc al
    movzx eax, al
    CHECK "flags came back", eax, 1
    CHECK "ebx came back", ebx, 0x5555
    CHECK "esi came back", esi, 0x6666
    CHECK "esp came back", esp, ebp
    CHECK "eax of the new task", [seen_eax], 0x11111111
    CHECK "ecx of the new task", [seen_ecx], 0x22222222
    CHECK "its stack", [seen_esp], "offset other_stack"
    CHECK "TR in it", [seen_tr], OTHER
    CHECK "no link by jmp", [other+T_LINK], 0
    CHECK "its NT", [seen_flags], 2
    BUSY "not busy when left by jmp", OTHER, 0
    BUSY "we are busy", TSS_SELECTOR, 2
    str eax
    CHECK "our TR", eax, TSS_SELECTOR
    mov eax, cr0
    and eax, CR0_TS
    CHECK "CR0.TS", eax, CR0_TS
    clts
    TASK jump_back
    ljmp GATE, 0
    CHECK "by a task gate", [seen_tr], OTHER
    clts

    BEGIN "call and iret"
    TASK return_by_iret
    lcall OTHER, 0
    CHECK "link", [other+T_LINK], TSS_SELECTOR
    mov eax, [seen_flags]
    CHECK "NT in the called task", eax, FLAG_NT|2
    CHECK "we were still busy", [seen_busy], 2
    BUSY "not busy after its iret", OTHER, 0
    BUSY "we are", TSS_SELECTOR, 2
    NT_IS "no NT for us", 0
    mov eax, [other + T_FLAGS]
    and eax, FLAG_NT
    CHECK "iret clears NT in the saved flags", eax, 0
    mov eax, [other + T_EIP]
    CHECK "saved eip is behind the iret", eax, "offset behind_iret"
    lcall GATE, 0 /* it goes on behind its iret */
    CHECK "resumed", [seen_resumed], 1
    clts

    BEGIN "interrupt through a task gate"
    TASK return_by_iret
    mov dword ptr [idt + 0x21 * 8], OTHER << 16
    mov dword ptr [idt + 0x21 * 8 + 4], 0x8500
    mov ebp, esp
    int 0x21
    CHECK "esp", esp, ebp
    CHECK "link", [other+T_LINK], TSS_SELECTOR
    clts
    TASK on_fault
    mov dword ptr [idt + GP * 8], OTHER << 16
    mov dword ptr [idt + GP * 8 + 4], 0x8500
    mov eax, 0x1f8
fault_here:
    mov es, eax /* #GP(1f8): the task skips it */
    mov eax, 0
    CHECK "error code on the new stack", [seen_error], 0x1f8
    CHECK "eip of the fault in the old TSS", [seen_eip], "offset fault_here"
    mov eax, offset stubs + GP * 16
    mov [idt + GP * 8], ax
    mov word ptr [idt + GP * 8 + 2], KCODE
    mov word ptr [idt + GP * 8 + 4], 0x8e00
    shr eax, 16
    mov [idt + GP * 8 + 6], ax
    clts
    BEGIN "refused in the old task"
    TASK jump_back
    or byte ptr [gdt + OTHER + 5], 2
    FAULT "jmp to a busy task", GP, OTHER, ANY, ljmp OTHER, 0
    FAULT "call to a busy task", GP, OTHER, ANY, lcall OTHER, 0
    FAULT "task gate to a busy task", GP, OTHER, ANY, ljmp GATE, 0
    mov byte ptr [gdt + OTHER + 5], 0x09
    FAULT "not present", NP, OTHER, ANY, ljmp OTHER, 0
    TASK jump_back
    mov byte ptr [gdt + OTHER], 102
    FAULT "limit below 67h", TS, OTHER, ANY, ljmp OTHER, 0
    TASK jump_back
    USER_FAULT "DPL below CPL", GP, OTHER, ANY, ljmp OTHER, 0
    USER_FAULT "gate's DPL below CPL", GP, GATE, ANY, ljmp GATE, 0
    mov word ptr [gdt + GATE + 2], KDATA
    FAULT "gate to data", GP, KDATA, ANY, ljmp GATE, 0
    mov word ptr [gdt + GATE + 2], OTHER
    mov dword ptr [tss + T_LINK], KDATA
    pushfd
    or dword ptr [esp], FLAG_NT
    popfd
    FAULT "iret, link to data", TS, KDATA, ANY, iretd
    mov dword ptr [tss + T_LINK], OTHER
    pushfd
    or dword ptr [esp], FLAG_NT
    popfd
    FAULT "iret, link not busy", TS, OTHER, ANY, iretd
    pushfd
    and dword ptr [esp], ~FLAG_NT
    popfd
    jmp finish

jump_back:
    call record
    ljmp TSS_SELECTOR, 0

return_by_iret:
    call record
    iretd
behind_iret:
    mov dword ptr [seen_resumed], 1
    iretd

on_fault:
    pop dword ptr [seen_error]
    mov eax, [tss + T_EIP]
    mov [seen_eip], eax
    add dword ptr [tss + T_EIP], 2
    iretd

record:
    mov [seen_eax], eax
    mov [seen_ecx], ecx
    lea eax, [esp + 4]
    mov [seen_esp], eax
    str eax
    mov [seen_tr], eax
    pushfd
    pop dword ptr [seen_flags]
    movzx eax, byte ptr [gdt + TSS_SELECTOR + 5]
    and eax, 2
    mov [seen_busy], eax
    ret

    .bss
    .balign 16
other: .skip 128
    .skip 1024
other_stack:
seen_eax: .skip 4
seen_ecx: .skip 4
seen_esp: .skip 4
seen_tr: .skip 4
seen_flags: .skip 4
seen_busy: .skip 4
seen_resumed: .skip 4
seen_error: .skip 4
seen_eip: .skip 4
