/* SPDX-License-Identifier: Apache-2.0 */
/* Breakpoints on code, data and ports, single step, DR6, DR7, general detect.
 * Intel SDM (June 2025) Vol. 3B §19.2 (debug registers), §19.3 (debug exceptions).
 *
 * qemu deviates: single step: int1 -- opcode F1 is #UD there
 * qemu deviates: single step: RF in the frame of a fault -- Vol. 3B §19.3.1.1: 1
 * qemu deviates: data breakpoints: two at once -- reports one
 * qemu deviates: data breakpoints: with single step -- two exceptions
 */
#include "guest.h"

#define BS (1 << 14)
#define BD (1 << 13)

    .macro CLEAR_DR6
    mov eax, 0xffff0ff0
    mov dr6, rax
    .endm
    .macro DR7 value
    mov eax, \value
    mov dr7, rax
    .endm
    .macro WATCH register, address
    lea rax, [rip + \address]
    mov \register, rax
    .endm
    .macro CHECK_DR6 what, want /* the low 16 bits without what always reads 1 */
    mov rax, dr6
    and eax, 0xf00f
    CHECK "\what: dr6", rax, \want
    .endm
    /* One instruction that must trap behind itself, with these DR6 bits. */
    .macro TRAP what, want, insn:vararg
    CLEAR_DR6
    TRY .Lnext\@
    \insn
.Lnext\@:
    CAUGHT "\what", DB, NOERR, .Lnext\@, ANY
    CHECK_DR6 "\what", \want
    .endm
    .macro NO_TRAP what, insn:vararg
    CLEAR_DR6
    NOFAULT "\what", \insn
    CHECK_DR6 "\what", 0
    .endm

    .text
    .globl main
main:
    BEGIN "values"
    CLEAR_DR6
    mov rax, dr6
    mov ebx, 0xffff0ff0
    CHECK "dr6", rax, rbx
    xor eax, eax
    mov dr6, rax
    mov rax, dr6
    CHECK "dr6: fixed bits", rax, rbx
    DR7 0
    mov rax, dr7
    CHECK "dr7: bit 10 reads 1", rax, 0x400
    mov rax, 0x100000000
    FAULT "dr6 above 32 bits", GP, 0, ANY, mov dr6, rax
    FAULT "dr7 above 32 bits", GP, 0, ANY, mov dr7, rax
    mov rax, 0x1234567887654321
    mov dr3, rax
    mov rbx, dr3
    CHECK "dr3", rbx, rax
    mov eax, 0x5555
    mov dr3, rax
    FAULT "dr8", UD, NOERR, ANY, .byte 0x44, 0x0f, 0x21, 0xc0
    .byte 0x0f, 0x21, 0xe0 /* mov rax, dr4: dr6 */
    mov ebx, 0xffff0ff0
    CHECK "dr4 is dr6 without CR4.DE", rax, rbx
    SET_CR4 CR4_DE
    FAULT "dr4 with CR4.DE", UD, NOERR, ANY, .byte 0x0f, 0x21, 0xe0
    FAULT "dr5 with CR4.DE", UD, NOERR, ANY, .byte 0x0f, 0x23, 0xe8
    CLEAR_CR4 CR4_DE

    BEGIN "single step"
    HOOK DB, count_step
    CLEAR_DR6
    mov qword ptr [steps], 0
    pushfq
    or dword ptr [rsp], FLAG_TF
    popfq /* no trap behind this one */
    nop
    inc eax
    nop
    pushfq
    and dword ptr [rsp], ~FLAG_TF
    popfq /* traps behind this one: TF was set when it began */
    nop
    CHECK "instructions", [steps], 6
    CHECK_DR6 "step", BS
    mov rax, [step_flags]
    and eax, FLAG_TF
    CHECK "TF in the frame of the last", rax, 0
    mov qword ptr [steps], 0
    lea rsi, [rip + data]
    mov rdi, rsi
    mov ecx, 5
    pushfq
    or dword ptr [rsp], FLAG_TF
    popfq
    rep movsb /* a trap for each */
    pushfq
    and dword ptr [rsp], ~FLAG_TF
    popfq
    CHECK "rep movsb", [steps], 8
    mov qword ptr [steps], 0
    mov eax, ss
    pushfq
    or dword ptr [rsp], FLAG_TF
    popfq
    mov ss, eax /* no trap behind this one */
    nop
    pushfq
    and dword ptr [rsp], ~FLAG_TF
    popfq
    CHECK "mov ss", [steps], 4
    mov qword ptr [steps], 0
    HOOK 0x21, empty_hook
    pushfq
    or dword ptr [rsp], FLAG_TF
    popfq
    int 0x21 /* TF is clear in the handler; its iretq sets it: the trap is behind the next one */
    nop
    nop
    pushfq
    and dword ptr [rsp], ~FLAG_TF
    popfq
    CHECK "int n", [steps], 5
    mov qword ptr [steps], 0
    mov rbp, rsp
    push KDATA
    push rbp
    pushfq
    or dword ptr [rsp], FLAG_TF
    push KCODE
    push offset 1f
    iretq /* sets TF: the trap is behind the instruction at its target */
1:  nop
    pushfq
    and dword ptr [rsp], ~FLAG_TF
    popfq
    CHECK "iretq", [steps], 4
    mov qword ptr [steps], 0
    pushfq
    or dword ptr [rsp], FLAG_TF
    popfq
    jmp 1f
    nop
1:  xor eax, eax
    jnz 1b
    cpuid
    pushfq
    and dword ptr [rsp], ~FLAG_TF
    popfq
    CHECK "jumps, cpuid", [steps], 7
    UNHOOK DB
    pushfq
    or dword ptr [rsp], FLAG_TF
    TRY 1f
    popfq
2:  ud2 /* a fault comes first, and clears TF */
1:  CAUGHT "ud2", UD, NOERR, 2b, ANY
    mov rax, [last_flags]
    and eax, FLAG_TF
    CHECK "TF in the frame of a fault", rax, FLAG_TF
    add rsp, 8 /* the flags */
    mov rax, [last_flags]
    and eax, FLAG_RF
    CHECK "RF in the frame of a fault", rax, FLAG_RF
    TRY 1f
    .byte 0xf1
1:  CAUGHT "int1", DB, NOERR, 1b, ANY

    call code_breakpoints
    call data_breakpoints
    call other_conditions
    jmp finish

count_step:
    inc qword ptr [steps]
    mov rax, [rdi + F_FLAGS]
    mov [step_flags], rax
    mov rax, [rdi + F_RIP]
    mov [step_rip], rax
empty_hook:
    ret

resume_over:
    inc qword ptr [steps]
    mov rax, [rdi + F_FLAGS]
    mov [step_flags], rax
    or dword ptr [rdi + F_FLAGS], FLAG_RF
    ret

code_breakpoints:
    BEGIN "code breakpoints"
    WATCH dr0, 1f
    CLEAR_DR6
    DR7 1
    TRY 2f
    nop
1:  inc rbx
2:  CAUGHT "a fault before the instruction", DB, NOERR, 1b, ANY
    CHECK_DR6 "local", 1
    mov rax, [last_flags]
    and eax, FLAG_RF
    CHECK "no RF in the frame: the handler sets it", rax, 0
    WATCH dr1, 1f
    CLEAR_DR6
    DR7 8
    TRY 2f
    xor ebx, ebx
    jmp 1f
    nop
1:  inc rbx
2:  CAUGHT "after a jump, global", DB, NOERR, 1b, ANY
    CHECK_DR6 "global", 2
    CHECK "not executed", rbx, 0
    HOOK DB, resume_over
    mov qword ptr [steps], 0
    WATCH dr0, 1f
    WATCH dr1, 3f
    DR7 3
    xor ebx, ebx
    mov ecx, 5
1:  inc rbx
    loop 1b
    CHECK "RF: each iteration once", [steps], 5
    CHECK "executed", rbx, 5
    DR7 0
    UNHOOK DB
    WATCH dr0, data
    DR7 1
    NO_TRAP "reading the address is not executing it", mov al, [rip + data]
    WATCH dr0, 1f+1
    DR7 1
    CLEAR_DR6
    TRY 2f
1:  mov eax, 5 /* the middle of an instruction is no address of one */
2:  CAUGHT "inside an instruction", ANY, 0, 0, 0
    DR7 0
3:  ret

data_breakpoints:
    BEGIN "data breakpoints"
    WATCH dr0, data
    DR7 0x000d0001 /* write, 4 bytes */
    TRAP "write of 4", 1, mov [rip + data], eax
    TRAP "write of 1 in it", 1, mov [rip + data + 3], al
    TRAP "write across its start", 1, mov [rip + data - 3], eax
    TRAP "write across its end", 1, mov [rip + data + 3], ax
    NO_TRAP "write behind", mov [rip + data + 4], eax
    NO_TRAP "write before", mov [rip + data - 4], eax
    NO_TRAP "read", mov eax, [rip + data]
    TRAP "read-modify-write", 1, inc dword ptr [rip + data]
    lea rdi, [rip + data]
    TRAP "stosd", 1, stosd
    DR7 0x000f0001 /* read or write, 4 bytes */
    TRAP "read of read or write", 1, mov eax, [rip + data]
    TRAP "write of read or write", 1, mov [rip + data], eax
    TRAP "push from", 1, push qword ptr [rip + data]
    pop rax
    WATCH dr2, data+8
    DR7 0x09000010 /* DR2: write, 8 bytes */
    TRAP "8 bytes", 4, mov [rip + data + 15], al
    NO_TRAP "behind 8 bytes", mov [rip + data + 16], al
    WATCH dr3, data+8
    DR7 0x19000050 /* DR2 and DR3 (1 byte) */
    TRAP "two at once", 12, mov [rip + data + 8], al
    DR7 0x000d0000
    NO_TRAP "disabled", mov [rip + data], eax
    DR7 0x000d0001
    lea rdi, [rip + data - 8]
    mov ecx, 8
    CLEAR_DR6
    TRY 2f
1:  rep stosd
2:  CAUGHT "rep stosd stops behind the iteration", DB, NOERR, 1b, ANY
    CHECK "rep stosd: rcx", rcx, 5
    WATCH dr0, data
    DR7 0x000d0001
    CLEAR_DR6
    pushfq
    or dword ptr [rsp], FLAG_TF
    CLEAR_DR6
    TRY 1f
    popfq
    mov dword ptr [rip + data], 1
1:  CAUGHT "with single step", DB, NOERR, 1b, ANY
    add rsp, 8 /* the flags */
    CHECK_DR6 "with single step", BS|1
    DR7 0
    ret

other_conditions:
    BEGIN "general detect and ports"
    CLEAR_DR6
    mov eax, 0x2400
    mov dr7, rax
    FAULT "reading a debug register with GD", DB, NOERR, ANY, mov rax, dr0
    mov rbx, dr7
    CHECK "GD is off in the handler", rbx, 0x400
    CHECK_DR6 "GD", BD
    SET_CR4 CR4_DE
    mov eax, 0x80
    mov dr0, rax
    DR7 0x00020001 /* port, 1 byte */
    TRAP "out", 1, out 0x80, al
    NO_TRAP "another port", out 0xed, al
    DR7 0
    CLEAR_CR4 CR4_DE
    CLEAR_DR6
    ret

    .data
    .balign 64
    .quad 0, 0
data: .skip 128
steps: .quad 0
step_flags: .quad 0
step_rip: .quad 0
