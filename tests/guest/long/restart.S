/* SPDX-License-Identifier: Apache-2.0 */
/* Faults in the middle: REP string instructions stop at the faulting element and go on, stores that
 * cross into a page that is not there leave the first page alone, a faulting instruction leaves
 * registers and flags as they were.
 * Intel SDM (June 2025) Vol. 1 §7.3.9.3 (REP and faults), Vol. 3A §7.5 (restart).
 *
 * qemu deviates: stores across pages are all or nothing: add error -- reads first
 * qemu deviates: stores across pages are all or nothing: lock xadd error -- likewise
 */
#include "guest.h"

#define FIRST (WINDOW + 0x2000) /* page 2: scratch; page 3: not there until a hook maps it */

    .macro NEW_PAGES /* page 2 there, page 3 not; both filled with 11 */
    lea rdi, [rip + scratch]
    mov ecx, 8192
    mov al, 0x11
    rep stosb
    MAP_PAGE 2, "offset scratch", P|W|U
    MAP_PAGE 3, 0, 0
    .endm

    /* The bytes at the end of the first and at the start of the second page, as 8-byte numbers. */
#define TAIL [scratch+0xff8]
#define HEAD [scratch+0x1000]

    .macro UNTOUCHED what, insn:vararg
    NEW_PAGES
    mov rdx, FIRST + 0xffd
    FAULT "\what", PF, ERR_W, FIRST+0x1000, \insn
    mov rax, TAIL
    mov rbx, 0x1111111111111111
    CHECK "\what leaves the first page alone", rax, rbx
    .endm

    .text
    .globl main
main:
    SET_CR4 CR4_OSFXSR
    mov byte ptr [idt + PF * 16 + 4], 1 /* IST: some stacks fault themselves */
    BEGIN "stores across pages are all or nothing"
    UNTOUCHED "mov 4", mov [rdx], eax
    UNTOUCHED "mov 8", mov [rdx], rax
    UNTOUCHED "mov 2", mov [rdx + 2], ax
    UNTOUCHED "add", add [rdx], eax
    UNTOUCHED "lock xadd", lock xadd [rdx], eax
    UNTOUCHED "movups", movups [rdx], xmm0
    UNTOUCHED "movlps", movlps [rdx], xmm0
    UNTOUCHED "fstp m64", fst qword ptr [rdx]
    UNTOUCHED "fnstenv", fnstenv [rdx]
    UNTOUCHED "fistp", fist dword ptr [rdx]
    NEW_PAGES
    mov rdi, FIRST + 0xffd
    FAULT "stosq", PF, ERR_W, FIRST+0x1000, stosq
    mov rax, FIRST + 0xffd
    CHECK "stosq: rdi", rdi, rax
    CHECK "stosq: first page", TAIL, [all_11]
    NEW_PAGES
    mov rbp, rsp
    TRY 1f
    mov rsp, FIRST + 0x1004
2:  push rax
1:  mov rsp, rbp
    CAUGHT "push", PF, ERR_W, 2b, FIRST+0x1000
    call calls_and_stacks
    call rep_faults
    call registers_kept
    jmp finish

calls_and_stacks:
    BEGIN "stack faults leave rsp"
    MAP_PAGE 3, 0, 0
    mov rbp, rsp
    TRY 1f
    mov rsp, FIRST + 0x1008
2:  call unreachable
1:  mov rsp, rbp
    CAUGHT "call", PF, ERR_W, 2b, FIRST+0x1000
    mov rax, FIRST + 0x1008
    CHECK "call: rsp", [last_sp], rax
    TRY 1f
    mov rsp, FIRST + 0x1008
    mov rax, rbp
2:  enter 16, 0
1:  mov rsp, rax
    CAUGHT "enter", PF, ERR_W, 2b, FIRST+0x1000
    mov rbx, FIRST + 0x1008
    CHECK "enter: rsp", [last_sp], rbx
    CHECK "enter: rbp", rbp, rax
    TRY 1f
    mov rbp, FIRST + 0x1000
2:  leave
1:  CAUGHT "leave", PF, 0, 2b, FIRST+0x1000
    mov rbx, FIRST + 0x1000
    CHECK "leave: rbp", rbp, rbx
    mov rbp, rsp
    TRY 1f
    mov rsp, FIRST + 0xff8
    mov rdx, FIRST + 0x1000
2:  pop qword ptr [rdx]
1:  mov rsp, rbp
    CAUGHT "pop to memory", PF, ERR_W, 2b, FIRST+0x1000
    mov rbx, FIRST + 0xff8
    CHECK "pop to memory: rsp", [last_sp], rbx
    TRY 1f
    mov rsp, FIRST + 0x1000
2:  ret
1:  mov rsp, rbp
    CAUGHT "ret", PF, 0, 2b, FIRST+0x1000
    TRY 1f
    mov rsp, FIRST + 0x1000
2:  iretq
1:  mov rsp, rbp
    CAUGHT "iretq", PF, 0, 2b, FIRST+0x1000
    TRY 1f
    mov rsp, FIRST + 0x1000
2:  popfq
1:  mov rsp, rbp
    CAUGHT "popfq", PF, 0, 2b, FIRST+0x1000
    /* an address by rsp sees the value before push, after pop */
    mov rbx, rsp
    push rsp
    pop rax
    CHECK "push rsp", rax, rbx
    push 0x1234
    push 0x5678
    pop qword ptr [rsp]
    pop rax
    CHECK "pop [rsp]", rax, 0x5678
    ret
unreachable:
    FAIL "unreachable"
    jmp finish

    /* Counts, records and maps the missing page 3. */
map_missing:
    inc qword ptr [missing_count]
    mov rax, [rdi + F_RCX]
    mov [seen_rcx], rax
    mov rax, [rdi + F_RSI]
    mov [seen_rsi], rax
    mov rax, [rdi + F_RDI]
    mov [seen_rdi], rax
    mov rax, [rdi + F_RIP]
    mov [seen_rip], rax
    MAP_PAGE 3, "offset scratch + 0x1000", P|W|U
    ret

    .macro PREPARE
    NEW_PAGES
    mov qword ptr [missing_count], 0
    .endm
    .macro STOPPED_AT what, rcx, rsi, rdi, rip
    CHECK "\what: faults", [missing_count], 1
    mov rax, \rcx
    CHECK "\what: rcx", [seen_rcx], rax
    mov rax, \rsi
    CHECK "\what: rsi", [seen_rsi], rax
    mov rax, \rdi
    CHECK "\what: rdi", [seen_rdi], rax
    mov rax, offset \rip
    CHECK "\what: rip", [seen_rip], rax
    .endm

rep_faults:
    BEGIN "REP strings stop and go on"
    HOOK PF, map_missing
    PREPARE
    mov rdi, FIRST + 0xff0
    mov rsi, offset pattern
    mov ecx, 32
1:  rep movsb
    STOPPED_AT "movsb", 16, "offset pattern + 16", FIRST+0x1000, 1b
    CHECK "movsb: rcx at the end", rcx, 0
    CHECK "movsb: first page", TAIL, [pattern+8]
    CHECK "movsb: second page", HEAD, [pattern+16]
    PREPARE
    mov rdi, FIRST + 0xfe5
    mov rsi, offset pattern
    mov ecx, 8
1:  rep movsq
    STOPPED_AT "movsq unaligned", 5, "offset pattern + 24", FIRST+0xffd, 1b
    CHECK "movsq unaligned: across", [scratch+0xffd], [pattern+24]
    PREPARE
    mov rdi, FIRST + 0xfe5
    mov rax, 0x0102030405060708
    mov rbp, rax
    mov rsi, 77
    mov ecx, 8
1:  rep stosq
    CHECK "stosq: rax", rax, rbp
    STOPPED_AT "stosq", 5, 77, FIRST+0xffd, 1b
    CHECK "stosq: across", [scratch+0xffd], rbp
    PREPARE
    mov rsi, FIRST + 0xff0
    mov rdi, offset sink
    mov ecx, 8
1:  rep movsd
    STOPPED_AT "movsd from", 4, FIRST+0x1000, "offset sink + 16", 1b
    PREPARE
    mov rsi, FIRST + 0xff8
    mov rdi, 5
    mov ecx, 16
1:  rep lodsb
    STOPPED_AT "lodsb", 8, FIRST+0x1000, 5, 1b
    PREPARE
    mov rdi, FIRST + 0xff8
    mov rsi, 5
    mov ecx, 16
    mov al, 0x11
1:  repe scasb
    STOPPED_AT "scasb", 8, 5, FIRST+0x1000, 1b
    CHECK "scasb: rcx at the end", rcx, 0
    PREPARE
    mov rdi, FIRST + 0xff8
    mov rsi, offset scratch
    mov ecx, 16
1:  repe cmpsb
    STOPPED_AT "cmpsb", 8, "offset scratch + 8", FIRST+0x1000, 1b
    PREPARE
    MAP_PAGE 1, 0, 0
    MAP_PAGE 3, "offset scratch + 0x1000", P|W
    mov rdi, FIRST + 0x100f
    mov rsi, offset pattern + 31
    mov ecx, 32
    HOOK PF, map_second
    MAP_PAGE 2, 0, 0
    std
    mov ecx, 32
1:  rep movsb
    cld
    STOPPED_AT "movsb, DF", 16, "offset pattern + 15", FIRST+0xfff, 1b
    CHECK "movsb, DF: first page", TAIL, [pattern+8]
    CHECK "movsb, DF: second page", HEAD, [pattern+16]
    UNHOOK PF

    BEGIN "REP without end conditions"
    MAP_PAGE 3, 0, 0
    mov rdi, FIRST + 0x1000
    mov rsi, FIRST + 0x1000
    xor ecx, ecx
    NOFAULT "rcx 0 touches nothing", rep movsb
    mov rax, FIRST + 0x1000
    CHECK "rcx 0 keeps rdi", rdi, rax
    mov rcx, 0x100000000
    mov rdi, 0xff00000000000000
    NOFAULT "a 32-bit address size counts in ecx", .byte 0x67, 0xf3, 0xaa
    mov rcx, 0x100000002
    mov rdi, offset sink
    mov rax, 0x5500000000
    add rdi, rax
    mov al, 0x33
    .byte 0x67
    rep stosb
    CHECK "ecx at the end", rcx, 0
    CHECK "edi is zero-extended", rdi, "offset sink + 2"
    movzx rax, word ptr [sink]
    CHECK "stored", rax, 0x3333
    mov ecx, 5
    lea rdi, [rip + pattern]
    mov al, 2
    repne scasb
    CHECK "repne scasb: rcx", rcx, 2
    CHECK "repne scasb: rdi", rdi, "offset pattern + 3"
    ret

map_second:
    inc qword ptr [missing_count]
    mov rax, [rdi + F_RCX]
    mov [seen_rcx], rax
    mov rax, [rdi + F_RSI]
    mov [seen_rsi], rax
    mov rax, [rdi + F_RDI]
    mov [seen_rdi], rax
    mov rax, [rdi + F_RIP]
    mov [seen_rip], rax
    MAP_PAGE 2, "offset scratch", P|W|U
    ret

registers_kept:
    BEGIN "registers and flags are as before"
    MAP_PAGE 2, "offset scratch", P
    mov rdx, FIRST
    mov qword ptr [scratch], -1
    mov ebx, 5
    stc
    FAULT "xadd", PF, ERR_P|ERR_W, FIRST, xadd [rdx], rbx
    CHECK "xadd: source", rbx, 5
    mov rax, [last_flags]
    and eax, FLAG_CF
    CHECK "xadd: CF", rax, 1
    mov eax, 3
    FAULT "cmpxchg", PF, ERR_P|ERR_W, FIRST, cmpxchg [rdx], rbx
    CHECK "cmpxchg: rax", rax, 3
    FAULT "xchg", PF, ERR_P|ERR_W, FIRST, xchg [rdx], rbx
    CHECK "xchg: rbx", rbx, 5
    xor eax, eax /* ZF */
    FAULT "add", PF, ERR_P|ERR_W, FIRST, add dword ptr [rdx], 1
    mov rbx, [last_flags]
    and ebx, FLAG_ZF | FLAG_CF
    CHECK "add: flags", rbx, FLAG_ZF
    stc
    FAULT "rcl by 33", PF, ERR_P|ERR_W, FIRST, rcl dword ptr [rdx], 33
    MAP_PAGE 2, 0, 0
    mov rdx, FIRST
    mov eax, 7
    mov rcx, -1
    FAULT "div", PF, 0, FIRST, div qword ptr [rdx]
    CHECK "div: rax", rax, 7
    FAULT "movzx", PF, 0, FIRST, movzx eax, byte ptr [rdx]
    CHECK "movzx: rax", rax, 7
    FAULT "cmov reads always", PF, 0, FIRST, cmovc eax, [rdx]
    mov rsi, FIRST
    FAULT "lodsb", PF, 0, FIRST, lodsb
    mov rax, FIRST
    CHECK "lodsb: rsi", rsi, rax
    mov rdi, FIRST
    FAULT "movsb writes what it read", PF, 0, FIRST, movsb
    mov rsi, offset pattern
    FAULT "movsb to", PF, ERR_W, FIRST, movsb
    CHECK "movsb to: rsi", rsi, "offset pattern"
    ret

    .data
    .balign 16
all_11: .quad 0x1111111111111111
pattern:
    .set value, 0
    .rept 64
    .byte value
    .set value, value + 1
    .endr
sink: .skip 64
missing_count: .quad 0
seen_rcx: .quad 0
seen_rsi: .quad 0
seen_rdi: .quad 0
seen_rip: .quad 0
