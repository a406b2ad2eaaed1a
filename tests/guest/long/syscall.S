/* SPDX-License-Identifier: Apache-2.0 */
/* SYSCALL, SYSRET, SYSENTER, SYSEXIT, IRET in all their forms, SWAPGS, POPF at CPL 3.
 * Intel SDM (June 2025) Vol. 2B SYSCALL, SYSRET, SYSENTER, SYSEXIT; Vol. 2A IRET; Vol. 3A §6.8.7.
 *
 * qemu deviates: sysret: -- takes any rcx and r11
 * qemu dies: of the flags that its sysret accepts
 */
#include "guest.h"

#define STAR 0xc0000081
#define LSTAR 0xc0000082
#define CSTAR 0xc0000083
#define FMASK 0xc0000084
#define KERNEL_GS_BASE 0xc0000102
#define GS_BASE 0xc0000101
#define LOW_USER 0x400000 /* a 2-MiB page for CPL 3 below 4 GiB */

    .text
    .globl main
main:
    or byte ptr [pd + 16], U
    mov rax, cr3
    mov cr3, rax
    WRITE_MSR STAR, 0, UCODE32<<16|KCODE
    WRITE_MSR LSTAR, "offset on_syscall"
    WRITE_MSR FMASK, FLAG_IF|FLAG_DF|FLAG_CF
    BEGIN "syscall"
    TRY 1f
    ENTER_USER 2f
2:  std
    stc
    mov rcx, 5
    mov r11, 5
    syscall
3:  cld
    int USER_EXIT
1:  CAUGHT "comes back by sysretq", USER_EXIT, ANY, ANY, ANY
    mov rax, offset 3b
    mov rbx, USER_BASE
    add rax, rbx
    CHECK "rcx is the next rip", [seen_rcx], rax
    mov rax, [seen_r11]
    and eax, FLAG_DF | FLAG_CF | FLAG_IF
    CHECK "r11 has the flags", rax, FLAG_DF|FLAG_CF
    mov rax, [seen_flags]
    and eax, FLAG_DF | FLAG_CF | FLAG_IF
    CHECK "FMASK clears flags", rax, 0
    CHECK "cs", [seen_cs], KCODE
    CHECK "ss", [seen_ss], KDATA
    mov rax, offset user_stack_top
    add rax, rbx
    CHECK "rsp is the user's", [seen_rsp], rax
    CHECK "cs after sysretq", [last_cs], UCODE|3
    CHECK "ss after sysretq", [last_ss], UDATA|3
    TRY 1f
    syscall /* from CPL 0: on_syscall jumps back */
2:  ud2
1:  CHECK "from CPL 0: rcx", [seen_rcx], "offset 2b"
    BEGIN "sysret"
    mov rcx, 0x800000000000
    mov r11, 2
    FAULT "rcx not canonical: #GP at CPL 0", GP, 0, ANY, sysretq
    TRY 1f
    mov rcx, offset 2f
    mov rax, USER_BASE
    add rcx, rax
    mov r11, FLAG_RF | FLAG_VM | FLAG_DF | FLAG_CF | 0xffc0802a
    lea rsp, [rax + user_stack_top]
    sysretq
2:  int USER_EXIT
1:  CAUGHT "flags", USER_EXIT, ANY, ANY, ANY
    mov rax, [last_flags]
    CHECK "reserved flags, RF, VM are cleared", rax, FLAG_CF|FLAG_DF|2
    mov dword ptr [LOW_USER], 0x80cd9090 /* nop; nop; int USER_EXIT */
    TRY 1f
    mov rcx, 0xffffffff00000000 + LOW_USER
    mov r11, 2
    .byte 0x0f, 0x07 /* sysret */
1:  CAUGHT "32-bit sysret", USER_EXIT, ANY, LOW_USER+4, ANY
    CHECK "cs after sysret", [last_cs], UCODE32|3
    CHECK "ss after sysret", [last_ss], UDATA|3
    WRITE_MSR IA32_EFER, EFER_LME|EFER_NXE
    FAULT "syscall without SCE", UD, NOERR, ANY, syscall
    FAULT "sysret without SCE", UD, NOERR, ANY, sysretq
    WRITE_MSR IA32_EFER, EFER_LME|EFER_NXE|EFER_SCE
    mov dword ptr [LOW_USER], 0x80cd050f /* syscall; int USER_EXIT */
    TRY 1f
    mov rcx, LOW_USER
    mov r11, 2
    .byte 0x0f, 0x07 /* sysret */
1:  CAUGHT "syscall in compatibility mode (Intel)", UD, NOERR, LOW_USER, ANY

    call sysenter_sysexit
    call iret_forms
    call user_flags
    call alignment_flag
    jmp finish

on_syscall:
    mov [seen_rcx], rcx
    mov [seen_r11], r11
    mov [seen_rsp], rsp
    pushfq
    pop qword ptr [seen_flags]
    xor eax, eax
    mov ax, cs
    mov [seen_cs], rax
    mov ax, ss
    mov [seen_ss], rax
    bt rcx, 39 /* the user's alias? */
    jnc 1f
    sysretq
1:  mov rcx, [resume_ip]
    mov qword ptr [resume_ip], 0
    jmp rcx

sysenter_sysexit:
    BEGIN "sysenter and sysexit"
    WRITE_MSR 0x174, 0
    USER_FAULT "sysenter with a null cs", GP, 0, ANY, sysenter
    FAULT "sysexit with a null cs", GP, 0, ANY, .byte 0x0f, 0x35
    WRITE_MSR 0x174, KCODE
    WRITE_MSR 0x175, "offset int_stack_top"
    WRITE_MSR 0x176, "offset on_sysenter"
    USER_FAULT "sysexit at CPL 3", GP, 0, ANY, .byte 0x0f, 0x35
    TRY 1f
    ENTER_USER 2f
2:  mov rcx, rsp
    lea rdx, [rip + 3f]
    sysenter
    ud2
3:  int USER_EXIT
1:  CAUGHT "there and back by 64-bit sysexit", USER_EXIT, ANY, ANY, ANY
    CHECK "cs", [seen_cs], KCODE
    CHECK "ss", [seen_ss], KDATA
    CHECK "rsp", [seen_rsp], "offset int_stack_top"
    mov rax, [seen_flags]
    and eax, FLAG_IF
    CHECK "IF", rax, 0
    CHECK "cs after sysexit", [last_cs], UCODE|3
    CHECK "ss after sysexit", [last_ss], UDATA_COPY|3
    mov dword ptr [LOW_USER], 0x80cd9090
    TRY 1f
    mov rdx, 0xffffffff00000000 + LOW_USER
    mov ecx, LOW_USER + 4096
    .byte 0x0f, 0x35
1:  CAUGHT "32-bit sysexit", USER_EXIT, ANY, LOW_USER+4, ANY
    CHECK "cs after 32-bit sysexit", [last_cs], UCODE32|3
    CHECK "ss after 32-bit sysexit", [last_ss], UDATA|3
    mov rdx, 0x800000000000
    mov rcx, LOW_USER
    FAULT "sysexit: rdx not canonical", GP, 0, ANY, .byte 0x48, 0x0f, 0x35
    mov rdx, LOW_USER
    mov rcx, 0x800000000000
    FAULT "sysexit: rcx not canonical", GP, 0, ANY, .byte 0x48, 0x0f, 0x35
    mov ecx, 0x176
    mov edx, 0x8000
    xor eax, eax
    FAULT "SYSENTER_EIP must be canonical", GP, 0, ANY, wrmsr
    mov ecx, LSTAR
    FAULT "LSTAR must be canonical", GP, 0, ANY, wrmsr
    mov ecx, GS_BASE
    FAULT "GS_BASE must be canonical", GP, 0, ANY, wrmsr
    ret

on_sysenter:
    mov [seen_rsp], rsp
    pushfq
    pop qword ptr [seen_flags]
    xor eax, eax
    mov ax, cs
    mov [seen_cs], rax
    mov ax, ss
    mov [seen_ss], rax
    .byte 0x48, 0x0f, 0x35 /* sysexitq */

    .macro FRAME ss, rsp, flags, cs, rip
    mov rax, \ss
    push rax
    mov rax, \rsp
    push rax
    push \flags
    mov rax, \cs
    push rax
    mov rax, \rip
    push rax
    .endm
    .macro IRET_FAULT what, err
    FAULT "\what", GP, \err, ANY, iretq
    add rsp, 40
    .endm

iret_forms:
    BEGIN "iretq"
    mov rbp, rsp
    FRAME 0, rbp, 2, KCODE, "offset 1f"
    NOFAULT "a null ss at CPL 0", iretq
1:  mov eax, ss
    CHECK "ss is null", rax, 0
    mov eax, KDATA
    mov ss, eax
    mov rsp, rbp
    FRAME KDATA, rbp, 2, 0, "offset 1f"
    IRET_FAULT "null cs", 0
    FRAME KDATA, rbp, 2, KDATA, "offset 1f"
    IRET_FAULT "data cs", KDATA
    FRAME KDATA, rbp, 2, 0x1f8, "offset 1f"
    IRET_FAULT "empty cs", 0x1f8
    FRAME KDATA, rbp, 2, KCODE, 0x800000000000
    IRET_FAULT "rip not canonical", 0
    FRAME 3, rbp, 2, UCODE|3, "offset 1f"
    IRET_FAULT "null ss at CPL 3", 0
    FRAME KDATA, rbp, 2, UCODE|3, "offset 1f"
    IRET_FAULT "ss of another privilege", KDATA
    FRAME UCODE|3, rbp, 2, UCODE|3, "offset 1f"
    IRET_FAULT "code ss", UCODE
    FRAME UDATA|3, rbp, 2, UCODE|2, "offset 1f"
    IRET_FAULT "RPL is not DPL", UCODE
    FRAME KDATA, rbp, 2, KCODE, "offset 1f"
    pushfq
    or dword ptr [rsp], FLAG_NT
    popfq
    IRET_FAULT "NT", 0
    pushfq
    and dword ptr [rsp], ~FLAG_NT
    popfq
    mov rax, KDATA
    mov ds, eax
    mov es, eax
    mov eax, UDATA
    mov fs, eax
    TRY 1f
    ENTER_USER 2f
2:  mov eax, ds
    mov ebx, fs
    int USER_EXIT
1:  CAUGHT "to CPL 3", USER_EXIT, ANY, ANY, ANY
    CHECK "ds of more privilege becomes null", rax, 0
    CHECK "fs of CPL 3 stays", rbx, UDATA
    mov dword ptr [LOW_USER], 0x80cd4090 /* nop; inc eax (REX in 64-bit code); int */
    TRY 1f
    FRAME UDATA|3, LOW_USER+4096, 2, UCODE32|3, LOW_USER
    xor eax, eax
    iretq
1:  CAUGHT "to compatibility mode", USER_EXIT, ANY, LOW_USER+4, ANY
    CHECK "32-bit code ran", rax, 1
    mov rbp, rsp
    TRY 1f
    FRAME KDATA, rbp, 2, KCODE32, "offset 2f"
    iretq
    .code32
2:  mov eax, 0x12345678
    .byte 0x40 /* inc eax */
    ljmp KCODE, offset 3f
    .code64
3:  int USER_EXIT
1:  CAUGHT "to compatibility mode at CPL 0", USER_EXIT, ANY, ANY, ANY
    CHECK "32-bit code ran at CPL 0", rax, 0x12345679
    mov rbp, rsp
    push KDATA
    push rbp
    push 2
    push KCODE
    push offset 1f
    iretq
1:  CHECK "rsp at the same level", rsp, rbp
    mov rbp, rsp
    sub rsp, 20
    mov dword ptr [rsp], offset 1f
    mov dword ptr [rsp + 4], KCODE
    mov dword ptr [rsp + 8], 2
    mov dword ptr [rsp + 12], ebp
    mov dword ptr [rsp + 16], KDATA
    iretd
1:  CHECK "iretd pops five words of 4", rsp, rbp
    ret

/* The stack is used on both sides of each: translators cache what they know about it. */
alignment_flag:
    BEGIN "stac and clac"
    NEED_CPUID "SMAP", 7, 0, ebx, 20, 9f
    mov rbx, 0x1122334455667788
    push rbx
    stac
    pushfq
    pop rax
    not qword ptr [rsp]
    clac
    pushfq
    pop rcx
    pop rdx
    not rdx
    push FLAG_AC | 2
    popfq
    push rbx
    stac
    pop rsi
    clac
    push rbx
    clac
    pop rdi
    and eax, FLAG_AC
    and ecx, FLAG_AC
    CHECK "stac sets AC", rax, FLAG_AC
    CHECK "clac clears AC", rcx, 0
    CHECK "the stack is the same", rdx, rbx
    CHECK "after popfq and stac", rsi, rbx
    CHECK "after clac twice", rdi, rbx
9:  ret

user_flags:
    BEGIN "flags and bases at CPL 3"
    TRY 1f
    ENTER_USER 2f
2:  push FLAG_IF | FLAG_IOPL | FLAG_CF | 2
    popfq
    int USER_EXIT
1:  CAUGHT "popfq", USER_EXIT, ANY, ANY, ANY
    CHECK "IF and IOPL stay", [last_flags], FLAG_CF|2
    pushfq
    or dword ptr [rsp], FLAG_IOPL
    popfq
    TRY 1f
    ENTER_USER 2f
2:  sti
    nop
    cli
    push 2
    popfq
    int USER_EXIT
1:  CAUGHT "cli and sti with IOPL 3", USER_EXIT, ANY, ANY, ANY
    mov rax, [last_flags]
    and eax, FLAG_IOPL
    CHECK "IOPL needs CPL 0", rax, FLAG_IOPL
    pushfq
    and dword ptr [rsp], ~FLAG_IOPL
    popfq
    WRITE_MSR GS_BASE, 0x1000, 0x11
    WRITE_MSR KERNEL_GS_BASE, 0x2000, 0x22
    swapgs
    mov ecx, GS_BASE
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov rbx, 0x2200002000
    CHECK "swapgs", rax, rbx
    mov ecx, KERNEL_GS_BASE
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov rbx, 0x1100001000
    CHECK "swapgs, the other", rax, rbx
    xor eax, eax
    mov gs, eax
    mov ecx, GS_BASE
    rdmsr
    CHECK "a null selector clears the base (Intel)", rax, 0
    NEED_CPUID "FSGSBASE", 7, 0, ebx, 0, 9f
    FAULT "rdfsbase without CR4.FSGSBASE", UD, NOERR, ANY, rdfsbase rax
    SET_CR4 CR4_FSGSBASE
    mov rax, 0x7654321076543210
    FAULT "wrfsbase: not canonical", GP, 0, ANY, wrfsbase rax
    mov rax, 0x7ffff5432100
    wrfsbase rax
    rdfsbase rbx
    CHECK "rdfsbase", rbx, rax
    mov ecx, 0xc0000100
    rdmsr
    shl rdx, 32
    or rax, rdx
    CHECK "FS_BASE", rax, rbx
    wrgsbase eax
    rdgsbase rbx
    mov eax, eax
    CHECK "32-bit wrgsbase", rbx, rax
9:  ret

    .data
    .balign 8
seen_rcx: .quad 0
seen_r11: .quad 0
seen_rsp: .quad 0
seen_flags: .quad 0
seen_cs: .quad 0
seen_ss: .quad 0
