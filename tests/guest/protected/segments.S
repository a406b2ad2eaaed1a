/* SPDX-License-Identifier: Apache-2.0 */
/* Loading segment registers: faults, error codes, their order; limits, expand-down segments, types;
 * LAR, LSL, VERR, VERW, ARPL; far jumps and returns; descriptor tables' own limits.
 * Intel SDM (June 2025) Vol. 3A §6.4, §6.5, §6.10, §7.15; Vol. 2A MOV, JMP, RET.
 *
 * qemu deviates: data segments: using null -- checks neither limits nor types of accesses
 * qemu deviates: data segments: writing to -- likewise
 * qemu deviates: limits: -- likewise
 * qemu deviates: tables: ltr null -- accepts it
 */
#include "guest.h"

#define S1 0x40
#define S2 0x48
#define S3 0x50
#define S4 0x58

    .macro LOAD what, register, selector, vec, err
    mov eax, \selector
    FAULT "\what", \vec, \err, ANY, mov \register, eax
    .endm
    .macro LOAD_OK what, register, selector
    mov eax, \selector
    NOFAULT "\what", mov \register, eax
    .endm

    .text
    .globl main
main:
    BEGIN "data segments"
    LOAD_OK "null", es, 0
    FAULT "using null", GP, 0, ANY, mov al, es:[0]
    LOAD_OK "null with RPL 3", es, 3
    LOAD "beyond the GDT's limit", es, 0x200, GP, 0x200
    LOAD "beyond, with RPL", es, 0x203, GP, 0x200
    LOAD "LDT that does not exist", es, 0x0c, GP, 0x0c
    LOAD "empty descriptor", es, 0x1f8, GP, 0x1f8
    DESCRIPTOR S1, 0, 0xfffff, 0xc013
    LOAD "not present", es, S1, NP, S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc019
    LOAD "execute-only, not present: type first", es, S1, GP, S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc099
    LOAD "execute-only", es, S1, GP, S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc09b
    LOAD_OK "readable code", es, S1
    FAULT "writing to code", GP, 0, ANY, mov es:[scratch], al
    DESCRIPTOR S1, 0, 0xfffff, 0xc091
    LOAD_OK "read-only", es, S1
    NOFAULT "reading read-only", mov al, es:[scratch]
    FAULT "writing to read-only", GP, 0, ANY, mov es:[scratch], al
    LOAD "RPL above DPL", es, KDATA|3, GP, KDATA
    LOAD "TSS", es, TSS_SELECTOR, GP, TSS_SELECTOR
    mov byte ptr [gdt + S1 + 5], 0x92
    LOAD_OK "sets the accessed bit", es, S1
    movzx eax, byte ptr [gdt + S1 + 5]
    CHECK "accessed", eax, 0x93
    mov eax, KDATA
    mov es, eax

    BEGIN "stack segment"
    LOAD "null", ss, 0, GP, 0
    LOAD "beyond the limit", ss, 0x200, GP, 0x200
    LOAD "RPL is not CPL", ss, KDATA|3, GP, KDATA
    LOAD "DPL is not CPL", ss, UDATA, GP, UDATA
    DESCRIPTOR S1, 0, 0xfffff, 0xc091
    LOAD "read-only", ss, S1, GP, S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc09b
    LOAD "code", ss, S1, GP, S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc013
    LOAD "not present is #SS", ss, S1, SS_, S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc011
    LOAD "not present and read-only: #GP", ss, S1, GP, S1
    FAULT "mov cs", UD, NOERR, ANY, .byte 0x8e, 0xc8

    BEGIN "limits"
    DESCRIPTOR S1, "offset scratch", 0xf, 0x4093
    LOAD_OK "byte granularity", es, S1
    mov dword ptr [scratch + 12], 0x77
    NOFAULT "the last byte", mov al, es:[15]
    FAULT "behind it", GP, 0, ANY, mov al, es:[16]
    NOFAULT "the last dword", mov eax, es:[12]
    CHECK "base", eax, 0x77
    FAULT "across the end", GP, 0, ANY, mov eax, es:[13]
    FAULT "wrapping", GP, 0, ANY, mov eax, es:[0xfffffffe]
    FAULT "write across the end", GP, 0, ANY, mov es:[14], eax
    xor edi, edi
    mov ecx, 5
    TRY 1f
2:  rep stosd
1:  CAUGHT "rep stosd", GP, 0, 2b, ANY
    CHECK "rep stosd: ecx", ecx, 1
    CHECK "rep stosd: edi", edi, 16
    DESCRIPTOR S1, "offset scratch", 0, 0xc093
    LOAD_OK "page granularity", es, S1
    NOFAULT "4095", mov al, es:[0xfff]
    FAULT "4096", GP, 0, ANY, mov al, es:[0x1000]
    DESCRIPTOR S1, "offset scratch", 0xfff, 0x4097
    LOAD_OK "expand-down", es, S1
    FAULT "expand-down: at the limit", GP, 0, ANY, mov al, es:[0xfff]
    NOFAULT "expand-down: above", mov al, es:[0x1000]
    mov edx, offset scratch
    neg edx
    NOFAULT "expand-down: up to 4 GiB", mov al, es:[edx]
    DESCRIPTOR S1, "offset scratch", 0xfff, 0x0097
    LOAD_OK "expand-down, 16 bits", es, S1
    NOFAULT "expand-down, 16 bits: above", mov al, es:[0x1000]
    NOFAULT "expand-down, 16 bits: 64 KiB", mov al, es:[0xffff]
    FAULT "expand-down, 16 bits: behind", GP, 0, ANY, mov al, es:[0x10000]
    FAULT "expand-down, 16 bits: across", GP, 0, ANY, mov ax, es:[0xffff]
    mov eax, KDATA
    mov es, eax
    DESCRIPTOR S2, 0, 0x1ff, 0xc093 /* 2 MiB */
    mov eax, S2
    mov ss, eax
    mov ebp, 0x200000
    FAULT "by ebp", SS_, 0, ANY, mov al, [ebp]
    mov eax, KDATA
    mov ss, eax
    DESCRIPTOR S1, "offset scratch", 0xf, 0x4093
    mov eax, S1
    mov fs, eax
    FAULT "push from beyond", GP, 0, ANY, push dword ptr fs:[14]
    NOFAULT "invlpg has no segment checks", invlpg fs:[0x4000]
    NOFAULT "lea", .byte 0x64, 0x8d, 0x05, 0, 0x40, 0, 0
    xor eax, eax
    mov fs, eax

    call far_transfers
    call questions
    call tables
    jmp finish

    .macro FAR_FAULT what, selector, vec, err
    FAULT "\what", \vec, \err, ANY, ljmp \selector, offset nowhere
    .endm

far_transfers:
    BEGIN "far jumps"
    FAR_FAULT "null", 0, GP, 0
    FAR_FAULT "beyond the limit", 0x200, GP, 0x200
    FAR_FAULT "data", KDATA, GP, KDATA
    FAR_FAULT "DPL 3, not conforming", UCODE, GP, UCODE
    FAR_FAULT "RPL above CPL is ignored only for conforming", KCODE|3, GP, KCODE
    DESCRIPTOR S1, 0, 0xfffff, 0xc01b
    FAR_FAULT "not present", S1, NP, S1
    DESCRIPTOR S1, 0, 0xf, 0x409b
    FAR_FAULT "eip beyond the limit", S1, GP, 0
    DESCRIPTOR S1, 0, 0xfffff, 0xc09f
    TRY 1f
    ljmp S1, offset 2f
2:  ud2
1:  CAUGHT "conforming", UD, NOERR, 2b, ANY
    CHECK "cs", [last_cs], S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc0ff
    FAR_FAULT "conforming of less privilege", S1, GP, S1
    DESCRIPTOR S1, 0, 0xfffff, 0xc09f
    TRY 1f
    ENTER_USER 2f
2:  ljmp S1 | 3, offset 3f
3:  ud2
1:  CAUGHT "conforming from CPL 3", UD, NOERR, 3b, ANY
    CHECK "cs has CPL 3", [last_cs], S1|3
    USER_FAULT "DPL 0 from CPL 3", GP, KCODE, ANY, ljmp KCODE, offset nowhere

    BEGIN "far returns"
    mov ebp, esp
    push KCODE
    push offset 1f
    retf
1:  CHECK "same level", esp, ebp
    push 1
    push 2
    push KCODE
    push offset 1f
    retf 8
1:  CHECK "retf n", esp, ebp
    push 0
    push offset nowhere
    FAULT "null", GP, 0, ANY, retf
    mov dword ptr [esp + 4], KDATA
    FAULT "data", GP, KDATA, ANY, retf
    mov dword ptr [esp + 4], UCODE
    FAULT "RPL below CPL or not DPL", GP, UCODE, ANY, retf
    mov esp, ebp
    TRY 1f
    push UDATA | 3
    push offset user_stack_top - 64
    push UCODE | 3
    push offset 2f
    mov eax, KDATA
    mov fs, eax
    mov eax, UDATA
    mov gs, eax
    retf
2:  mov eax, fs
    mov ebx, gs
    int USER_EXIT
1:  CAUGHT "to CPL 3", USER_EXIT, ANY, ANY, ANY
    CHECK "esp", [last_sp], "offset user_stack_top-64"
    CHECK "fs of DPL 0 becomes null", eax, 0
    CHECK "gs of DPL 3 stays", ebx, UDATA
    push KDATA
    push offset user_stack_top
    push UCODE | 3
    push offset nowhere
    FAULT "ss of another privilege", GP, KDATA, ANY, retf
    mov dword ptr [esp + 12], 0
    FAULT "null ss", GP, 0, ANY, retf
    mov esp, ebp
    ret

questions:
    BEGIN "LAR, LSL, VERR, VERW, ARPL"
    mov ecx, KCODE
    lar eax, ecx
    jnz 1f
    and eax, 0xf0ff00
    CHECK "lar of code", eax, 0xc09b00
    lsl eax, ecx
    jnz 1f
    CHECK "lsl of code", eax, 0xffffffff
    mov ecx, TSS_SELECTOR
    lar eax, ecx
    jnz 1f
    CHECK "lar of a busy TSS", eax, 0x8b00
    lsl eax, ecx
    jnz 1f
    CHECK "lsl of a TSS", eax, 103
    jmp 2f
1:  FAIL "ZF"
2:  mov eax, 0x1234
    xor ecx, ecx
    lar eax, ecx
    CHECK "lar of null keeps the register", eax, 0x1234
    mov ecx, 0x200
    lsl eax, ecx
    setz al
    CHECK "lsl beyond the limit", eax, 0x1200
    mov ecx, KDATA | 3
    lar eax, ecx
    setz al
    movzx eax, al
    CHECK "lar: RPL above DPL", eax, 0
    mov ecx, KDATA
    verw cx
    setz al
    verr cx
    setz ah
    movzx eax, ax
    CHECK "verr, verw of data", eax, 0x101
    mov ecx, KCODE
    verw cx
    setz al
    verr cx
    setz ah
    movzx eax, ax
    CHECK "verr, verw of code", eax, 0x100
    mov ecx, TSS_SELECTOR
    verr cx
    setz al
    movzx eax, al
    CHECK "verr of a TSS", eax, 0
    mov eax, 0x10
    mov ecx, 0x1b
    arpl ax, cx
    setz bl
    CHECK "arpl", eax, 0x13
    movzx ebx, bl
    CHECK "arpl: ZF", ebx, 1
    arpl ax, cx
    setz bl
    movzx ebx, bl
    CHECK "arpl: nothing to do", ebx, 0
    ret

tables:
    BEGIN "tables"
    DESCRIPTOR S3, "offset ldt", 15, 0x0082
    mov eax, S3
    lldt ax
    sldt eax
    CHECK "sldt", eax, S3
    LOAD_OK "LDT entry", es, 4
    LOAD "LDT entry beyond its limit", es, 0x14, GP, 0x14
    LOAD "LDT entry not present", es, 0x0c, NP, 0x0c
    mov eax, KDATA
    mov es, eax
    FAULT "lldt of data", GP, KDATA, ANY, lldt ax
    DESCRIPTOR S4, "offset ldt", 15, 0x0002
    mov eax, S4
    FAULT "lldt, not present", NP, S4, ANY, lldt ax
    mov eax, 0xc
    FAULT "lldt out of the LDT", GP, 0xc, ANY, lldt ax
    xor eax, eax
    NOFAULT "lldt null", lldt ax
    FAULT "ltr null", GP, 0, ANY, ltr ax
    mov eax, TSS_SELECTOR
    FAULT "ltr of a busy TSS", GP, TSS_SELECTOR, ANY, ltr ax
    mov eax, KCODE
    FAULT "ltr of code", GP, KCODE, ANY, ltr ax
    DESCRIPTOR S4, "offset tss", 103, 0x0009
    mov eax, S4
    FAULT "ltr, not present", NP, S4, ANY, ltr ax
    sgdt [table]
    CHECK "sgdt", [table+2], "offset gdt"
    ret

nowhere:
    FAIL "nowhere"
    jmp finish

    .data
    .balign 8
ldt:
    .quad 0x00cf93000000ffff, 0x00cf13000000ffff, 0x00cf93000000ffff
table: .quad 0
