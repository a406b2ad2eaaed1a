/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual-8086 mode: entry by iret, addresses, IOPL-sensitive instructions with IOPL 3 and below,
 * faults and interrupts to CPL 0 with the segment registers on the stack, I/O bitmap, VME.
 * Intel SDM (June 2025) Vol. 3B §22.2 (virtual-8086 mode), §22.3 (VME).
 *
 * qemu deviates: IOPL 3: beyond -- checks no limits
 * qemu deviates: IOPL 3: a word at ffff -- likewise
 * qemu deviates: IOPL 3: stack at ffff -- likewise
 * qemu deviates: VME: -- does not look at the redirection bitmap
 */
#include "guest.h"

#define CODE16 0x8000 /* segment 800h */

    /* Runs 16-bit code copied to 0800:0000 until a fault or int USER_EXIT; flags: IOPL and such. */
    .macro V86 what, flags, vec, err, offset, insn
    .pushsection .rodata
    .code16
.Lcode\@:
    \insn
    int USER_EXIT
    nop
    nop
    nop
    nop
    .code32
    .popsection
    mov esi, offset .Lcode\@
    mov ecx, 32
    mov edx, \flags
    TRY .Lafter\@
    jmp run_v86
.Lafter\@:
    CAUGHT "\what", \vec, \err, ANY, ANY
    mov eax, [last_ip]
    CHECK "\what: ip", eax, \offset
    mov eax, [last_flags]
    and eax, FLAG_VM
    CHECK "\what: VM in the frame", eax, FLAG_VM
    .endm

    .text
    .globl main
main:
    mov byte ptr [idt + 0x21 * 8 + 5], 0xee
    BEGIN "IOPL 3"
    V86 "nop and out", FLAG_IOPL, USER_EXIT, ANY, 3, nop
    CHECK "cs in the frame", [last_cs], CODE16/16
    CHECK "ss in the frame", [last_ss], 0x900
    CHECK "sp in the frame", [last_sp], 0x100
    V86 "segments are paragraphs", FLAG_IOPL, USER_EXIT, ANY, 6, "mov ax, ds; mov bx, cs"
    mov eax, ebx
    movzx eax, ax
    CHECK "cs", eax, CODE16/16
    mov dword ptr [0x12340], 0x600df00d
    V86 "address", FLAG_IOPL, USER_EXIT, ANY, 0xc, "mov ax, 0x1234; mov ds, ax; mov ebx, [0]"
    CHECK "ds:0", ebx, 0x600df00d
    V86 "cli, sti, pushf, popf", FLAG_IOPL, USER_EXIT, ANY, 6, "cli; sti; cli; pushf"
    V86 "popf changes IF", FLAG_IOPL, USER_EXIT, ANY, 6, "pushw 0x3202; popf"
    mov eax, [last_flags]
    and eax, FLAG_IF
    CHECK "IF is set", eax, FLAG_IF
    V86 "int n through a gate of DPL 3", FLAG_IOPL, 0x21, NOERR, 2, "int 0x21"
    V86 "int n of DPL 0", FLAG_IOPL, GP, 0x22*8+2, 0, "int 0x22"
    V86 "int3", FLAG_IOPL, BP_, NOERR, 1, "int3"
    V86 "hlt", FLAG_IOPL, GP, 0, 0, "hlt"
    V86 "mov cr0", FLAG_IOPL, GP, 0, 0, "mov eax, cr0"
    V86 "lgdt", FLAG_IOPL, GP, 0, 0, "lgdt [0]"
    V86 "lldt", FLAG_IOPL, UD, NOERR, 0, "lldt ax"
    V86 "arpl", FLAG_IOPL, UD, NOERR, 0, "arpl ax, cx"
    V86 "lar", FLAG_IOPL, UD, NOERR, 0, "lar ax, cx"
    V86 "verr", FLAG_IOPL, UD, NOERR, 0, "verr ax"
    V86 "ud2", FLAG_IOPL, UD, NOERR, 0, "ud2"
    V86 "beyond 64 KiB", FLAG_IOPL, GP, 0, 6, "mov ebx, 0x10000; mov al, [ebx]"
    V86 "a word at ffff", FLAG_IOPL, GP, 0, 0, "mov ax, [0xffff]"
    V86 "stack at ffff", FLAG_IOPL, SS_, 0, 3, "mov bp, 0xffff; mov ax, [bp]"
    V86 "segment loads cannot fault", FLAG_IOPL, USER_EXIT, ANY, 7, "mov ax, 0xfff3; mov es, ax"
    V86 "far jump", FLAG_IOPL, USER_EXIT, ANY, 7, "ljmp 0x800, 5"

    BEGIN "IOPL 0"
    V86 "cli", 0, GP, 0, 0, "cli"
    V86 "sti", 0, GP, 0, 0, "sti"
    V86 "pushf", 0, GP, 0, 0, "pushf"
    V86 "popf", 0, GP, 0, 0, "popf"
    V86 "iret", 0, GP, 0, 0, "iret"
    V86 "int n", 0, GP, 0, 0, "int 0x21"
    V86 "int3 is not sensitive", 0, BP_, NOERR, 1, "int3"

    BEGIN "I/O bitmap"
    V86 "no bitmap", FLAG_IOPL, GP, 0, 0, "in al, 0x80"
    DESCRIPTOR SPARE, "offset big_tss", 104+8192+32, 0x0089
    mov dword ptr [big_tss + 4], offset int_stack_top
    mov dword ptr [big_tss + 8], KDATA
    mov word ptr [big_tss + 102], 104 + 32
    mov eax, SPARE
    ltr ax
    V86 "bit clear", FLAG_IOPL, USER_EXIT, ANY, 4, "in al, 0x80"
    or byte ptr [big_tss + 136 + 0x81 / 8], 2
    V86 "bit of the second byte", FLAG_IOPL, GP, 0, 0, "in ax, 0x80"
    V86 "one byte", FLAG_IOPL, USER_EXIT, ANY, 4, "in al, 0x80"
    pushfd
    and dword ptr [esp], ~FLAG_IOPL
    popfd
    USER_NOFAULT "protected mode, bit clear", in al, 0x80
    USER_FAULT "protected mode, bit set", GP, 0, ANY, in al, 0x81

    BEGIN "VME"
    mov eax, 1
    cpuid
    bt edx, 1
    jnc finish
    SET_CR4 CR4_VME
    or byte ptr [big_tss + 104 + USER_EXIT / 8], 1 /* this one is ours: #GP with IOPL 0 */
    V86 "cli clears VIF", 0x80000, GP, 0, 1, "cli"
    mov eax, [last_flags]
    and eax, 0x80000
    CHECK "VIF", eax, 0
    V86 "sti sets VIF", 0, GP, 0, 1, "sti"
    mov eax, [last_flags]
    and eax, 0x80000
    CHECK "VIF set", eax, 0x80000
    V86 "sti with VIP", 0x100000, GP, 0, 0, "sti"
    V86 "pushf shows VIF as IF", 0x80000, GP, 0, 2, "pushf; pop bx"
    and ebx, FLAG_IF | FLAG_IOPL
    CHECK "IF and IOPL 3", ebx, FLAG_IF|FLAG_IOPL
    V86 "popf sets VIF", 0, GP, 0, 4, "pushw 0x202; popf"
    mov eax, [last_flags]
    and eax, 0x80000 | FLAG_IF
    CHECK "VIF, not IF", eax, 0x80000
    /* The others' bits are clear: int n stays in the virtual machine. */
    mov dword ptr [0x40 * 4], 0x08000006
    V86 "int n by the virtual vectors", 0x80000, GP, 0, 7, "int 0x40; hlt; nop; nop; nop; nop"
    jmp finish

    /* esi: 16-bit code, ecx bytes; edx: flags. */
run_v86:
    mov edi, CODE16
    rep movsb
    push 0 /* gs fs ds es ss sp flags cs ip */
    push 0
    push 0x900
    push 0x900
    push 0x900
    push 0x100
    or edx, FLAG_VM | 2
    push edx
    push CODE16 / 16
    push 0
    iretd

    .bss
    .balign 16
big_tss: .skip 104 + 32 + 8192 + 16
