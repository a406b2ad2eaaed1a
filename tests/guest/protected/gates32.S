/* SPDX-License-Identifier: Apache-2.0 */
/* Call gates of 16 and 32 bits with parameters; interrupt, trap, task gates; stack switches
 * and their faults. Intel SDM (June 2025) Vol. 3A §6.8 (privilege levels), §7.12 (exception and
 * interrupt handling).
 *
 * qemu deviates: faults of call gates: eip beyond -- faults behind the gate
 */
#include "guest.h"

#define GATE 0x40
#define S2 0x48
#define S3 0x50
#define TASK 0x58

    /* gdt[GATE]: type and DPL (0x8c, 0xec …), parameter count. */
    .macro CALL_GATE target, selector, type, count=0
    mov eax, offset \target
    mov [gdt + GATE], ax
    mov word ptr [gdt + GATE + 2], \selector
    mov word ptr [gdt + GATE + 4], \type << 8 | \count
    shr eax, 16
    mov [gdt + GATE + 6], ax
    .endm
    .macro IDT_GATE vector, target, selector, type
    mov eax, offset \target
    mov [idt + \vector * 8], ax
    mov word ptr [idt + \vector * 8 + 2], \selector
    mov word ptr [idt + \vector * 8 + 4], \type << 8
    shr eax, 16
    mov [idt + \vector * 8 + 6], ax
    .endm

    .text
    .globl main
main:
    BEGIN "call gates of 32 bits"
    mov ebp, esp
    CALL_GATE leaf, KCODE, 0x8c, 3
    lcall GATE, 0
back:
    CHECK "same level: parameters stay", esp, ebp
    mov eax, ebp
    sub eax, [seen_esp]
    CHECK "same level pushes 8 bytes", eax, 8
    CALL_GATE inner, KCODE, 0xec, 3
    TRY 1f
    ENTER_USER 2f
2:  push 0x1111
    push 0x2222
    push 0x3333
    lcall GATE | 3, 0
3:  mov eax, esp
    int USER_EXIT
1:  CAUGHT "CPL 3 to 0 and back", USER_EXIT, ANY, ANY, ANY
    CHECK "retf n drops the parameters of both", eax, "offset user_stack_top"
    CHECK "stack inside", [seen_esp], "offset int_stack_top-28"
    CHECK "eip", [frame], "offset 3b"
    CHECK "cs", [frame+4], UCODE|3
    CHECK "last parameter", [frame+8], 0x3333
    CHECK "first parameter", [frame+16], 0x1111
    CHECK "esp", [frame+20], "offset user_stack_top-12"
    CHECK "ss", [frame+24], UDATA|3
    CHECK "cs inside", [seen_cs], KCODE
    CHECK "ss inside", [seen_ss], KDATA

    BEGIN "call gates of 16 bits"
    mov esi, offset inner16
    mov edi, LOW_CODE
    mov ecx, offset inner16_end - inner16
    rep movsb
    DESCRIPTOR S2, LOW_CODE, 0xffff, 0x009b
    CALL_GATE 0, S2, 0xe4, 2
    TRY 1f
    ENTER_USER 2f
2:  pushw 0x1111
    pushw 0x2222
    lcall GATE | 3, 0
    int USER_EXIT
1:  CAUGHT "to a 16-bit gate", 0x22, NOERR, ANY, ANY
    movzx eax, word ptr [int_stack_top - 8]
    CHECK "last parameter", eax, 0x2222
    movzx eax, word ptr [int_stack_top - 6]
    CHECK "first parameter", eax, 0x1111
    movzx eax, word ptr [int_stack_top - 2]
    CHECK "ss", eax, UDATA|3
    movzx eax, word ptr [int_stack_top - 10]
    CHECK "cs", eax, UCODE|3
    CHECK "cs inside", [last_cs], S2

    BEGIN "faults of call gates"
    CALL_GATE inner, KCODE, 0x8c
    USER_FAULT "DPL below CPL", GP, GATE, ANY, lcall GATE|3, 0
    CALL_GATE inner, KCODE, 0x6c
    USER_FAULT "not present", NP, GATE, ANY, lcall GATE|3, 0
    CALL_GATE inner, 0, 0xec
    USER_FAULT "null target", GP, 0, ANY, lcall GATE|3, 0
    CALL_GATE inner, KDATA, 0xec
    USER_FAULT "data target", GP, KDATA, ANY, lcall GATE|3, 0
    CALL_GATE inner, 0x1f8, 0xec
    USER_FAULT "empty target", GP, 0x1f8, ANY, lcall GATE|3, 0
    DESCRIPTOR S3, 0, 0xfffff, 0xc01b
    CALL_GATE inner, S3, 0xec
    USER_FAULT "target not present", NP, S3, ANY, lcall GATE|3, 0
    CALL_GATE inner, KCODE, 0xec
    USER_FAULT "jmp inward", GP, KCODE, ANY, ljmp GATE|3, 0
    DESCRIPTOR S3, 0, 0xf, 0x409b
    CALL_GATE inner, S3, 0xec
    USER_FAULT "eip beyond the target's limit", GP, 0, ANY, lcall GATE|3, 0
    call interrupt_gates
    call inner_stacks
    jmp finish

interrupt_gates:
    BEGIN "interrupt and trap gates of 32 bits"
    IDT_GATE 0x21, on_gate, KCODE, 0x8e
    mov ebp, esp
    pushfd
    or dword ptr [esp], FLAG_IF
    popfd
    int 0x21
    cli
    CHECK "balanced", esp, ebp
    mov eax, [seen_flags]
    and eax, FLAG_IF
    CHECK "an interrupt gate clears IF", eax, 0
    IDT_GATE 0x21, on_gate, KCODE, 0x8f
    sti
    int 0x21
    cli
    mov eax, [seen_flags]
    and eax, FLAG_IF
    CHECK "a trap gate keeps IF", eax, FLAG_IF
    IDT_GATE 0x21, on_gate, KCODE, 0x0e
    FAULT "not present", NP, 0x21*8+2, ANY, int 0x21
    IDT_GATE 0x21, on_gate, KCODE, 0x8c
    FAULT "a call gate", GP, 0x21*8+2, ANY, int 0x21
    IDT_GATE 0x21, on_gate, KDATA, 0x8e
    FAULT "data target", GP, KDATA, ANY, int 0x21
    IDT_GATE 0x21, on_gate, 0, 0x8e
    FAULT "null target", GP, 0, ANY, int 0x21
    IDT_GATE 0x21, on_gate, UCODE, 0x8e
    FAULT "outward", GP, UCODE, ANY, int 0x21
    IDT_GATE 0x21, on_gate, KCODE, 0x8e
    USER_FAULT "int n of DPL 0", GP, 0x21*8+2, ANY, int 0x21
    USER_FAULT "into: no overflow, no fault; ud2", UD, NOERR, ANY, ud2
    TRY 1f
    ENTER_USER 2f
2:  mov al, 0x7f
    inc al
    into
3:  ud2
1:  CAUGHT "into", OF, NOERR, 3b, ANY
    mov eax, 5
    FAULT "bound", BR, NOERR, ANY, bound eax, [bounds]
    mov eax, 2
    NOFAULT "bound within", bound eax, [bounds]
    TRY 1f
    ENTER_USER 2f
2:  mov eax, ds
    int USER_EXIT
1:  CAUGHT "frame of CPL 3", USER_EXIT, ANY, ANY, ANY
    CHECK "ss", [last_ss], UDATA|3
    CHECK "esp", [last_sp], "offset user_stack_top"
    ret

    /* A bad inner stack: the fault must not need it, so its gate leads to a conforming segment. */
inner_stacks:
    BEGIN "inner stacks"
    DESCRIPTOR S2, 0, 0xfffff, 0xc09f
    CALL_GATE inner, KCODE, 0xec
    IDT_GATE TS, on_ts, S2, 0x8e
    IDT_GATE SS_, on_ts, S2, 0x8e
    mov eax, 0
    call try_stack
    CHECK "null: #TS(0)", [ts_error], 0
    mov eax, UDATA | 3
    call try_stack
    CHECK "RPL is not the new CPL", [ts_error], UDATA
    mov eax, 0x1f8
    call try_stack
    CHECK "empty", [ts_error], 0x1f8
    mov eax, KCODE
    call try_stack
    CHECK "code", [ts_error], KCODE
    DESCRIPTOR S3, 0, 0xfffff, 0xc013
    mov eax, S3
    call try_stack
    CHECK "not present: #SS", [ts_error], S3
    DESCRIPTOR S3, 0, 0xfffff, 0xc091
    mov eax, S3
    call try_stack
    CHECK "read-only", [ts_error], S3
    ret

    /* eax: SS0; the error code of the far call from CPL 3 lands in ts_error. */
try_stack:
    mov [tss + 8], eax
    mov dword ptr [ts_error], 0xeeee
    TRY 1f
    ENTER_USER 2f
2:  lcall GATE | 3, 0
1:  mov dword ptr [resume_ip], 0
    ret

on_ts: /* still CPL 3 */
    pop dword ptr [ts_error]
    mov dword ptr [tss + 8], KDATA
    int USER_EXIT

on_gate:
    pushfd
    pop dword ptr [seen_flags]
    iretd

leaf:
    mov [seen_esp], esp
    retf

inner:
    mov [seen_esp], esp
    mov eax, cs
    mov [seen_cs], eax
    mov eax, ss
    mov [seen_ss], eax
    mov esi, esp
    mov edi, offset frame
    mov ecx, 7
    cld
    rep movsd
    retf 12

    .section .low_code, "ax"
    .code16
inner16:
    int 0x22
    ud2
inner16_end:
    .code32

    .data
    .balign 4
seen_esp: .long 0
seen_cs: .long 0
seen_ss: .long 0
frame: .skip 32
seen_flags: .long 0
ts_error: .long 0
bounds: .long 1, 4
