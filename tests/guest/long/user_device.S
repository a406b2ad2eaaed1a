/* SPDX-License-Identifier: Apache-2.0 */
/* A device driven from CPL 3: ports opened one by one by the TSS's I/O permission bitmap, registers
 * and loopback of the serial port; and work on memory whose result is known.
 * Intel SDM (June 2025) Vol. 1 §20.5.2 (I/O permission bit map); NS16550A data sheet.
 *
 * kvm: kvm-ring3
 */
#include "guest.h"

#define TSS_BYTES 104
#define BITMAP_BYTES 256 /* ports 0 … 7ffh */
#define TSS2 SPARE
#define EXPECTED_WORK 0x2464d16b38340001
#define MCR (COM1 + 4)
#define LSR (COM1 + 5)
#define SCRATCH (COM1 + 7)

    .text
    .globl main
main:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    call use_bitmap

    BEGIN "ports by the bitmap"
    USER_FAULT "closed", GP, 0, ANY, in al, 0x80
    mov edi, offset tss2 + TSS_BYTES
    mov ecx, COM1
    btr [rdi], ecx
    mov ecx, SCRATCH
    btr [rdi], ecx
    mov dx, SCRATCH
    TRY 1f
    ENTER_USER 2f
2:  in al, dx
    ud2
1:  CAUGHT "open", UD, NOERR, ANY, ANY
    mov dx, SCRATCH - 1
    USER_FAULT "its neighbour", GP, 0, ANY, in al, dx
    mov dx, SCRATCH - 1
    USER_FAULT "a word across both", GP, 0, ANY, in ax, dx

    BEGIN "registers"
    TRY 1f
    ENTER_USER 2f
2:  mov dx, SCRATCH /* every value, written and read back */
    xor ecx, ecx
    xor ebx, ebx
3:  mov al, cl
    out dx, al
    in al, dx
    movzx eax, al
    add ebx, eax
    cmp eax, ecx
    jne 4f
    inc ecx
    cmp ecx, 256
    jne 3b
4:  ud2 /* leaves CPL 3 */
1:  CAUGHT "to the end", UD, NOERR, ANY, ANY
    CHECK "values read back", rcx, 256
    CHECK "their sum", rbx, 32640

    BEGIN "loopback"
    mov edi, offset tss2 + TSS_BYTES
    mov ecx, MCR
    btr [rdi], ecx
    mov ecx, LSR
    btr [rdi], ecx
    TRY 1f
    ENTER_USER 2f
2:  mov dx, MCR
    mov al, 0x10
    out dx, al
    xor ecx, ecx /* bytes that came back as sent */
    mov esi, 0x5a
3:  mov dx, COM1
    mov eax, esi
    out dx, al
    mov edi, 100000
4:  mov dx, LSR
    in al, dx
    test al, 1
    jnz 5f
    dec edi
    jnz 4b
    jmp 6f
5:  mov dx, COM1
    in al, dx
    movzx eax, al
    movzx ebx, sil
    cmp eax, ebx
    jne 6f
    add esi, 0x35
    inc ecx
    cmp ecx, 64
    jne 3b
6:  mov dx, MCR
    xor eax, eax
    out dx, al
    ud2 /* leaves CPL 3 */
1:  CAUGHT "to the end", UD, NOERR, ANY, ANY
    CHECK "bytes", rcx, 64

    BEGIN "work"
    TRY 1f
    ENTER_USER 2f
2:  mov rsi, USER_BASE + 0x400000 /* 4 MiB: each word from the one before, three times */
    mov edx, 3
    mov rax, 1
    mov r8, 6364136223846793005
    mov r9, 1442695040888963407
3:  xor ecx, ecx
4:  imul rax, r8
    add rax, r9
    xor rax, [rsi + rcx * 8]
    mov [rsi + rcx * 8], rax
    inc ecx
    cmp ecx, 524288
    jne 4b
    dec edx
    jnz 3b
    ud2 /* leaves CPL 3 */
1:  CAUGHT "to the end", UD, NOERR, ANY, ANY
    mov rbx, EXPECTED_WORK
    CHECK "three passes over 4 MiB", rax, rbx
    ret

    /* The TSS again, with the bitmap behind it: all ports closed. */
use_bitmap:
    mov esi, offset tss
    mov edi, offset tss2
    mov ecx, TSS_BYTES
    rep movsb
    mov al, 0xff
    mov ecx, BITMAP_BYTES + 1
    rep stosb
    mov word ptr [tss2 + 102], TSS_BYTES
    mov eax, offset tss2
    DESCRIPTOR TSS2, rax, TSS_BYTES+BITMAP_BYTES, 0x89
    mov qword ptr [gdt + TSS2 + 8], 0
    mov eax, TSS2
    ltr ax
    ret

    .bss
    .balign 16
tss2: .skip TSS_BYTES + BITMAP_BYTES + 8
