/* SPDX-License-Identifier: Apache-2.0 */
/* When an interrupt is taken: the shadows of STI and MOV SS, POPF, IRET, CR8, HLT, priorities, NMI.
 * The local APIC's self-IPI makes an interrupt pend at a known instruction.
 * Intel SDM (June 2025) Vol. 2B STI; Vol. 3A §7.7.1 (NMI), §7.8.3 (masking by stack switch), §12.8.
 *
 * qemu deviates: task priority: unmasked by the register -- takes it at the end of its block
 * qemu deviates: NMI: -- likewise
 * qemu deviates: spurious and illegal: -- delivers vector 5
 */
#include "guest.h"

#define SELF 0x40000
#define LOW 0x41
#define HIGH 0x61

    .macro SEND vector
    mov dword ptr [rbp + 0x300], SELF | \vector
    mov eax, [rbp + 0x300] /* the write is done */
    .endm
    .macro EXPECT_AT what, label
    cli
    CHECK "\what: taken", [taken], 1
    mov rax, offset \label
    CHECK "\what: rip", [taken_rip], rax
    mov qword ptr [taken], 0
    .endm

    .text
    .globl main
main:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    mov dword ptr [rbp + 0x80], 0
    HOOK LOW, take
    HOOK HIGH, take
    BEGIN "self-IPI"
    SEND LOW
    mov eax, [rbp + 0x220]
    CHECK "IRR", rax, 2
    CHECK "IF 0: not taken", [taken], 0

    BEGIN "after STI"
    sti
    nop
1:  nop
    nop
    EXPECT_AT "one instruction later", 1b
    SEND LOW
    sti
    cli
    nop
    CHECK "sti, cli: no window", [taken], 0
    sti
    sti
1:  nop
    nop
    EXPECT_AT "the second sti has no shadow", 1b
    SEND LOW
    sti
    hlt
1:  nop
    EXPECT_AT "sti, hlt", 1b
    SEND LOW
    sti
    jmp 1f
    nop
1:  nop
    nop
    EXPECT_AT "sti, jmp", 1b
    SEND LOW
    lea rax, [rip + 1f]
    push rax
    sti
    ret
    nop
1:  nop
    nop
    EXPECT_AT "sti, ret", 1b
    SEND LOW
    sti
    mov rax, cr8 /* something that is not plain */
1:  nop
    nop
    EXPECT_AT "sti, mov from cr8", 1b

    BEGIN "after MOV SS"
    mov ebx, ss
    SEND LOW
    sti
    mov ss, ebx
    nop
1:  nop
    nop
    cli
    CHECK "sti, mov ss: taken", [taken], 1
    mov qword ptr [taken], 0
    SEND LOW
    pushfq
    or dword ptr [rsp], FLAG_IF
    popfq
1:  nop
    nop
    EXPECT_AT "popfq has no shadow", 1b

    BEGIN "after IRET"
    SEND LOW
    mov r10, rsp
    push KDATA
    push r10
    push FLAG_IF | 2
    push KCODE
    push offset 1f
    iretq
    nop
1:  nop
    nop
    EXPECT_AT "at its target", 1b
    SEND LOW
    TRY 1f
    mov rax, offset user_stack_top
    mov rbx, USER_BASE
    add rax, rbx
    push UDATA | 3
    push rax
    push FLAG_IF | 2
    push UCODE | 3
    lea rax, [rip + 2f]
    add rax, rbx
    push rax
    iretq
2:  nop
    int USER_EXIT
1:  CAUGHT "to CPL 3", USER_EXIT, ANY, ANY, ANY
    mov rax, offset 2b
    mov rbx, USER_BASE
    add rax, rbx
    CHECK "at CPL 3: rip", [taken_rip], rax
    CHECK "at CPL 3: cs", [taken_cs], UCODE|3
    mov qword ptr [taken], 0

    BEGIN "task priority"
    mov eax, 4
    mov cr8, rax
    mov eax, [rbp + 0x80]
    CHECK "cr8 is the TPR", rax, 0x40
    SEND LOW
    sti
    nop
    nop
    CHECK "class 4 masked", [taken], 0
    mov eax, 3
    mov cr8, rax
1:  nop
    nop
    EXPECT_AT "at once after mov cr8", 1b
    xor eax, eax
    mov cr8, rax
    mov dword ptr [rbp + 0x80], 0x50
    mov rax, cr8
    CHECK "the TPR is cr8", rax, 5
    SEND LOW
    sti
    nop
    nop
    CHECK "masked by the register", [taken], 0
    mov dword ptr [rbp + 0x80], 0
    nop
    nop
    nop
    cli
    CHECK "unmasked by the register", [taken], 1
    mov qword ptr [taken], 0

    BEGIN "priorities"
    HOOK LOW, low_handler
    HOOK HIGH, high_handler
    mov qword ptr [trail], 0
    SEND LOW
    SEND HIGH
    mov eax, [rbp + 0x230]
    CHECK "IRR has the higher", rax, 2
    sti
    nop
    nop
    nop
    cli
    CHECK "the higher first", [trail], 0x2819
    mov qword ptr [trail], 0
    HOOK LOW, low_with_high
    SEND LOW
    sti
    nop
    nop
    nop
    cli
    CHECK "the higher interrupts the lower", [trail], 0x1289
    HOOK HIGH, high_with_low
    mov qword ptr [trail], 0
    HOOK LOW, low_handler
    SEND HIGH
    sti
    nop
    nop
    nop
    cli
    CHECK "the lower waits for EOI", [trail], 0x2819
    mov eax, [rbp + 0x120]
    CHECK "ISR is empty", rax, 0
    HOOK LOW, take

    BEGIN "HLT"
    mov qword ptr [taken], 0
    mov dword ptr [rbp + 0x3e0], 0xb /* timer: divide by 1, one-shot */
    mov dword ptr [rbp + 0x320], LOW
    mov dword ptr [rbp + 0x380], 100000
    sti
    hlt
1:  nop
    EXPECT_AT "woken by the timer", 1b
    mov dword ptr [rbp + 0x320], 0x10000

    BEGIN "NMI"
    HOOK NMI, on_nmi
    mov qword ptr [nmis], 0
    mov eax, [rbp + 0x20]
    mov [rbp + 0x310], eax
    mov qword ptr [nmi_nested], 1
    mov dword ptr [rbp + 0x300], 0x4400 /* NMI to our own ID */
    mov eax, [rbp + 0x300]
    nop
    nop
    CHECK "taken with IF 0; one pends until IRET", [nmis], 2
    CHECK "not nested", [nmi_depth_seen], 1
    mov qword ptr [nmis], 0
    mov dword ptr [rbp + 0x300], 0x4400
    mov eax, [rbp + 0x300]
    nop
    CHECK "again", [nmis], 1
    mov byte ptr [idt + NMI * 16 + 4], 1
    mov dword ptr [rbp + 0x300], 0x4400
    mov eax, [rbp + 0x300]
    nop
    CHECK "by IST", [nmis], 2
    mov byte ptr [idt + NMI * 16 + 4], 0

    BEGIN "spurious and illegal"
    HOOK 0xff, take
    mov qword ptr [taken], 0
    mov dword ptr [rbp + 0x280], 0
    mov dword ptr [rbp + 0x300], SELF | 5 /* a vector below 16 */
    mov eax, [rbp + 0x300]
    mov dword ptr [rbp + 0x280], 0
    mov eax, [rbp + 0x280]
    and eax, 0x20
    CHECK "ESR: illegal vector sent", rax, 0x20
    sti
    nop
    nop
    cli
    CHECK "not delivered", [taken], 0
    jmp finish

take:
    inc qword ptr [taken]
    mov rax, [rdi + F_RIP]
    mov [taken_rip], rax
    mov rax, [rdi + F_CS]
    mov [taken_cs], rax
    mov dword ptr [rbp + 0xb0], 0
    ret

    .macro TRAIL digit
    shl qword ptr [trail], 4
    or qword ptr [trail], \digit
    .endm

    /* Each handler leaves its digit on entry and 10 minus it on exit. */
low_handler:
    TRAIL 1
    TRAIL 9
    mov dword ptr [rbp + 0xb0], 0
    ret
high_handler:
    TRAIL 2
    TRAIL 8
    mov dword ptr [rbp + 0xb0], 0
    ret
low_with_high:
    TRAIL 1
    SEND HIGH
    sti
    nop
    nop
    cli
    TRAIL 9
    mov dword ptr [rbp + 0xb0], 0
    ret
high_with_low:
    TRAIL 2
    SEND LOW
    sti
    nop
    nop
    cli
    TRAIL 8
    mov dword ptr [rbp + 0xb0], 0
    ret

on_nmi:
    inc qword ptr [nmis]
    inc qword ptr [nmi_depth]
    mov rax, [nmi_depth]
    cmp rax, [nmi_depth_seen]
    jbe 1f
    mov [nmi_depth_seen], rax
1:  cmp qword ptr [nmi_nested], 0
    je 2f
    dec qword ptr [nmi_nested]
    mov dword ptr [rbp + 0x300], 0x4400
    mov eax, [rbp + 0x300]
    nop
    nop
2:  dec qword ptr [nmi_depth]
    ret

    .data
    .balign 8
taken: .quad 0
taken_rip: .quad 0
taken_cs: .quad 0
trail: .quad 0
nmis: .quad 0
nmi_depth: .quad 0
nmi_depth_seen: .quad 0
nmi_nested: .quad 0
