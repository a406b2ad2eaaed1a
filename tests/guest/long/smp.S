/* SPDX-License-Identifier: Apache-2.0 */
/* A second CPU: INIT, SIPI, real mode to long mode, IPIs both ways, locked instructions and plain
 * stores seen in order, code changed by the other CPU, TLB shootdown by IPI, INIT again.
 * Intel SDM (June 2025) Vol. 3A §10.4 (MP initialization), §12.6 (IPIs), §9.1.3, §9.2.
 *
 * qemu: -smp 2
 * doppel: --cpus 2
 */
#include "guest.h"

#define ROUNDS 20000
#define SPLIT_ROUNDS 3000 /* each takes a while: on real ones, too */
#define IPI 0x51

    .text
    .globl main
main:
    BEGIN "INIT and SIPI"
    mov eax, 1
    cpuid
    bt edx, 9
    setc al
    movzx eax, al
    CHECK "CPUID: APIC", rax, 1
    call start_second_cpu
    movzx rax, word ptr [LOW_CODE + 0xff0]
    CHECK "cs is the vector's page", rax, LOW_CODE/16
    mov eax, [ap_alive]
    CHECK "alive", rax, 1
    cmp eax, 1
    jne finish
    ORDER nothing
    call wait_ap
    mov eax, [ap_id]
    mov ebx, [rbp + 0x20]
    shr ebx, 24
    xor eax, ebx
    and eax, 1
    CHECK "another APIC ID", rax, 1
    mov dword ptr [rbp + 0x300], 0xc4600 + LOW_CODE / 4096
    ORDER nothing
    call wait_ap
    CHECK "a SIPI to a running CPU does nothing", [ap_alive], 1

    BEGIN "locked instructions"
    ORDER count_locked
    call count_locked
    call wait_ap
    CHECK "lock inc", [counter], 2*ROUNDS
    CHECK "lock xadd", [counter+8], 6*ROUNDS
    CHECK "lock cmpxchg", [counter+16], 2*ROUNDS
    CHECK "lock cmpxchg16b", [counter+32], 2*ROUNDS
    CHECK "lock add across a cache line", [split+60], 2*ROUNDS
    CHECK "xchg as a spin lock", [counter+48], 2*ROUNDS

    BEGIN "locked instructions across pages"
    MAP_PAGE 1, "offset scratch + 0x5000", P|W
    MAP_PAGE 2, "offset scratch + 0x3000", P|W
    mov rax, WINDOW + 0x2000 - 4 /* two pages that are not neighbours in memory */
    call count_across
    CHECK "both halves", rdx, SPLIT_ROUNDS
    CHECK "carry", rbx, SPLIT_ROUNDS
    mov eax, offset scratch + 0x8000 - 4 /* neighbours */
    call count_across
    CHECK "neighbours, both halves", rdx, SPLIT_ROUNDS
    CHECK "neighbours, carry", rbx, SPLIT_ROUNDS

    BEGIN "order of stores"
    ORDER store_in_order
    xor ebx, ebx
    xor esi, esi
1:  mov eax, [flag_second]
    mov edx, [flag_first]
    cmp edx, eax
    jge 2f
    inc esi
2:  cmp eax, ROUNDS
    jne 1b
    call wait_ap
    CHECK "never seen the other way round", rsi, 0

    BEGIN "IPIs"
    HOOK IPI, on_ipi
    ORDER sleep_until_ipi
    mov eax, [ap_id]
    shl eax, 24
    mov [rbp + 0x310], eax
    WAIT_FOR sleeping, 1
    mov dword ptr [rbp + 0x300], IPI
    call wait_ap
    CHECK "wakes from hlt", [ipis], 1
    mov qword ptr [ipis], 0
    ORDER send_ipi_back
    mov ecx, 400000000
    sti
1:  pause
    cmp qword ptr [ipis], 100
    je 2f
    dec ecx
    jnz 1b
2:  cli
    call wait_ap
    CHECK "a hundred IPIs, one by one", [ipis], 100

    BEGIN "the other CPU's code"
    mov dword ptr [scratch], 0xb8 /* mov eax, imm32; ret */
    mov byte ptr [scratch + 5], 0xc3
    mov dword ptr [scratch + 1], 1
    ORDER run_scratch
    call wait_ap
    CHECK "first", [ran], 1
    mov dword ptr [scratch + 1], 2
    ORDER run_scratch
    call wait_ap
    CHECK "changed", [ran], 2
    xor esi, esi
    mov edi, 200
1:  mov [scratch + 1], edi
    ORDER run_scratch
    call wait_ap
    cmp [ran], edi
    je 2f
    inc esi
2:  dec edi
    jnz 1b
    CHECK "200 changes: stale", rsi, 0

    BEGIN "TLB shootdown"
    mov dword ptr [scratch + 0x1000], 11
    mov dword ptr [scratch + 0x2000], 22
    MAP_PAGE 1, "offset scratch + 0x1000", P|W
    ORDER read_window
    call wait_ap
    CHECK "before", [ran], 11
    MAP_PAGE 1, "offset scratch + 0x2000", P|W
    ORDER flush_and_read_window
    call wait_ap
    CHECK "after its invlpg", [ran], 22
    and byte ptr [window_pt + 8], ~(A_ | D)
    ORDER write_window
    call wait_ap
    mov rax, [window_pt + 8]
    and eax, A_ | D
    CHECK "A and D set by the other CPU", rax, A_|D

    BEGIN "INIT again"
    mov dword ptr [ap_alive], 0
    mov eax, [ap_id]
    shl eax, 24
    mov [rbp + 0x310], eax
    mov dword ptr [rbp + 0x300], 0x4500
    mov eax, [rbp + 0x300]
    mov ecx, 200000
1:  pause
    loop 1b
    CHECK "waits for SIPI", [ap_alive], 0
    mov eax, [order]
    mov [obeyed], eax
    mov dword ptr [rbp + 0x300], 0x4600 + LOW_CODE / 4096
    WAIT_FOR ap_alive, 1
    ORDER nothing
    call wait_ap
    mov eax, [ap_alive]
    CHECK "alive again", rax, 1
    jmp finish

nothing:
    ret

count_locked:
    mov ecx, ROUNDS
1:  lock inc qword ptr [counter]
    mov eax, 3
    lock xadd [counter + 8], rax
    mov rax, [counter + 16]
2:  lea rdx, [rax + 1]
    lock cmpxchg [counter + 16], rdx
    jnz 2b
    lock inc qword ptr [split + 60]
    push rcx
    mov rax, [counter + 32]
    mov rdx, [counter + 40]
3:  lea rbx, [rax + 1]
    mov rcx, rdx
    lock cmpxchg16b [counter + 32]
    jnz 3b
    pop rcx
4:  mov eax, 1
    xchg eax, [lock_word]
    test eax, eax
    jz 5f
    pause
    jmp 4b
5:  inc qword ptr [counter + 48]
    mov dword ptr [lock_word], 0
    dec ecx
    jnz 1b
    ret

    /* This CPU adds 1 to the quadword at rax, two pages, while the other one adds 1 to its high
       half: ebx = high half, edx = low half. */
count_across:
    mov [split_at], rax
    mov qword ptr [rax], 0
    ORDER count_high_half
    mov rax, [split_at]
    mov ecx, SPLIT_ROUNDS
1:  lock inc qword ptr [rax]
    loop 1b
    mov dword ptr [stop], 1
    call wait_ap
    mov dword ptr [stop], 0
    mov rax, [split_at]
    mov edx, [rax]
    mov ebx, [rax + 4]
    sub ebx, [high_halves]
    add ebx, SPLIT_ROUNDS /* as if it had added so many */
    ret

    /* Until the first CPU has done its part. */
count_high_half:
    mov rax, [split_at]
    xor ecx, ecx
1:  lock inc dword ptr [rax + 4]
    inc ecx
    cmp dword ptr [stop], 0
    je 1b
    mov [high_halves], ecx
    ret

store_in_order:
    mov ecx, 1
1:  mov [flag_first], ecx
    mov [flag_second], ecx
    inc ecx
    cmp ecx, ROUNDS
    jbe 1b
    ret

on_ipi:
    inc qword ptr [ipis]
    mov dword ptr [rbp + 0xb0], 0
    ret

    /* hooks run with this CPU's rbp = APIC, as everything here */
sleep_until_ipi:
    mov dword ptr [sleeping], 1
    sti
    hlt
    cli
    ret

send_ipi_back:
    mov edi, 100
1:  mov rsi, [ipis]
    mov dword ptr [rbp + 0x310], 0
    mov dword ptr [rbp + 0x300], 0xc4000 + IPI /* all but self */
    mov ecx, 400000000
2:  pause
    cmp rsi, [ipis]
    jne 3f
    dec ecx
    jnz 2b
3:  dec edi
    jnz 1b
    ret

run_scratch:
    xor eax, eax
    cpuid /* serializes, as §9.1.3 asks */
    mov eax, offset scratch
    call rax
    mov [ran], rax
    ret

flush_and_read_window:
    mov rax, WINDOW + 0x1000
    invlpg [rax]
read_window:
    mov rax, WINDOW + 0x1000
    mov eax, [rax]
    mov [ran], rax
    ret
write_window:
    mov rax, WINDOW + 0x1000
    invlpg [rax]
    mov [rax + 64], eax
    ret

    .bss
    .balign 64
split: .skip 128
counter: .skip 64
lock_word: .skip 4
flag_first: .skip 4
    .balign 64
flag_second: .skip 4
    .balign 8
split_at: .skip 8
high_halves: .skip 8
stop: .skip 8
sleeping: .skip 8
ipis: .skip 8
ran: .skip 8
