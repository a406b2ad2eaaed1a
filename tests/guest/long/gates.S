/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupt and trap gates, DPL checks, error codes of vectoring, IST, call gates in long mode.
 * Intel SDM (June 2025) Vol. 3A §7.12, §7.14 (64-bit interrupt handling), §6.8.3 (call gates).
 *
 * qemu deviates: gates from CPL 3: int n, DPL 0 -- error code is vector*16+2, §7.13 says *8
 * qemu deviates: broken gates: -- likewise
 * qemu deviates: gates from CPL 3: int1 -- opcode F1 is #UD there
 * qemu deviates: faults while delivering: #NP while delivering #UD -- no EXT, and vector*16
 */
#include "guest.h"

    .text
    .globl main
main:
    BEGIN "software interrupts"
    FAULT "ud2", UD, NOERR, ANY, ud2
    TRY 1f
    int3
1:  CAUGHT "int3 is a trap", BP_, NOERR, 1b, ANY
    TRY 1f
    int 0x21
1:  CAUGHT "int n", 0x21, NOERR, 1b, ANY
    FAULT "division by zero", DE, NOERR, ANY, div byte ptr [zero]
    FAULT "quotient too large", DE, NOERR, ANY, div cl
    FAULT "into is no instruction", UD, NOERR, ANY, .byte 0xce

    BEGIN "gates from CPL 3"
    TRY 1f
    ENTER_USER 2f
2:  int3
3:  ud2
1:  CAUGHT "int3 through a gate of DPL 3", BP_, NOERR, 3b+USER_BASE, ANY
    CHECK "cs", [last_cs], UCODE|3
    CHECK "ss", [last_ss], UDATA|3
    mov rax, offset user_stack_top
    mov rbx, USER_BASE
    add rax, rbx
    CHECK "rsp", [last_sp], rax
    USER_FAULT "int n, DPL 0", GP, 0x21*8+2, ANY, int 0x21
    USER_FAULT "ud2 needs no DPL", UD, NOERR, ANY, ud2
    TRY 1f
    ENTER_USER 2f
2:  .byte 0xf1
3:  ud2
1:  CAUGHT "int1 needs no DPL", DB, NOERR, 3b+USER_BASE, ANY
    USER_FAULT "hlt", GP, 0, ANY, hlt
    USER_FAULT "cli, IOPL 0", GP, 0, ANY, cli
    USER_FAULT "sti, IOPL 0", GP, 0, ANY, sti
    USER_FAULT "in, IOPL 0", GP, 0, ANY, in al, 0x80
    USER_FAULT "out dx, IOPL 0", GP, 0, ANY, out dx, eax
    USER_FAULT "mov cr", GP, 0, ANY, mov rax, cr0
    USER_FAULT "mov dr", GP, 0, ANY, mov rax, dr0
    USER_FAULT "lgdt", GP, 0, ANY, lgdt [rip + gdt_pointer]
    USER_FAULT "invlpg", GP, 0, ANY, invlpg [rax]
    USER_FAULT "wbinvd", GP, 0, ANY, wbinvd
    USER_FAULT "clts", GP, 0, ANY, clts
    USER_FAULT "lldt", GP, 0, ANY, lldt ax
    USER_FAULT "ltr", GP, 0, ANY, ltr ax
    USER_FAULT "lmsw", GP, 0, ANY, lmsw ax
    USER_FAULT "swapgs", GP, 0, ANY, swapgs
    USER_FAULT "sysret", GP, 0, ANY, sysretq
    USER_FAULT "rdmsr", GP, 0, ANY, rdmsr

    BEGIN "interrupt and trap gates"
    HOOK 0x21, record_flags
    sti
    int 0x21
    cli
    mov rax, [flags_seen]
    and rax, FLAG_IF
    CHECK "an interrupt gate clears IF", rax, 0
    mov byte ptr [idt + 0x21 * 16 + 5], 0x8f
    sti
    int 0x21
    cli
    mov rax, [flags_seen]
    and rax, FLAG_IF
    CHECK "a trap gate keeps IF", rax, FLAG_IF
    mov byte ptr [idt + 0x21 * 16 + 5], 0x8e
    pushfq
    or dword ptr [rsp], FLAG_NT
    popfq
    int 0x21 /* iretq with NT set would be #GP: the gate clears it for the handler */
    pushfq
    pop rbx
    pushfq
    and dword ptr [rsp], ~FLAG_NT
    popfq
    mov rax, [flags_seen]
    and rax, FLAG_NT
    CHECK "a gate clears NT", rax, 0
    and rbx, FLAG_NT
    CHECK "iret brings NT back", rbx, FLAG_NT

    BEGIN "stack alignment and IST"
    mov rbx, rsp
    mov rax, offset int_stack_top - 3
    mov rsp, rax
    int 0x21
    mov rsp, rbx
    CHECK "frame at a multiple of 16", [stack_seen], "offset int_stack_top-16-40-16-120"
    mov byte ptr [idt + 0x21 * 16 + 4], 1
    int 0x21
    CHECK "IST 1", [stack_seen], "offset ist_top-40-16-120"
    mov byte ptr [idt + 0x21 * 16 + 4], 0
    UNHOOK 0x21

    BEGIN "broken gates"
    mov byte ptr [idt + 0x21 * 16 + 5], 0x0e
    FAULT "not present", NP, 0x21*8+2, ANY, int 0x21
    mov byte ptr [idt + 0x21 * 16 + 5], 0x8c
    FAULT "call gate", GP, 0x21*8+2, ANY, int 0x21
    mov byte ptr [idt + 0x21 * 16 + 5], 0x85
    FAULT "task gate", GP, 0x21*8+2, ANY, int 0x21
    mov byte ptr [idt + 0x21 * 16 + 5], 0x86
    FAULT "16-bit interrupt gate", GP, 0x21*8+2, ANY, int 0x21
    mov byte ptr [idt + 0x21 * 16 + 5], 0x8e
    mov word ptr [idt + 0x21 * 16 + 2], 0
    FAULT "null code segment", GP, 0, ANY, int 0x21
    mov word ptr [idt + 0x21 * 16 + 2], KDATA
    FAULT "data segment", GP, KDATA, ANY, int 0x21
    mov word ptr [idt + 0x21 * 16 + 2], KCODE32
    FAULT "compatibility code segment", GP, KCODE32, ANY, int 0x21
    mov word ptr [idt + 0x21 * 16 + 2], UCODE
    FAULT "outward", GP, UCODE, ANY, int 0x21
    mov word ptr [idt + 0x21 * 16 + 2], 0x1f8
    FAULT "empty descriptor", GP, 0x1f8, ANY, int 0x21
    DESCRIPTOR SPARE, 0, 0xfffff, 0xa01b
    mov word ptr [idt + 0x21 * 16 + 2], SPARE
    FAULT "code segment not present", NP, SPARE, ANY, int 0x21
    mov word ptr [idt + 0x21 * 16 + 2], KCODE
    mov word ptr [idt_pointer], 0x21 * 16 + 14
    lidt [idt_pointer]
    FAULT "beyond the limit", GP, 0x21*8+2, ANY, int 0x21
    mov word ptr [idt_pointer], 256 * 16 - 1
    lidt [idt_pointer]

    BEGIN "faults while delivering"
    mov rbx, 0x8000000000000000 /* a handler's stack of CPL 3 → 0 that is not canonical */
    mov rax, [tss + 4]
    mov [tss + 4], rbx
    mov byte ptr [idt + SS_ * 16 + 4], 1
    mov byte ptr [idt + GP * 16 + 4], 1
    USER_FAULT "RSP0 not canonical: #SS(0)", SS_, 0, ANY, int USER_EXIT
    mov [tss + 4], rax
    mov byte ptr [idt + GP * 16 + 4], 0
    mov byte ptr [idt + SS_ * 16 + 4], 0
    mov byte ptr [idt + PF * 16 + 5], 0x0e
    TRY 1f
    mov rax, WINDOW
2:  mov al, [rax]
1:  CAUGHT "#NP while delivering #PF: #DF(0)", DF, 0, ANY, ANY
    CHECK "rip of #DF", [last_ip], "offset 2b"
    mov byte ptr [idt + PF * 16 + 5], 0x8e
    mov byte ptr [idt + UD * 16 + 5], 0x0e
    FAULT "#NP while delivering #UD: #NP with EXT", NP, UD*8+3, ANY, ud2
    mov byte ptr [idt + DE * 16 + 5], 0x0e
    FAULT "#NP while delivering #DE: #DF", DF, 0, ANY, div byte ptr [zero]
    mov byte ptr [idt + DE * 16 + 5], 0x8e
    mov byte ptr [idt + UD * 16 + 5], 0x8e
    call call_gates
    jmp finish

record_flags:
    pushfq
    pop qword ptr [flags_seen]
    mov [stack_seen], rdi
    ret

    /* gdt[SPARE]: a 16-byte call gate to rax; ebx: selector | type byte << 16. */
set_call_gate:
    lea rdi, [gdt + SPARE]
    mov [rdi], ax
    mov [rdi + 2], bx
    shr ebx, 8
    mov [rdi + 4], bx
    and byte ptr [rdi + 4], 0
    shr rax, 16
    mov [rdi + 6], ax
    shr rax, 16
    mov [rdi + 8], rax
    ret

    .macro CALL_GATE target, selector, type
    mov rax, offset \target
    mov ebx, \selector | \type << 16
    call set_call_gate
    .endm
    .macro GATE_BY pointer
    call fword ptr [\pointer]
    .endm

call_gates:
    BEGIN "call gates"
    CALL_GATE same_level, KCODE, 0x8c
    mov rbp, rsp
    call fword ptr [gate_pointer]
    CHECK "same level, cs", [flags_seen], KCODE
    mov rax, rbp
    sub rax, [stack_seen]
    CHECK "pushes 16 bytes", rax, 16
    CHECK "and retf takes them", rsp, rbp
    CALL_GATE inner, KCODE, 0x8c
    USER_FAULT "gate of DPL 0 from CPL 3", GP, SPARE, ANY, call fword ptr [rip + gate_pointer_3]
    CALL_GATE inner, KCODE, 0xec
    TRY 1f
    ENTER_USER 2f
2:  call fword ptr [rip + gate_pointer_3]
3:  int USER_EXIT
1:  CAUGHT "CPL 3 to 0 and back by retfq", USER_EXIT, ANY, ANY, ANY
    CHECK "CPL inside", [flags_seen], KCODE
    mov rax, offset int_stack_top
    CHECK "four words on RSP0", [stack_seen], "offset int_stack_top-32"
    mov rax, [inner_frame]
    mov rbx, offset 3b + 0
    mov rcx, USER_BASE
    add rbx, rcx
    CHECK "return rip", rax, rbx
    CHECK "return cs", [inner_frame+8], UCODE|3
    CHECK "return ss", [inner_frame+24], UDATA|3
    CHECK "ss is null inside", [inner_ss], 0
    CALL_GATE inner, KCODE, 0x6c
    USER_FAULT "not present", NP, SPARE, ANY, call fword ptr [rip + gate_pointer_3]
    CALL_GATE inner, 0, 0xec
    USER_FAULT "null target", GP, 0, ANY, call fword ptr [rip + gate_pointer_3]
    CALL_GATE inner, KDATA, 0xec
    USER_FAULT "data target", GP, KDATA, ANY, call fword ptr [rip + gate_pointer_3]
    CALL_GATE inner, KCODE32, 0xec
    USER_FAULT "compatibility target", GP, KCODE32, ANY, call fword ptr [rip + gate_pointer_3]
    CALL_GATE inner, KCODE, 0xec
    USER_FAULT "jmp to more privilege", GP, KCODE, ANY, jmp fword ptr [rip + gate_pointer_3]
    mov byte ptr [gdt + SPARE + 13], 0x0c
    USER_FAULT "type in the upper half", GP, SPARE, ANY, call fword ptr [rip + gate_pointer_3]
    CALL_GATE inner, KCODE, 0xe4
    USER_FAULT "16-bit call gate", GP, SPARE, ANY, call fword ptr [rip + gate_pointer_3]
    ret

same_level:
    mov [stack_seen], rsp
    xor eax, eax
    mov ax, cs
    mov [flags_seen], rax
    retfq

inner:
    mov [stack_seen], rsp
    xor eax, eax
    mov ax, cs
    mov [flags_seen], rax
    mov ax, ss
    mov [inner_ss], rax
    mov rax, [rsp]
    mov [inner_frame], rax
    mov rax, [rsp + 8]
    mov [inner_frame + 8], rax
    mov rax, [rsp + 24]
    mov [inner_frame + 24], rax
    retfq

    .data
    .balign 8
gate_pointer:
    .long 0
    .word SPARE
    .balign 8
gate_pointer_3:
    .long 0
    .word SPARE | 3
zero: .byte 0
    .balign 8
flags_seen: .quad 0
stack_seen: .quad 0
inner_frame: .quad 0, 0, 0, 0
inner_ss: .quad 0
