/* SPDX-License-Identifier: Apache-2.0 */
/* A third fault ends it: Doppel says where, with exit code 4.
 * Intel SDM (June 2025) Vol. 3A §7.15, interrupt 8.
 *
 * expect: exit 4
 * expect: reset
 * expect: text ok before
 * expect: text #PF error 0000 at rip 1
 * expect: text , address 7efeed0000
 * expect: text #GP error 0073 at rip 1
 * expect: text #DF error 0000 at rip 1
 * expect: text #GP error 0043 at rip 1
 * kvm: cannot
 */
#include "guest.h"

    .text
    .globl main
main:
    BEGIN "before"
    NOFAULT "nothing yet", nop
    BEGIN "the end"
    mov word ptr [idt_pointer], 0
    lidt [idt_pointer]
    mov rax, 0x7efeed0000
    mov al, [rax] /* #PF, then #GP for want of an IDT: #DF, then shutdown */
    FAIL "still here"
    jmp finish
