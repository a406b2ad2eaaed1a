/* SPDX-License-Identifier: Apache-2.0 */
/* The PC's interrupt chips: 8254 timer by the 8259A pair and by the I/O APIC, spurious interrupts,
 * channel 2 by port 61h, RTC periodic interrupt, HPET counter and comparator, serial port.
 * Intel 8259A, 8254, 82093AA data sheets; MC146818A; IA-PC HPET 1.0a §2.3; ACPI 6.5 §5.2.12.
 *
 * kvm: kvm-api
 */
#include "guest.h"

#define IOAPIC 0xfec00000
#define HPET 0xfed00000
#define PIC_BASE 0x30
#define TICK 0x71

    .macro PIC_MASKS master, slave
    OUTB 0x21, \master
    OUTB 0xa1, \slave
    .endm
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
    .macro REDIRECT pin, low /* to APIC ID 0 */
    mov edx, IOAPIC
    mov dword ptr [rdx], 0x11 + 2 * \pin
    mov dword ptr [rdx + 16], 0
    mov dword ptr [rdx], 0x10 + 2 * \pin
    mov dword ptr [rdx + 16], \low
    .endm
    .macro CHECK_TICKS what, least
    mov rax, [ticks]
    cmp rax, \least
    setae al
    movzx eax, al
    CHECK "\what", rax, 1
    .endm
    .macro CMOS_WRITE index, value
    OUTB 0x70, \index
    OUTB 0x71, \value
    .endm
    .macro CMOS_READ index
    OUTB 0x70, \index
    in al, 0x71
    .endm

    .text
    .globl main
main:
    mov ebp, APIC
    mov dword ptr [rbp + 0xf0], 0x1ff
    BEGIN "PIC and PIT"
    mov dword ptr [rbp + 0x350], 0x700 /* LINT0: ExtINT */
    OUTB 0x20, 0x11
    OUTB 0x21, PIC_BASE
    OUTB 0x21, 4
    OUTB 0x21, 1
    OUTB 0xa0, 0x11
    OUTB 0xa1, PIC_BASE+8
    OUTB 0xa1, 2
    OUTB 0xa1, 1
    PIC_MASKS 0xff, 0xff
    in al, 0x21
    movzx eax, al
    CHECK "mask reads back", rax, 0xff
    HOOK PIC_BASE, on_pic
    OUTB 0x43, 0x34 /* channel 0, rate generator */
    OUTB 0x40, 0xa9 /* 1193 counts: 1 ms */
    OUTB 0x40, 4
    sti
    mov ecx, 2000000
1:  pause
    loop 1b
    CHECK "masked", [ticks], 0
    PIC_MASKS 0xfe, 0xff
    WAIT_TICKS 5
    cli
    CHECK_TICKS "by the PIC", 5
    mov qword ptr [ticks], 0
    OUTB 0x43, 0x30 /* one-shot */
    OUTB 0x40, 0xff
    OUTB 0x40, 0x10
    sti
    hlt
    cli
    CHECK_TICKS "one-shot wakes from hlt", 1
    PIC_MASKS 0xff, 0xff
    mov qword ptr [ticks], 0

    BEGIN "PIT channel 2"
    in al, 0x61
    and al, 0xfc
    or al, 1
    out 0x61, al
    OUTB 0x43, 0xb0
    OUTB 0x42, 0x00
    OUTB 0x42, 0x20
    in al, 0x61
    and eax, 0x20
    CHECK "output is low at first", rax, 0
    mov ecx, 200000000
1:  in al, 0x61
    test al, 0x20
    jnz 2f
    loop 1b
2:  and eax, 0x20
    CHECK "and high at the end", rax, 0x20
    OUTB 0x43, 0x80 /* latch */
    in al, 0x42
    in al, 0x42

    BEGIN "I/O APIC"
    mov edx, IOAPIC
    mov dword ptr [rdx], 1
    mov eax, [rdx + 16]
    shr eax, 16
    and eax, 0xff
    CHECK "24 pins", rax, 23
    mov dword ptr [rbp + 0x350], 0x10700
    HOOK TICK, on_tick
    REDIRECT 2, TICK
    mov edx, IOAPIC
    mov eax, [rdx + 16]
    and eax, 0x1efff
    CHECK "entry reads back", rax, TICK
    OUTB 0x43, 0x34
    OUTB 0x40, 0xa9
    OUTB 0x40, 4
    mov qword ptr [ticks], 0
    sti
    WAIT_TICKS 5
    cli
    CHECK_TICKS "PIT by pin 2", 5
    REDIRECT 2, TICK|0x10000
    sti /* a tick that was under way: where ring 0 is emulated it may come late */
    mov ecx, 200000
1:  pause
    loop 1b
    cli
    mov qword ptr [ticks], 0
    sti
    mov ecx, 2000000
1:  pause
    loop 1b
    cli
    CHECK "masked", [ticks], 0
    OUTB 0x43, 0x30
    OUTB 0x40, 1
    OUTB 0x40, 0

    BEGIN "serial port"
    HOOK TICK, on_serial
    REDIRECT 4, TICK
    OUTB COM1+4, 0xb /* OUT2 */
    OUTB COM1+1, 2 /* transmitter empty */
    sti
    WAIT_TICKS 1
    cli
    OUTB COM1+1, 0
    CHECK_TICKS "transmitter empty", 1
    CHECK "IIR said so", [serial_iir], 2
    REDIRECT 4, 0x10000

    BEGIN "RTC"
    CMOS_READ 0x0d
    and eax, 0x80
    CHECK "battery is good", rax, 0x80
    CMOS_WRITE 0x60, 0x5a
    CMOS_READ 0x60
    movzx eax, al
    CHECK "RAM", rax, 0x5a
    CMOS_READ 0x32
    movzx eax, al
    cmp eax, 0x20
    setae al
    movzx eax, al
    CHECK "century", rax, 1
    HOOK TICK, on_rtc
    REDIRECT 8, TICK
    CMOS_WRITE 0x0a, 0x26 /* 1024 Hz */
    CMOS_READ 0x0c
    CMOS_WRITE 0x0b, 0x42
    mov qword ptr [ticks], 0
    sti
    WAIT_TICKS 3
    cli
    CMOS_WRITE 0x0b, 2
    CMOS_READ 0x0c
    CHECK_TICKS "periodic interrupt", 3
    mov rax, [rtc_flags]
    and eax, 0xc0
    CHECK "register C said so", rax, 0xc0
    REDIRECT 8, 0x10000

    BEGIN "HPET"
    mov edx, HPET
    mov rax, [rdx]
    shr rax, 32
    cmp rax, 0x5f5e100
    setbe al
    movzx eax, al
    CHECK "period of at most 100 ns", rax, 1
    mov eax, [rdx + 4]
    cmp eax, 0
    je no_hpet
    mov dword ptr [rdx + 0x10], 0
    mov qword ptr [rdx + 0xf0], 0
    mov rax, [rdx + 0xf0]
    CHECK "counter is set while halted", rax, 0
    mov dword ptr [rdx + 0x10], 1
    mov ecx, 200000000
1:  pause
    cmp qword ptr [rdx + 0xf0], 1000
    jae 2f
    loop 1b
2:  mov rax, [rdx + 0xf0]
    cmp rax, 1000
    setae al
    movzx eax, al
    CHECK "counts", rax, 1
    HOOK TICK, on_tick
    mov dword ptr [rdx + 0x10], 0
    mov qword ptr [rdx + 0xf0], 0
    mov qword ptr [rdx + 0x100], 0
    mov rax, [rdx + 0x100]
    shr rax, 32
    mov ebx, eax
    bsf ecx, ebx /* the first pin it may drive */
    mov [hpet_pin], rcx
    shl ecx, 9
    or ecx, 4 /* edge, enabled */
    mov [rdx + 0x100], ecx
    mov qword ptr [rdx + 0x108], 10000
    mov rax, [hpet_pin]
    lea ecx, [rax * 2 + 0x10]
    mov ebx, IOAPIC
    lea eax, [rcx + 1]
    mov [rbx], eax
    mov dword ptr [rbx + 16], 0
    mov [rbx], ecx
    mov dword ptr [rbx + 16], TICK
    mov qword ptr [ticks], 0
    mov dword ptr [rdx + 0x10], 1
    sti
    WAIT_TICKS 1
    cli
    CHECK_TICKS "comparator 0", 1
    mov edx, HPET
    mov dword ptr [rdx + 0x10], 0
no_hpet:
    jmp finish

on_pic:
    inc qword ptr [ticks]
    OUTB 0x20, 0x20
    ret
on_tick:
    inc qword ptr [ticks]
    mov dword ptr [rbp + 0xb0], 0
    ret
on_serial:
    push rdx
    mov dx, COM1 + 2
    in al, dx
    and eax, 15
    mov [serial_iir], rax
    inc qword ptr [ticks]
    mov dword ptr [rbp + 0xb0], 0
    pop rdx
    ret
on_rtc:
    push rdx
    CMOS_READ 0x0c
    movzx eax, al
    mov [rtc_flags], rax
    inc qword ptr [ticks]
    mov dword ptr [rbp + 0xb0], 0
    pop rdx
    ret

    .data
    .balign 8
ticks: .quad 0
serial_iir: .quad 0
rtc_flags: .quad 0
hpet_pin: .quad 0
