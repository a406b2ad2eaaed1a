/* SPDX-License-Identifier: Apache-2.0 */
/* The local APIC's timer in its three modes, and the x2APIC interface.
 * Intel SDM (June 2025) Vol. 3A §12.5.4 (APIC timer), §12.12 (x2APIC).
 *
 */
#include "guest.h"

#define TICK 0x51
#define IA32_APIC_BASE 0x1b
#define TSC_DEADLINE 0x6e0
#define MASKED 0x10000
#define PERIODIC 0x20000
#define BY_TSC 0x40000

    .macro WAIT_TICKS count
    mov ecx, 200000000
.Lwait\@:
    pause
    cmp qword ptr [ticks], \count
    jae .Ldone\@
    dec ecx
    jnz .Lwait\@
.Ldone\@:
    .endm
    .macro READ_MSR number /* into rax */
    mov ecx, \number
    rdmsr
    shl rdx, 32
    or rax, rdx
    .endm

    .text
    .globl main
main:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    HOOK TICK, on_tick
    mov dword ptr [rbp + 0x3e0], 0xb /* divide by 1 */

    BEGIN "one-shot"
    mov dword ptr [rbp + 0x320], TICK
    mov dword ptr [rbp + 0x380], 1000000
    mov eax, [rbp + 0x390]
    cmp eax, 1000000
    setbe al
    movzx eax, al
    CHECK "counts down", rax, 1
    sti
    WAIT_TICKS 1
    mov ecx, 2000000
1:  pause
    loop 1b
    cli
    CHECK "once", [ticks], 1
    mov eax, [rbp + 0x390]
    CHECK "stands at 0", rax, 0
    mov qword ptr [ticks], 0
    mov dword ptr [rbp + 0x320], TICK|MASKED
    mov dword ptr [rbp + 0x380], 1000
    sti
    mov ecx, 1000000
1:  pause
    loop 1b
    cli
    CHECK "masked", [ticks], 0
    mov dword ptr [rbp + 0x320], TICK
    mov dword ptr [rbp + 0x380], 1000000000
    mov dword ptr [rbp + 0x380], 0
    mov eax, [rbp + 0x390]
    CHECK "an initial count of 0 stops it", rax, 0

    BEGIN "periodic"
    mov qword ptr [ticks], 0
    mov dword ptr [rbp + 0x320], TICK|PERIODIC
    mov dword ptr [rbp + 0x380], 1000000
    sti
    WAIT_TICKS 5
    cli
    mov rax, [ticks]
    cmp rax, 5
    setae al
    movzx eax, al
    CHECK "again and again", rax, 1
    mov dword ptr [rbp + 0x320], TICK|PERIODIC|MASKED
    mov dword ptr [rbp + 0x380], 0
    sti
    nop
    nop
    cli
    mov qword ptr [ticks], 0
    mov dword ptr [rbp + 0x320], TICK|PERIODIC
    mov dword ptr [rbp + 0x380], 1000000
    sti
    hlt
    hlt
    hlt
    cli
    mov dword ptr [rbp + 0x380], 0
    mov dword ptr [rbp + 0x320], MASKED
    mov rax, [ticks]
    cmp rax, 3
    setae al
    movzx eax, al
    CHECK "wakes from hlt", rax, 1
    sti /* one that came meanwhile */
    nop
    nop
    cli

    BEGIN "TSC deadline"
    NEED_CPUID "TSC deadline", 1, 0, ecx, 24, no_deadline
    mov qword ptr [ticks], 0
    mov dword ptr [rbp + 0x320], TICK|BY_TSC
    mfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, 3000000
    mov rbx, rax
    mov rdx, rax
    shr rdx, 32
    mov ecx, TSC_DEADLINE
    wrmsr
    READ_MSR TSC_DEADLINE
    CHECK "reads back", rax, rbx
    sti
    WAIT_TICKS 1
    cli
    rdtsc
    shl rdx, 32
    or rax, rdx
    cmp rax, rbx
    setae al
    movzx eax, al
    CHECK "not early", rax, 1
    CHECK "once", [ticks], 1
    READ_MSR TSC_DEADLINE
    CHECK "0 when it has passed", rax, 0
    mov qword ptr [ticks], 0
    WRITE_MSR TSC_DEADLINE, 1
    sti
    nop
    nop
    WAIT_TICKS 1
    cli
    CHECK "a deadline in the past: at once", [ticks], 1
    mov qword ptr [ticks], 0
    mov ecx, TSC_DEADLINE
    mov eax, 0xffffffff
    mov edx, 0x7fff
    wrmsr
    WRITE_MSR TSC_DEADLINE, 0
    sti
    nop
    nop
    cli
    CHECK "disarmed", [ticks], 0
    mov dword ptr [rbp + 0x380], 1000
    mov eax, [rbp + 0x390]
    CHECK "the initial count does nothing", rax, 0
    mov dword ptr [rbp + 0x320], TICK
    WRITE_MSR TSC_DEADLINE, 1
    READ_MSR TSC_DEADLINE
    CHECK "the MSR does nothing in another mode", rax, 0
no_deadline:
    mov dword ptr [rbp + 0x320], MASKED

    BEGIN "x2APIC"
    NEED_CPUID "x2APIC", 1, 0, ecx, 21, no_x2apic
    mov ecx, 0x802
    FAULT "its MSRs in xAPIC mode", GP, 0, ANY, rdmsr
    mov ebx, [rbp + 0x20]
    shr ebx, 24
    mov ecx, IA32_APIC_BASE
    rdmsr
    or eax, 0xc00
    wrmsr
    READ_MSR 0x802
    CHECK "ID", rax, rbx
    READ_MSR 0x803
    and eax, 0xff
    cmp eax, 0x10
    setae al
    movzx eax, al
    CHECK "version", rax, 1
    READ_MSR 0x80f
    and eax, 0x1ff
    CHECK "SVR", rax, 0x1ff
    mov qword ptr [ticks], 0
    HOOK TICK, on_tick_x2
    mov ecx, 0x83f
    mov eax, TICK
    xor edx, edx
    NOFAULT "self-IPI register", wrmsr
    READ_MSR 0x822
    CHECK "IRR", rax, 0x20000
    sti
    nop
    nop
    cli
    CHECK "taken", [ticks], 1
    mov ecx, 0x830
    mov eax, TICK
    mov edx, ebx
    NOFAULT "ICR with 32-bit destination", wrmsr
    sti
    nop
    nop
    cli
    CHECK "to its own ID", [ticks], 2
    WRITE_MSR 0x83e, 0xb
    WRITE_MSR 0x832, TICK
    WRITE_MSR 0x838, 100000
    sti
    hlt
    cli
    CHECK "timer", [ticks], 3
    mov ecx, 0x802
    xor eax, eax
    xor edx, edx
    FAULT "writing the ID", GP, 0, ANY, wrmsr
    mov ecx, 0x83f
    FAULT "reading the self-IPI register", GP, 0, ANY, rdmsr
    mov ecx, 0x80b
    FAULT "reading EOI", GP, 0, ANY, rdmsr
    mov eax, 1
    FAULT "EOI other than 0", GP, 0, ANY, wrmsr
    mov ecx, 0x80e
    FAULT "DFR does not exist", GP, 0, ANY, rdmsr
    mov ecx, 0x831
    FAULT "nor does the ICR's upper half", GP, 0, ANY, rdmsr
    mov ecx, 0x808
    mov eax, 0x100
    xor edx, edx
    FAULT "TPR: reserved bits", GP, 0, ANY, wrmsr
    mov ecx, IA32_APIC_BASE
    rdmsr
    and eax, ~0x800
    FAULT "x2APIC to an illegal mode", GP, 0, ANY, wrmsr
    or eax, 0x800
    and eax, ~0x400
    FAULT "x2APIC to xAPIC", GP, 0, ANY, wrmsr
no_x2apic:
    jmp finish

on_tick:
    inc qword ptr [ticks]
    mov dword ptr [rbp + 0xb0], 0
    ret

on_tick_x2:
    inc qword ptr [ticks]
    push rcx
    push rdx
    WRITE_MSR 0x80b, 0
    pop rdx
    pop rcx
    ret

    .data
    .balign 8
ticks: .quad 0
