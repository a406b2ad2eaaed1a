/* SPDX-License-Identifier: Apache-2.0 */
/* Four CPUs at once: contended locked instructions; each changes its own code, and then the next
 * one's, all of it in one page; one changes an immediate that three execute.
 * Intel SDM (June 2025) Vol. 3A §9.1.3 (self- and cross-modifying code), §10.4 (MP initialization).
 *
 * qemu: -smp 4
 * doppel: --cpus 4
 */
#include "guest.h"

#define CPUS 4
#define OTHERS 3
#define ROUNDS 3000
#define CHANGES 300
#define LAPS 50

    .section .pages, "aw", @nobits
    .balign 4096
code: .skip 4096 /* a function of 6 bytes for each CPU, 64 bytes apart; watched: 117h */
    .text
    .globl main
main:
    BEGIN "four CPUs"
    call start_second_cpu
    WAIT_FOR ap_alive, OTHERS
    mov eax, [ap_alive]
    CHECK "alive", rax, OTHERS
    cmp eax, OTHERS
    jne finish
    xor r14d, r14d /* this CPU's number: the others' are 1 … 3 */
    ORDER report_id
    call report_id
    call wait_ap
    CHECK "APIC IDs", [ids], 0xf

    BEGIN "locked instructions of four"
    ORDER count
    call count
    call wait_ap
    CHECK "lock inc", [counter], CPUS*ROUNDS
    CHECK "lock xadd", [counter+8], 3*CPUS*ROUNDS
    CHECK "lock cmpxchg16b", [counter+16], CPUS*ROUNDS
    CHECK "xchg as a spin lock", [counter+32], CPUS*ROUNDS

    BEGIN "each its own code"
    ORDER change_own
    call change_own
    call wait_ap
    CHECK "stale", [stale], 0
    CHECK "changes", [changes], CPUS*CHANGES

    BEGIN "each the next one's code"
    mov qword ptr [changes], 0
    ORDER pass_on
    call pass_on
    call wait_ap
    CHECK "stale", [stale], 0
    CHECK "changes", [changes], CPUS*LAPS

    BEGIN "an immediate that three execute"
    mov byte ptr [code + 0x117], 0xb8 /* mov eax, imm32 with the immediate at 118h */
    mov dword ptr [code + 0x118], 0
    mov byte ptr [code + 0x11c], 0xc3
    ORDER watch
    mov ebx, CHANGES
1:  mov eax, ebx
    and eax, 0x7f
    imul eax, eax, 0x01010101
    mov [code + 0x118], eax
    mov ecx, 300
2:  pause
    loop 2b
    dec ebx
    jnz 1b
    mov dword ptr [code + 0x118], 0xffffffff
    call wait_ap
    CHECK "all bytes of one value", [stale], 0
    jmp finish

report_id:
    mov ecx, [rbp + 0x20]
    shr ecx, 24
    lock bts [ids], ecx
    ret

count:
    mov r9d, ROUNDS
1:  lock inc qword ptr [counter]
    mov eax, 3
    lock xadd [counter + 8], rax
    mov rax, [counter + 16]
    mov rdx, [counter + 24]
2:  lea rbx, [rax + 1]
    mov rcx, rdx
    lock cmpxchg16b [counter + 16]
    jnz 2b
3:  mov eax, 1
    xchg eax, [lock_word]
    test eax, eax
    jz 4f
    pause
    jmp 3b
4:  inc qword ptr [counter + 32]
    mov dword ptr [lock_word], 0
    dec r9d
    jnz 1b
    ret

change_own:
    mov r8d, r14d
    shl r8d, 6
    add r8d, offset code
    mov byte ptr [r8], 0xb8 /* mov eax, imm32; ret */
    mov byte ptr [r8 + 5], 0xc3
    mov r9d, CHANGES
1:  mov [r8 + 1], r9d
    call r8
    cmp eax, r9d
    je 2f
    lock inc qword ptr [stale]
2:  lock inc qword ptr [changes]
    dec r9d
    jnz 1b
    ret

    /* r8, r12: this CPU's function and mailbox; r10, r11: the next one's; r9d: the round. A mailbox
       holds the round that the function was changed for, 0 once that has been seen. */
pass_on:
    mov r12d, r14d
    shl r12d, 6
    lea r8d, [r12 + code]
    lea r10d, [r14 + 1]
    and r10d, OTHERS
    shl r10d, 6
    lea r11d, [r10 + mail]
    add r12d, offset mail
    add r10d, offset code
    mov r9d, LAPS
1:  pause
    cmp dword ptr [r11], 0
    jne 1b
    mov [r10 + 1], r9d
    mov [r11], r9d
2:  pause
    cmp [r12], r9d
    jne 2b
    xor eax, eax
    cpuid /* serializes */
    call r8
    cmp eax, r9d
    je 3f
    lock inc qword ptr [stale]
3:  mov dword ptr [r12], 0
    lock inc qword ptr [changes]
    dec r9d
    jnz 1b
    ret

watch:
    mov eax, offset code + 0x117
    call rax
    mov edx, eax
    rol edx, 8
    cmp edx, eax
    je 1f
    lock inc qword ptr [stale]
1:  cmp eax, -1
    jne watch
    ret

    .bss
    .balign 64
mail: .skip 64 * CPUS
counter: .skip 64
lock_word: .skip 64
ids: .skip 8
stale: .skip 8
changes: .skip 8
