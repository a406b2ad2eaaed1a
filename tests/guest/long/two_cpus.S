/* SPDX-License-Identifier: Apache-2.0 */
/* Two CPUs at work in CPL 3 and 0 at once: INIT and SIPI, locked counting, IPIs there and back, an
 * IPI that wakes from HLT, one that interrupts CPL 3. Only instructions that every engine's ring 0
 * knows; the rest of the subject is in smp.S.
 * Intel SDM (June 2025) Vol. 3A §10.4 (MP initialization), §12.6 (IPIs).
 *
 * qemu: -smp 2
 * doppel: --cpus 2
 * kvm: kvm-ring3
 */
#include "guest.h"

#define ROUNDS 10000
#define USER_ROUNDS 2000000
#define PING 0x51
#define PONG 0x52
#define PINGS 200

    .text
    .globl main
main:
    BEGIN "INIT and SIPI"
    call start_second_cpu
    mov eax, [ap_alive]
    CHECK "alive", rax, 1
    cmp eax, 1
    jne finish
    ORDER nothing
    call wait_ap

    BEGIN "locked counting"
    ORDER count
    call count
    call wait_ap
    CHECK "lock inc", [counter], 2*ROUNDS
    CHECK "lock xadd", [counter + 8], 6*ROUNDS

    BEGIN "CPL 3 here, CPL 0 there"
    mov qword ptr [counter], 0
    ORDER count
    TRY 1f
    ENTER_USER 2f
2:  mov rdx, USER_BASE
    lea rdx, [rdx + counter]
    mov ecx, USER_ROUNDS
3:  lock inc qword ptr [rdx]
    dec ecx
    jnz 3b
    ud2 /* leaves CPL 3 */
1:  CAUGHT "back from CPL 3", UD, NOERR, ANY, ANY
    call wait_ap
    CHECK "lock inc", [counter], ROUNDS+USER_ROUNDS

    BEGIN "IPIs there and back"
    HOOK PING, on_ping
    HOOK PONG, on_pong
    ORDER serve_pings
    WAIT_FOR serving, 1
    mov r12d, PINGS
1:  mov eax, [pongs]
    lea ebx, [rax + 1]
    sti
    mov eax, [ap_id]
    shl eax, 24
    mov [rbp + 0x310], eax
    mov dword ptr [rbp + 0x300], 0x4000 + PING
    mov ecx, 400000000
2:  pause
    cmp [pongs], ebx
    je 3f
    dec ecx
    jnz 2b
3:  cli
    dec r12d
    jnz 1b
    CHECK "pings", [pings], PINGS
    CHECK "pongs", [pongs], PINGS
    call wait_ap

    BEGIN "an IPI wakes from HLT"
    mov dword ptr [pongs], 0
    ORDER send_pong
    sti
1:  hlt
    cmp dword ptr [pongs], 0
    je 1b
    cli
    call wait_ap
    CHECK "once", [pongs], 1

    BEGIN "an IPI interrupts CPL 3"
    mov dword ptr [pongs], 0
    ORDER send_pong
    sti
    TRY 1f
    ENTER_USER 2f
2:  mov rdx, USER_BASE
    lea rdx, [rdx + pongs]
    mov rcx, 20000000000
3:  cmp dword ptr [rdx], 1
    je 4f
    dec rcx
    jnz 3b
4:  ud2 /* leaves CPL 3 */
1:  cli
    CAUGHT "back from CPL 3", UD, NOERR, ANY, ANY
    call wait_ap
    CHECK "it came", [pongs], 1
    ret

nothing:
    ret

count:
    mov ecx, ROUNDS
1:  lock inc qword ptr [counter]
    mov eax, 3
    lock xadd [counter + 8], rax
    dec ecx
    jnz 1b
    ret

    /* The second CPU: halts between pings, as an idle system does. */
serve_pings:
    mov dword ptr [serving], 1
1:  sti
    hlt
    cli
    cmp dword ptr [pings], PINGS
    jb 1b
    ret

send_pong:
    mov dword ptr [rbp + 0x310], 0
    mov dword ptr [rbp + 0x300], 0x4000 + PONG
    ret

on_ping:
    inc dword ptr [pings]
    mov edx, APIC
    mov dword ptr [rdx + 0xb0], 0
    mov dword ptr [rdx + 0x310], 0
    mov dword ptr [rdx + 0x300], 0x4000 + PONG
    ret

on_pong:
    inc dword ptr [pongs]
    mov edx, APIC
    mov dword ptr [rdx + 0xb0], 0
    ret

    .bss
    .balign 64
counter: .skip 16
pings: .skip 8
pongs: .skip 8
serving: .skip 8
