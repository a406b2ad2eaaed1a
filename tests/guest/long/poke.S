/* SPDX-License-Identifier: Apache-2.0 */
/* Code that one CPU changes while the other runs it: an aligned immediate is seen old or new, never
 * torn; the int3 protocol (breakpoint, tail, first byte, each with an IPI that serializes) lets no
 * wrong instruction run. Intel SDM (June 2025) Vol. 3A §9.1.3, §9.3.
 *
 * qemu: -smp 2
 * doppel: --cpus 2
 */
#include "guest.h"

#define SYNC 0x52
#define CHANGES 300

    .section .pages, "aw", @nobits
    .balign 4096
code: .skip 4096
    .text
    .globl main
main:
    BEGIN "an immediate"
    mov byte ptr [code + 0x17], 0xb8 /* mov eax, imm32 with the immediate at 18h */
    mov dword ptr [code + 0x18], 0
    mov byte ptr [code + 0x1c], 0xc3
    call start_second_cpu
    ORDER watch_immediate
    mov ecx, 400000000
0:  pause
    cmp qword ptr [calls], 10
    jae 1f
    dec ecx
    jnz 0b
1:  mov ebx, CHANGES
1:  mov eax, ebx
    and eax, 0x7f
    imul eax, eax, 0x01010101
    mov [code + 0x18], eax
    mov ecx, 300
2:  pause
    loop 2b
    dec ebx
    jnz 1b
    mov dword ptr [code + 0x18], 0xffffffff
    call wait_ap
    CHECK "all bytes of one value", [torn], 0
    mov eax, [seen_last]
    mov ebx, 0xffffffff
    CHECK "the last one comes", rax, rbx
    mov rax, [calls]
    cmp rax, 10
    setae al
    movzx eax, al
    CHECK "it ran", rax, 1

    BEGIN "the int3 protocol"
    HOOK BP_, on_breakpoint
    HOOK SYNC, on_sync
    mov qword ptr [calls], 0
    mov byte ptr [code + 0x20], 0xb8 /* mov eax, 1 (5 bytes); ret */
    mov dword ptr [code + 0x21], 1
    mov byte ptr [code + 0x25], 0xc3
    ORDER watch_poke
    mov r12d, CHANGES
    mov r13d, 1
1:  xor r13d, 3 /* 2, 1, 2, … */
    mov byte ptr [code + 0x20], 0xcc
    call sync_other
    cmp r13d, 2
    je 2f
    mov dword ptr [code + 0x21], 1 /* mov eax, 1 */
    mov bl, 0xb8
    jmp 3f
2:  mov dword ptr [code + 0x21], 2
    mov bl, 0x3d /* cmp eax, 2: leaves eax as the caller set it */
3:  call sync_other
    mov [code + 0x20], bl
    call sync_other
    mov ecx, 200
4:  pause
    loop 4b
    dec r12d
    jnz 1b
    mov dword ptr [stop], 1
    call wait_ap
    CHECK "wrong results", [torn], 0
    mov rax, [calls]
    cmp rax, 10
    setae al
    movzx eax, al
    CHECK "it ran", rax, 1
    CHECK "every sync was answered", [syncs], 3*CHANGES

    BEGIN "stores of data beside the code"
    mov dword ptr [stop], 0
    ORDER watch_beside
    mov ecx, 200000
1:  mov [code + 0x80], rcx /* the page the other one runs in */
    lock inc qword ptr [code + 0x88]
    loop 1b
    mov dword ptr [stop], 1
    call wait_ap
    CHECK "wrong results", [torn], 0
    CHECK "stores", [code+0x88], 200000
    jmp finish

sync_other:
    mov rax, [syncs]
    inc rax
    mov edx, [ap_id]
    shl edx, 24
    mov [rbp + 0x310], edx
    mov dword ptr [rbp + 0x300], SYNC
    mov ecx, 400000000
1:  pause
    cmp [syncs], rax
    jae 2f
    dec ecx
    jnz 1b
2:  ret

on_sync:
    push rbx
    push rdx
    xor eax, eax
    cpuid
    pop rdx
    pop rbx
    inc qword ptr [syncs]
    mov dword ptr [rbp + 0xb0], 0
    ret

on_breakpoint: /* as if the instruction under it had set eax to 3 */
    mov dword ptr [rdi + F_RAX], 3
    add qword ptr [rdi + F_RIP], 4
    ret

watch_immediate:
    mov eax, offset code + 0x17
    call rax
    inc qword ptr [calls]
    mov [seen_last], eax
    mov edx, eax
    rol edx, 8
    cmp edx, eax
    je 1f
    inc qword ptr [torn]
1:  cmp eax, -1
    jne watch_immediate
    ret

watch_poke: /* 1: mov; 2: cmp with eax = 2; 3: breakpoint */
    sti
1:  mov eax, 2
    mov edx, offset code + 0x20
    call rdx
    inc qword ptr [calls]
    dec eax
    cmp eax, 3
    jb 2f
    inc qword ptr [torn]
2:  cmp dword ptr [stop], 0
    je 1b
    cli
    ret

watch_beside:
    mov dword ptr [code + 0x40], 0xc3c8ff48 /* dec rax; ret */
1:  mov eax, 7
    mov edx, offset code + 0x40
    call rdx
    cmp rax, 6
    je 2f
    inc qword ptr [torn]
2:  cmp dword ptr [stop], 0
    je 1b
    ret

    .bss
    .balign 8
torn: .skip 8
seen_last: .skip 8
calls: .skip 8
syncs: .skip 8
stop: .skip 8
