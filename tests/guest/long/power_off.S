/* SPDX-License-Identifier: Apache-2.0 */
/* Finds RSDP, XSDT or RSDT, FADT, DSDT as firmware leaves them, checks their sums, finds \_S5 and
 * powers off through PM1a control. ACPI 6.5 §5.2.5 (RSDP), §5.2.7, §5.2.9 (FADT), §4.8.3.2 (PM1),
 * §7.4.2.6 (S5).
 *
 * expect: exit 0
 * expect: text ok the tables
 * kvm: kvm-api
 */
#include "guest.h"

#define PM1_SCI_EN 1
#define SLP_EN 0x2000

    .text
    .globl main
main:
    BEGIN "the tables"
    /* By PVH or multiboot there is no pointer to the RSDP but the search below 1 MiB. */
    mov edi, 0xe0000
    mov rax, 0x2052545020445352 /* "RSD PTR " */
1:  cmp [rdi], rax
    je 2f
    add edi, 16
    cmp edi, 0x100000
    jb 1b
    FAIL "no RSDP"
    jmp finish
2:  mov rsi, rdi
    mov ecx, 20
    call sum
    CHECK "RSDP: sum", rax, 0
    mov ebx, [rdi + 16] /* RSDT */
    mov r8d, 4
    cmp byte ptr [rdi + 15], 2
    jb 3f
    mov ecx, [rdi + 20]
    mov rsi, rdi
    call sum
    CHECK "RSDP: extended sum", rax, 0
    mov rbx, [rdi + 24] /* XSDT */
    mov r8d, 8
3:  mov rsi, rbx
    mov ecx, [rbx + 4]
    call sum
    CHECK "root table: sum", rax, 0
    mov edx, [rbx + 4]
    lea r9, [rbx + rdx]
    lea rdi, [rbx + 36]
4:  cmp rdi, r9
    jae no_fadt
    mov eax, [rdi]
    cmp r8d, 4
    je 5f
    mov rax, [rdi]
5:  mov r10, rax
    mov rsi, rax
    mov ecx, [rax + 4]
    call sum
    CHECK "a table: sum", rax, 0
    add rdi, r8
    cmp dword ptr [r10], 0x50434146 /* FACP */
    jne 4b
    mov [fadt], r10
    jmp 4b
no_fadt:
    mov rbx, [fadt]
    test rbx, rbx
    jnz 6f
    FAIL "no FADT"
    jmp finish
6:  mov esi, [rbx + 40] /* DSDT */
    mov ecx, [rsi + 4]
    mov r10, rsi
    call sum
    CHECK "DSDT: sum", rax, 0
    mov edx, [rbx + 64] /* PM1a_CNT_BLK */
    mov [pm1a_control], edx
    in ax, dx
    test al, PM1_SCI_EN
    jnz enabled
    mov edx, [rbx + 48] /* SMI_CMD */
    test edx, edx
    jz enabled
    mov al, [rbx + 52] /* ACPI_ENABLE */
    out dx, al
    mov ecx, 1000000
    mov edx, [pm1a_control]
7:  in ax, dx
    test al, PM1_SCI_EN
    jnz enabled
    loop 7b
    FAIL "ACPI mode does not come"
enabled:
    mov ecx, [r10 + 4]
    lea rdi, [r10 + 36]
    sub ecx, 44
8:  cmp dword ptr [rdi], 0x5f35535f /* _S5_ */
    je found
    inc rdi
    loop 8b
    FAIL "no _S5"
    jmp finish
found:
    add rdi, 4
    cmp byte ptr [rdi], 0x12 /* PackageOp, PkgLength of one byte, count */
    je 9f
    FAIL "_S5 is no package"
    jmp finish
9:  add rdi, 3
    xor eax, eax
    mov al, [rdi] /* ByteConst, or ZeroOp and OneOp */
    cmp al, 0x0a
    jne 1f
    mov al, [rdi + 1]
1:  shl eax, 10
    or eax, SLP_EN
    mov ebx, eax
    BEGIN "power off" /* says ok of the tables */
    mov edx, [pm1a_control]
    in ax, dx
    and ax, 0xc3ff
    or eax, ebx
    out dx, ax
    mov ecx, 100000000
1:  pause
    loop 1b
    FAIL "still here"
    jmp finish

    /* Sum of ecx bytes at rsi, modulo 256, in rax. */
sum:
    xor eax, eax
1:  add al, [rsi]
    inc rsi
    loop 1b
    movzx eax, al
    ret

    .data
    .balign 8
fadt: .quad 0
pm1a_control: .long 0
