/* SPDX-License-Identifier: Apache-2.0 */
/* Code that changes itself: the next instruction, the same page, another page, by another mapping,
 * by every kind of store, and code whose page is exchanged.
 * Intel SDM (June 2025) Vol. 3A §9.1.3 (self- and cross-modifying code), §13.6.
 */
#include "guest.h"

    .macro SERIALIZE
    push rbx
    xor eax, eax
    cpuid
    pop rbx
    .endm

    .section .pages, "aw", @nobits
    .balign 4096
code: .skip 4 * 4096

    .text
    .globl main
main:
    BEGIN "the next instruction"
    mov byte ptr [rip + 1f + 1], 0x42
1:  mov al, 1
    movzx rax, al
    CHECK "imm8 by mov", rax, 0x42
    xor ebx, ebx
    mov word ptr [rip + 1f], 0xc3ff /* inc ebx for two nops */
1:  nop
    nop
    CHECK "opcode", rbx, 1
    mov dword ptr [rip + 1f + 1], 0x11223344
1:  mov eax, 0
    CHECK "imm32", rax, 0x11223344
    lea rdi, [rip + 1f + 1]
    mov al, 0x77
    stosb
1:  mov bl, 0
    movzx rbx, bl
    CHECK "by stosb", rbx, 0x77
    lea rdi, [rip + 1f]
    mov ecx, 3
    mov al, 0x90
    xor ebx, ebx
    rep stosb
1:  inc rbx
    CHECK "by rep stosb", rbx, 0
    xor ebx, ebx
    mov eax, 0x9090c3ff
    lock xchg [rip + 1f], eax
1:  .byte 0x90, 0x90, 0x90, 0x90
    CHECK "by xchg", rbx, 1
    xor ebx, ebx
    mov rbp, rsp
    lea rsp, [rip + 1f + 8]
    mov rax, 0x90909090c3ffc3ff
    push rax
1:  .quad 0x9090909090909090
    mov rsp, rbp
    CHECK "by push", rbx, 2
    SET_CR4 CR4_OSFXSR
    movups xmm0, [rip + twice_inc]
    xor ebx, ebx
    movups [rip + 1f], xmm0
1:  .quad 0x9090909090909090, 0x9090909090909090
    CHECK "by movups", rbx, 2
    xor ebx, ebx
    fild qword ptr [rip + twice_inc]
    fistp qword ptr [rip + 1f]
1:  .quad 0x9090909090909090
    CHECK "by fistp", rbx, 2
    bts dword ptr [rip + 1f + 1], 0
1:  mov bl, 0
    movzx rbx, bl
    CHECK "by bts", rbx, 1

    BEGIN "a loop that patches itself"
    xor esi, esi
    mov ecx, 1000
1:  mov [rip + 2f + 1], ecx
2:  mov eax, 0
    add rsi, rax
    loop 1b
    CHECK "sum", rsi, 500500
    xor esi, esi
    mov ecx, 1000
    lea rdi, [rip + 3f + 2]
2:  mov [rdi], cl
    jmp 3f /* a block of its own */
3:  add esi, 0
    dec ecx
    jnz 2b
    mov eax, esi /* sum of the low bytes, sign-extended */
    xor ebx, ebx
    mov ecx, 1000
4:  movsx edx, cl
    add ebx, edx
    loop 4b
    CHECK "across a jump", rax, rbx
    xor esi, esi
    mov ecx, 300
5:  call patched
    add esi, eax
    mov [rip + patched + 1], ecx
    loop 5b
    CHECK "a function patched between calls", rsi, 45448

    BEGIN "another page"
    lea rdi, [rip + code + 4096]
    mov byte ptr [rdi], 0xb8
    mov byte ptr [rdi + 5], 0xc3
    mov ecx, 100
    xor esi, esi
1:  mov [rdi + 1], ecx
    call rdi
    add rsi, rax
    loop 1b
    CHECK "direct", rsi, 5050
    mov byte ptr [rdi - 3], 0xb8
    mov byte ptr [rdi + 2], 0xc3
    lea rbx, [rdi - 3]
    mov ecx, 100
    xor esi, esi
2:  mov [rbx + 1], ecx
    call rbx
    add rsi, rax
    loop 2b
    CHECK "an instruction on the boundary", rsi, 5050
    mov byte ptr [rdi], 5 /* the half in the second page: imm32 = 1 | 5 << 16 */
    call rbx
    CHECK "its second half", rax, 0x50001
    mov byte ptr [rdi - 1], 7 /* the half in the first page */
    call rbx
    CHECK "its first half", rax, 0x50701

    BEGIN "by another mapping"
    MAP_PAGE 5, "offset code", P|W
    MAP_PAGE 6, "offset code", P|W
    mov rdi, WINDOW + 0x5100
    mov rbx, WINDOW + 0x6100
    lea r8, [rip + code + 0x100]
    mov byte ptr [rdi], 0xb8
    mov byte ptr [rdi + 5], 0xc3
    xor esi, esi
    mov ebp, 50
1:  mov [rdi + 1], ebp
    SERIALIZE
    call r8
    add rsi, rax
    SERIALIZE
    call rbx
    add rsi, rax
    SERIALIZE
    call rdi
    add rsi, rax
    dec ebp
    jnz 1b
    CHECK "three names of one page", rsi, 3*1275
    BEGIN "a page exchanged"
    mov dword ptr [code + 0x200], 0xc301b0 /* mov al, 1; ret */
    mov dword ptr [code + 0x1200], 0xc302b0
    mov rbx, WINDOW + 0x7200
    xor esi, esi
    mov ebp, 50
1:  MAP_PAGE 7, "offset code", P|W
    mov rbx, WINDOW + 0x7200
    xor eax, eax
    call rbx
    add rsi, rax
    MAP_PAGE 7, "offset code + 0x1000", P|W
    mov rbx, WINDOW + 0x7200
    xor eax, eax
    call rbx
    add rsi, rax
    dec ebp
    jnz 1b
    CHECK "INVLPG", rsi, 150
    xor esi, esi
    mov ebp, 50
2:  mov rax, offset code + P + W
    mov [window_pt + 56], rax
    mov rax, cr3
    mov cr3, rax
    xor eax, eax
    call rbx
    add rsi, rax
    mov rax, offset code + 0x1000 + P + W
    mov [window_pt + 56], rax
    mov rax, cr3
    mov cr3, rax
    xor eax, eax
    call rbx
    add rsi, rax
    dec ebp
    jnz 2b
    CHECK "CR3", rsi, 150
    mov dword ptr [window_pt + 56], 0
    invlpg [rbx]
    TRY 3f
    call rbx
3:  CAUGHT "unmapped code", PF, ERR_I, WINDOW+0x7200, WINDOW+0x7200

    BEGIN "an instruction whose second page changes"
    mov byte ptr [code + 0xfff], 0xb8 /* mov eax, imm32: the opcode ends the first page */
    mov rax, 0xc311111111
    mov [code + 0x1000], rax
    mov rax, 0xc322222222
    mov [code + 0x2000], rax
    MAP_PAGE 8, "offset code", P|W
    MAP_PAGE 9, "offset code + 0x1000", P|W
    mov rbx, WINDOW + 0x8fff
    call rbx
    CHECK "first", rax, 0x11111111
    MAP_PAGE 9, "offset code + 0x2000", P|W
    mov rbx, WINDOW + 0x8fff
    call rbx
    CHECK "second", rax, 0x22222222
    mov byte ptr [code + 0x2000], 0x23
    SERIALIZE
    mov rbx, WINDOW + 0x8fff
    call rbx
    CHECK "written", rax, 0x22222223

    BEGIN "code and data in one page"
    mov ecx, 20000
    lea rdi, [rip + code + 0x800]
    mov dword ptr [rdi], 0xc3c0ff /* inc eax; ret */
    xor eax, eax
1:  mov [rdi + 64], ecx
    call rdi
    add [rdi + 128], eax
    dec ecx
    jnz 1b
    CHECK "calls", rax, 20000

    BEGIN "jumping into an instruction"
    xor eax, eax
    jmp 1f + 1
1:  .byte 0xb8, 0xff, 0xc0, 0x90, 0x90 /* mov eax, …, or: inc eax; nop; nop */
    CHECK "inc eax", rax, 1
    jmp 1f
1:  jmp finish

patched:
    mov eax, 299
    ret

    .data
    .balign 16
twice_inc: /* inc ebx; inc ebx; nop dword ptr [rax]; nop */
    .quad 0x90001f0fc3ffc3ff
    .quad 0x9090909090909090
