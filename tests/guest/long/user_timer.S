/* SPDX-License-Identifier: Apache-2.0 */
/* Timer interrupts while CPL 3 runs and while the CPU halts: the local APIC's timer in its three
 * modes, the 8254 by the I/O APIC.
 * Intel SDM (June 2025) Vol. 3A §12.5.4 (APIC timer); 82093AA data sheet.
 *
 * kvm: kvm-ring3
 */
#include "guest.h"

#define TICK 0x51
#define PIT_TICK 0x61
#define TSC_DEADLINE 0x6e0
#define PERIODIC 0x20000
#define BY_TSC 0x40000
#define IOAPIC 0xfec00000
#define MILLISECOND 1000000 /* counts of the APIC's timer */

    /* CPL 3 spins until there were `count` ticks, or for a long time; rbx counts its rounds. */
    .macro SPIN_USER count
    sti
    TRY .Lback\@
    ENTER_USER .Lspin\@
.Lspin\@:
    mov rdx, USER_BASE
    lea rdx, [rdx + ticks]
    xor ebx, ebx
    mov rcx, 20000000000
.Lround\@:
    inc rbx
    cmp qword ptr [rdx], \count
    jae .Lenough\@
    dec rcx
    jnz .Lround\@
.Lenough\@:
    ud2 /* leaves CPL 3 */
.Lback\@:
    cli
    CAUGHT "back from CPL 3", UD, NOERR, ANY, ANY
    .endm
    /* A tick that was under way when its source fell silent must not count as the next one's. It
     * comes in CPL 3 at the latest: a KVM that emulates ring 0 may see it only on the way there. */
    .macro LET_LATE_TICK_COME
    sti
    TRY .Lback\@
    ENTER_USER .Lwait\@
.Lwait\@:
    mov ecx, 100000
.Lround\@:
    dec ecx
    jnz .Lround\@
    ud2 /* leaves CPL 3 */
.Lback\@:
    cli
    CAUGHT "back from CPL 3", UD, NOERR, ANY, ANY
    mov qword ptr [ticks], 0
    .endm
    .macro CHECK_LEAST what, got, least
    mov rax, \got
    cmp rax, \least
    setae al
    movzx eax, al
    CHECK "\what", rax, 1
    .endm

    .text
    .globl main
main:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    HOOK TICK, on_tick
    HOOK PIT_TICK, on_tick
    mov dword ptr [rbp + 0x3e0], 0xb /* divide by 1 */

    BEGIN "periodic"
    mov dword ptr [rbp + 0x320], TICK|PERIODIC
    mov dword ptr [rbp + 0x380], MILLISECOND
    SPIN_USER 20
    mov dword ptr [rbp + 0x380], 0
    CHECK_LEAST "ticks", [ticks], 20
    CHECK_LEAST "CPL 3 ran between them", rbx, 20
    CHECK_LEAST "they interrupted CPL 3", [from_user], 1

    BEGIN "one-shot"
    LET_LATE_TICK_COME
    mov dword ptr [rbp + 0x320], TICK
    mov dword ptr [rbp + 0x380], MILLISECOND
    SPIN_USER 1
    CHECK "it came", [ticks], 1
    mov eax, [rbp + 0x390]
    CHECK "and stands at 0", rax, 0

    BEGIN "TSC deadline"
    NEED_CPUID "TSC deadline", 1, 0, ecx, 24, no_deadline
    LET_LATE_TICK_COME
    mov dword ptr [rbp + 0x320], TICK|BY_TSC
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, 5000000
    mov rsi, rax
    mov rdx, rax
    shr rdx, 32
    mov ecx, TSC_DEADLINE
    wrmsr
    SPIN_USER 1
    CHECK "it came", [ticks], 1
    rdtsc
    shl rdx, 32
    or rax, rdx
    CHECK_LEAST "not before its time", rax, rsi
    mov ecx, TSC_DEADLINE
    rdmsr
    or eax, edx
    CHECK "the MSR reads 0", rax, 0
no_deadline:

    BEGIN "8254 by the I/O APIC"
    LET_LATE_TICK_COME
    mov edx, IOAPIC
    mov dword ptr [rdx], 0x15 /* input 2 */
    mov dword ptr [rdx + 16], 0
    mov dword ptr [rdx], 0x14
    mov dword ptr [rdx + 16], PIT_TICK
    OUTB 0x43, 0x34 /* channel 0, rate generator */
    OUTB 0x40, 0xa4 /* 4772 counts: 4 ms, longer than on_tick takes in an emulator on a busy host */
    OUTB 0x40, 0x12
    SPIN_USER 5
    CHECK_LEAST "ticks", [ticks], 5
    mov edx, IOAPIC
    mov dword ptr [rdx], 0x14
    mov dword ptr [rdx + 16], 0x10000

    BEGIN "HLT"
    LET_LATE_TICK_COME
    mov dword ptr [rbp + 0x320], TICK
    mov dword ptr [rbp + 0x380], 5 * MILLISECOND
    sti
1:  hlt
    cmp qword ptr [ticks], 0
    je 1b
    cli
    CHECK "woken by the timer", [ticks], 1
    ret

on_tick:
    inc qword ptr [ticks]
    mov rax, [rdi + F_CS]
    and eax, 3
    cmp eax, 3
    jne 1f
    inc qword ptr [from_user]
1:  mov edx, APIC
    mov dword ptr [rdx + 0xb0], 0
    ret

    .bss
    .balign 8
ticks: .skip 8
from_user: .skip 8
