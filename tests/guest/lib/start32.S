/* SPDX-License-Identifier: Apache-2.0 */
/* Runtime of the 32-bit guests: multiboot entry, flat segments without paging, GDT, TSS, IDT with
 * recording handlers. The guest supplies `main`; it returns or jumps to `finish`. */
#include "guest.h"

    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .section .pages, "aw", @nobits
    .balign 4096
    .globl scratch
scratch: .skip 16 * 4096 /* pages for the cases to map and to write */

    .bss
    .balign 16
    .skip 16384
    .globl stack_top, int_stack_top, user_stack_top
stack_top:
    .skip 8192
int_stack_top:
    .skip 8192
user_stack_top:
    .globl idt, gdt, tss, hooks, resume_ip, resume_sp, fault_count, multiboot_info
idt: .skip 256 * 8
gdt: .skip GDT_LAST + 8
tss: .skip 104
hooks: .skip 256 * 4
multiboot_info: .skip 4
resume_ip: .skip 4
resume_sp: .skip 4
fault_count: .skip 4
    .globl last_vector, last_error, last_ip, last_cs, last_flags, last_sp, last_ss, last_cr2
last_vector: .skip 4
last_error: .skip 4
last_ip: .skip 4
last_cs: .skip 4
last_flags: .skip 4
last_sp: .skip 4
last_ss: .skip 4
last_cr2: .skip 4
saved_eax: .skip 4

    .data
    .balign 8
gdt_source:
    .quad 0
    .quad 0x00cf9b000000ffff /* KCODE */
    .quad 0x00cf93000000ffff /* KDATA */
    .quad 0x00cffb000000ffff /* UCODE */
    .quad 0x00cff3000000ffff /* UDATA */
    .quad 0 /* TSS */
    .quad 0x00009b000000ffff /* KCODE16 */
    .quad 0x000093000000ffff /* KDATA16 */
gdt_source_end:
    .globl gdt_pointer, idt_pointer
gdt_pointer:
    .word GDT_LAST + 7
    .long gdt
idt_pointer:
    .word 256 * 8 - 1
    .long idt

    .text
    .globl _start
_start:
    cli
    cld
    mov esp, offset stack_top
    mov [multiboot_info], ebx
    mov esi, offset gdt_source
    mov edi, offset gdt
    mov ecx, offset gdt_source_end - gdt_source
    rep movsb
    lgdt [gdt_pointer]
    ljmp KCODE, offset 1f
1:  mov eax, KDATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lldt ax
    mov dword ptr [tss + 4], offset int_stack_top
    mov dword ptr [tss + 8], KDATA
    mov word ptr [tss + 102], 104 /* no I/O bitmap */
    DESCRIPTOR TSS_SELECTOR, "offset tss", 103, 0x0089
    mov eax, TSS_SELECTOR
    ltr ax
    call install_idt
    lidt [idt_pointer]
    mov eax, cr0
    or eax, CR0_NE | CR0_MP
    mov cr0, eax
    fninit
    call init_serial
    call main
    jmp finish

install_idt:
    mov edi, offset idt
    mov eax, offset stubs
    mov ecx, 256
1:  mov [edi], ax
    mov word ptr [edi + 2], KCODE
    mov word ptr [edi + 4], 0x8e00
    mov ebx, eax
    shr ebx, 16
    mov [edi + 6], bx
    add edi, 8
    add eax, 16
    loop 1b
    mov byte ptr [idt + BP_ * 8 + 5], 0xee
    mov byte ptr [idt + OF * 8 + 5], 0xee
    mov byte ptr [idt + USER_EXIT * 8 + 5], 0xee
    ret

    .balign 16
    .globl stubs
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    push NOERR
    .endif
    push vector
    jmp common
    .set vector, vector + 1
    .endr

common:
    pushad
    push ds
    push es
    mov eax, KDATA
    mov ds, eax
    mov es, eax
    cld
    mov eax, [esp + F_VECTOR]
    mov ecx, [hooks + eax * 4]
    test ecx, ecx
    jz 1f
    mov edi, esp
    call ecx
    pop es
    pop ds
    popad
    add esp, 8
    iretd
1:  mov [last_vector], eax
    mov ecx, [esp + F_ERROR]
    mov [last_error], ecx
    mov ecx, [esp + F_RIP]
    mov [last_ip], ecx
    mov ecx, [esp + F_CS]
    mov [last_cs], ecx
    mov ecx, [esp + F_FLAGS]
    mov [last_flags], ecx
    mov ecx, [esp + F_RSP] /* means something if the privilege changed */
    mov [last_sp], ecx
    mov ecx, [esp + F_SS]
    mov [last_ss], ecx
    mov ecx, cr2
    mov [last_cr2], ecx
    inc dword ptr [fault_count]
    cmp dword ptr [resume_ip], 0
    je unexpected_fault
    test byte ptr [esp + F_CS], 3
    jnz 2f
    test byte ptr [esp + F_FLAGS + 2], FLAG_VM >> 16
    jnz 2f
    pop es /* CPL 0 keeps its data segments */
    pop ds
    jmp 3f
2:  add esp, 8
3:  popad
    mov ss:[saved_eax], eax
    mov eax, KDATA
    mov ss, eax
    mov esp, ss:[resume_sp]
    mov eax, ss:[saved_eax]
    push dword ptr ss:[resume_ip]
    mov dword ptr ss:[resume_ip], 0
    ret

    /* (label): exceptions go there from now on. Everything is preserved. */
    .globl start_try
start_try:
    mov [saved_eax], eax
    mov eax, [esp + 4]
    mov [resume_ip], eax
    lea eax, [esp + 8]
    mov [resume_sp], eax
    mov eax, 0 /* the flags stay */
    mov [fault_count], eax
    mov [last_vector], eax
    mov eax, [saved_eax]
    ret 4

    /* (label): continues there with CPL 3; general registers and flags are kept. */
    .globl enter_user
enter_user:
    mov [saved_eax], eax
    mov eax, [esp + 4]
    mov [esp], eax
    mov eax, UDATA | 3
    mov ds, eax
    mov es, eax
    pop eax
    pushfd
    push UDATA | 3
    push offset user_stack_top
    push dword ptr [esp + 8]
    push UCODE | 3
    push eax
    mov eax, cs:[saved_eax]
    iretd

    /* (selector, base, limit, attributes) */
    .globl set_descriptor
set_descriptor:
    push eax
    push ebx
    push edi
    mov edi, [esp + 16]
    lea edi, [gdt + edi]
    mov eax, [esp + 20] /* base */
    mov [edi + 2], ax
    shr eax, 16
    mov [edi + 4], al
    mov [edi + 7], ah
    mov eax, [esp + 24] /* limit */
    mov [edi], ax
    shr eax, 16
    and eax, 15
    mov ebx, [esp + 28] /* attributes: byte 5, and byte 6's high nibble */
    mov [edi + 5], bl
    and bh, 0xf0
    or al, bh
    mov [edi + 6], al
    pop edi
    pop ebx
    pop eax
    ret 16
