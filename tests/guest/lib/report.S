/* SPDX-License-Identifier: Apache-2.0 */
/* Serial output and the account of what passed, for 32- and 64-bit guests. All functions take their
 * arguments on the stack, remove them, and preserve every register and the flags. */
#include "guest.h"

    .macro SAVE_ALL /* SAVED words below the return address */
    PUSHF
    cld
    push AX
    push BX
    push CX
    push DX
    push SI
    push DI
    push BP
    .endm
    .macro RESTORE_ALL
    pop BP
    pop DI
    pop SI
    pop DX
    pop CX
    pop BX
    pop AX
    POPF
    .endm
#define ARGUMENT(n) WORD_PTR [SP + (9 + n) * WORD_BYTES]

    .bss
    .balign 8
failures: .skip 8
failures_of_test: .skip 8
cases: .skip 8
test_name: .skip 8

    .text
    /* al to the serial port, polled. */
put_byte:
    push DX
    push AX
    mov dx, COM1 + 5
1:  in al, dx
    test al, 0x20
    jz 1b
    pop AX
    mov dx, COM1
    out dx, al
    pop DX
    ret

    /* SI: text ended by 0. */
put_text:
    lodsb
    test al, al
    jz 1f
    call put_byte
    jmp put_text
1:  ret

    .macro SAY text
    .pushsection .rodata
.Lsay\@:
    .asciz "\text"
    .popsection
    mov SI, offset .Lsay\@
    call put_text
    .endm

    /* AX in hexadecimal, without leading zeros. */
put_hex:
    mov BX, AX
    mov ecx, WORD_BYTES * 8
1:  sub ecx, 4
    jz 2f
    mov AX, BX
    shr AX, cl
    jz 1b
2:  mov AX, BX
    shr AX, cl
    and eax, 15
    cmp eax, 10
    jb 3f
    add eax, 'a' - '0' - 10
3:  add eax, '0'
    call put_byte
    sub ecx, 4
    jns 2b
    ret

    .globl init_serial
init_serial:
    OUTB COM1 + 1, 0
    OUTB COM1 + 3, 0x80
    OUTB COM1 + 0, 1
    OUTB COM1 + 1, 0
    OUTB COM1 + 3, 3
    OUTB COM1 + 2, 7
    OUTB COM1 + 4, 3
    ret

    /* Says "ok" of the test that ends, if nothing of it failed. */
end_test:
    mov SI, WORD_PTR [test_name]
    test SI, SI
    jz 1f
    cmp dword ptr [failures_of_test], 0
    jne 1f
    push SI
    SAY "ok "
    pop SI
    call put_text
    SAY "\n"
1:  ret

    .globl start_test
start_test: /* (name) */
    SAVE_ALL
    call end_test
    mov AX, ARGUMENT(0)
    mov [test_name], AX
    mov dword ptr [failures_of_test], 0
    RESTORE_ALL
    ret WORD_BYTES

    .globl say_skipped
say_skipped: /* (feature) */
    SAVE_ALL
    SAY "skip "
    mov SI, WORD_PTR [test_name]
    call put_text
    SAY ": no "
    mov SI, ARGUMENT(0)
    call put_text
    SAY "\n"
    mov WORD_PTR [test_name], 0
    RESTORE_ALL
    ret WORD_BYTES

    /* SI: what. "FAIL test: what" */
begin_failure:
    push SI
    inc dword ptr [failures]
    inc dword ptr [failures_of_test]
    SAY "FAIL "
    mov SI, WORD_PTR [test_name]
    test SI, SI
    jz 1f
    call put_text
1:  SAY ": "
    pop SI
    jmp put_text

    .globl check_equal
check_equal: /* (got, want, what) */
    SAVE_ALL
    inc dword ptr [cases]
    mov DX, ARGUMENT(2)
    cmp DX, ARGUMENT(1)
    je 1f
    mov SI, ARGUMENT(0)
    call begin_failure
    SAY " got "
    mov AX, ARGUMENT(2)
    call put_hex
    SAY " want "
    mov AX, ARGUMENT(1)
    call put_hex
    SAY "\n"
1:  RESTORE_ALL
    ret 3 * WORD_BYTES

    /* DI: what was expected, as CAUGHT lays it out; AX: ANY of this word size. */
    .macro COMPARE_FIELD index, last, text
    mov DX, WORD_PTR [DI + \index * WORD_BYTES]
    mov ecx, ANY
    cmp DX, CX
    je .Lsame\@
    mov AX, WORD_PTR [\last]
    cmp AX, DX
    je .Lsame\@
    mov BP, DX
    push AX
    mov SI, WORD_PTR [DI]
    call begin_failure
    SAY "\text got "
    pop AX
    call put_hex
    SAY " want "
    mov AX, BP
    call put_hex
    SAY "\n"
.Lsame\@:
    .endm

    .globl check_fault
check_fault: /* (pointer to: what, vector, error, rip, cr2); vector ANY: no exception at all */
    SAVE_ALL
    inc dword ptr [cases]
    mov WORD_PTR [resume_ip], 0
    mov DI, ARGUMENT(0)
    cmp dword ptr [fault_count], 0
    jne 1f
    cmp dword ptr [DI + WORD_BYTES], ANY
    je 9f
    mov SI, WORD_PTR [DI]
    call begin_failure
    SAY " got no exception, want vector "
    mov AX, WORD_PTR [DI + WORD_BYTES]
    call put_hex
    SAY "\n"
    jmp 9f
1:  cmp dword ptr [DI + WORD_BYTES], ANY
    jne 2f
    mov SI, WORD_PTR [DI]
    call begin_failure
    call describe_fault
    jmp 9f
2:  COMPARE_FIELD 1, last_vector, " vector"
    COMPARE_FIELD 2, last_error, " error code"
    COMPARE_FIELD 3, last_ip, " rip"
    COMPARE_FIELD 4, last_cr2, " cr2"
9:  RESTORE_ALL
    ret WORD_BYTES

describe_fault:
    SAY " got vector "
    mov AX, WORD_PTR [last_vector]
    call put_hex
    SAY " error "
    mov AX, WORD_PTR [last_error]
    call put_hex
    SAY " rip "
    mov AX, WORD_PTR [last_ip]
    call put_hex
    SAY " cr2 "
    mov AX, WORD_PTR [last_cr2]
    call put_hex
    SAY " want none\n"
    ret

    .globl unexpected_fault
unexpected_fault: /* a runtime's handler jumps here */
    mov SI, offset unexpected_text
    call begin_failure
    call describe_fault
    jmp finish

    .globl finish
finish: /* the end of every guest */
    call end_test
    mov SI, offset done_text
    call put_text
    mov eax, [cases]
    call put_hex
    SAY " cases, failures "
    mov eax, [failures]
    call put_hex
    SAY "\n"
    xor eax, eax
    cmp dword ptr [failures], 0
    setne al
    mov dx, DEBUG_EXIT
    out dx, al
1:  hlt
    jmp 1b

    .section .rodata
unexpected_text: .asciz "unexpected exception"
done_text: .asciz "done: "
