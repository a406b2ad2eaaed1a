/* SPDX-License-Identifier: Apache-2.0 */
/* Runtime of the 64-bit guests: multiboot entry, long mode, GDT, TSS, IDT with recording handlers.
 * Address space: identity for 0 … 4 GiB (2-MiB pages, supervisor by their PDEs), the same at
 * USER_BASE + 0 … 16 MiB for CPL 3, WINDOW with 4-KiB pages of the cases' own. The guest supplies
 * `main`; it returns or jumps to `finish`.
 * Intel SDM (June 2025) Vol. 3A §10.8.5 (initializing IA-32e mode). */
#include "guest.h"

    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .section .pages, "aw", @nobits
    .balign 4096
    .globl pml4, pdpt, pd, user_pdpt, user_pd, window_pdpt, window_pd, window_pt
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 4 * 4096
user_pdpt: .skip 4096
user_pd: .skip 4096
window_pdpt: .skip 4096
window_pd: .skip 4096
window_pt: .skip 4096
    .globl scratch
scratch: .skip 16 * 4096 /* pages for the cases to map and to write */

    .bss
    .balign 16
    .skip 16384
    .globl stack_top, int_stack_top, ist_top, user_stack_top
stack_top:
    .skip 8192
int_stack_top:
    .skip 8192
ist_top:
    .skip 8192
user_stack_top:
    .globl idt, gdt, tss, hooks, resume_ip, resume_sp, fault_count, multiboot_info
idt: .skip 256 * 16
gdt: .skip GDT_LAST + 8
tss: .skip 104
hooks: .skip 256 * 8
multiboot_info: .skip 8
resume_ip: .skip 8
resume_sp: .skip 8
fault_count: .skip 8
    .globl last_vector, last_error, last_ip, last_cs, last_flags, last_sp, last_ss, last_cr2
last_vector: .skip 8
last_error: .skip 8
last_ip: .skip 8
last_cs: .skip 8
last_flags: .skip 8
last_sp: .skip 8
last_ss: .skip 8
last_cr2: .skip 8

    .data
    .balign 8
gdt_source:
    .quad 0
    .quad 0x00af9b000000ffff /* KCODE */
    .quad 0x00cf93000000ffff /* KDATA */
    .quad 0x00cffb000000ffff /* UCODE32 */
    .quad 0x00cff3000000ffff /* UDATA */
    .quad 0x00affb000000ffff /* UCODE */
    .quad 0x00cff3000000ffff /* UDATA_COPY */
    .quad 0x00cf9b000000ffff /* KCODE32 */
    .quad 0x00009b000000ffff /* KCODE16 */
gdt_source_end:
    .globl gdt_pointer, idt_pointer
gdt_pointer:
    .word GDT_LAST + 7
    .quad gdt
idt_pointer:
    .word 256 * 16 - 1
    .quad idt

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    mov esp, offset stack_top
    mov [multiboot_info], ebx
    mov edi, offset pd /* identity */
    mov eax, 0x83
1:  mov [edi], eax
    add edi, 8
    add eax, 0x200000
    jnc 1b
    mov edi, offset user_pd
    mov eax, 0x87
    mov ecx, 8
2:  mov [edi], eax
    add edi, 8
    add eax, 0x200000
    loop 2b
    mov dword ptr [pml4], offset pdpt + 7
    mov dword ptr [pml4 + 8], offset user_pdpt + 7
    mov dword ptr [pml4 + 16], offset window_pdpt + 7
    mov dword ptr [pdpt], offset pd + 7
    mov dword ptr [pdpt + 8], offset pd + 0x1007
    mov dword ptr [pdpt + 16], offset pd + 0x2007
    mov dword ptr [pdpt + 24], offset pd + 0x3007
    mov dword ptr [user_pdpt], offset user_pd + 7
    mov dword ptr [window_pdpt], offset window_pd + 7
    mov dword ptr [window_pd], offset window_pt + 7
    mov esi, offset gdt_source
    mov edi, offset gdt
    mov ecx, offset gdt_source_end - gdt_source
    rep movsb
    .globl enter_long_mode
    call enter_long_mode
    .code64
    xor eax, eax
    lldt ax
    lea rax, [rip + tss]
    call install_tss
    call install_idt
    fninit
    call init_serial
    call main
    jmp finish

    /* From 32-bit code without paging, on any CPU; returns in 64-bit code. Destroys eax … edx. */
    .code32
enter_long_mode:
    pop ebx
    mov eax, CR4_PAE
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, IA32_EFER
    mov eax, EFER_LME | EFER_NXE | EFER_SCE
    xor edx, edx
    wrmsr
    mov eax, CR0_PG | CR0_WP | CR0_NE | 0x10 | CR0_MP | CR0_PE
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp KCODE, offset 1f
    .code64
1:  mov eax, KDATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lidt [idt_pointer]
    jmp rbx

    /* rax: TSS, into gdt[TSS_SELECTOR]. */
install_tss:
    mov word ptr [rax + 102], 104 /* no I/O bitmap */
    lea rbx, [rip + int_stack_top]
    mov [rax + 4], rbx /* RSP0 */
    lea rbx, [rip + ist_top]
    mov [rax + 36], rbx /* IST1 */
    lea rdi, [rip + gdt + TSS_SELECTOR]
    mov word ptr [rdi], 103
    mov [rdi + 2], ax
    shr rax, 16
    mov [rdi + 4], al
    mov byte ptr [rdi + 5], 0x89
    mov [rdi + 7], ah
    shr rax, 16
    mov [rdi + 8], rax
    mov eax, TSS_SELECTOR
    ltr ax
    ret

install_idt:
    lea rdi, [rip + idt]
    lea rax, [rip + stubs]
    mov ecx, 256
1:  mov [rdi], ax
    mov word ptr [rdi + 2], KCODE
    mov word ptr [rdi + 4], 0x8e00
    mov rbx, rax
    shr rbx, 16
    mov [rdi + 6], bx
    shr rbx, 16
    mov [rdi + 8], rbx
    add rdi, 16
    add rax, 16
    loop 1b
    mov byte ptr [idt + BP_ * 16 + 5], 0xee
    mov byte ptr [idt + OF * 16 + 5], 0xee
    mov byte ptr [idt + USER_EXIT * 16 + 5], 0xee
    mov byte ptr [idt + DF * 16 + 4], 1 /* IST1 */
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
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rax, [rsp + F_VECTOR]
    mov rcx, [hooks + rax * 8]
    test rcx, rcx
    jz 1f
    mov rdi, rsp
    call rcx
    call pop_frame_registers
    add rsp, 16
    iretq
1:  mov [last_vector], rax
    mov rcx, [rsp + F_ERROR]
    mov [last_error], rcx
    mov rcx, [rsp + F_RIP]
    mov [last_ip], rcx
    mov rcx, [rsp + F_CS]
    mov [last_cs], rcx
    mov rcx, [rsp + F_FLAGS]
    mov [last_flags], rcx
    mov rcx, [rsp + F_RSP]
    mov [last_sp], rcx
    mov rcx, [rsp + F_SS]
    mov [last_ss], rcx
    mov rcx, cr2
    mov [last_cr2], rcx
    inc qword ptr [fault_count]
    cmp qword ptr [resume_ip], 0
    je unexpected_fault
    mov ecx, KDATA
    mov ss, ecx
    mov ds, ecx
    mov es, ecx
    call pop_frame_registers
    mov rsp, [resume_sp]
    push qword ptr [resume_ip]
    mov qword ptr [resume_ip], 0
    ret

    /* Pops what `common` pushed; the stack then has vector, error code, the processor's frame. */
pop_frame_registers:
    pop qword ptr [frame_return]
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    jmp qword ptr [frame_return]

    .bss
frame_return: .skip 8
saved_rax: .skip 8
user_ip: .skip 8 /* not frame_return: an interrupt may come in between */
    .text

    /* (label): exceptions go there from now on. Everything is preserved. */
    .globl start_try
start_try:
    mov [saved_rax], rax
    mov rax, [rsp + 8]
    mov [resume_ip], rax
    lea rax, [rsp + 16]
    mov [resume_sp], rax
    mov rax, 0 /* the flags stay */
    mov [fault_count], rax
    mov [last_vector], rax
    mov rax, [saved_rax]
    ret 8

    /* (label): continues at label + USER_BASE with CPL 3; registers and flags are kept. */
    .globl enter_user
enter_user:
    mov [saved_rax], rax
    pop rax
    pop rax
    push rcx
    mov rcx, USER_BASE
    lea rax, [rax + rcx]
    mov [user_ip], rax
    lea rcx, [rcx + user_stack_top]
    mov rax, rcx
    pop rcx
    pushfq
    push UDATA | 3
    push rax
    push qword ptr [rsp + 16]
    push UCODE | 3
    push qword ptr [user_ip]
    mov rax, [saved_rax]
    iretq

    /* (selector, base, limit, attributes) */
    .globl set_descriptor
set_descriptor:
    push rax
    push rbx
    push rdi
    mov rdi, [rsp + 32]
    lea rdi, [gdt + rdi]
    mov rax, [rsp + 40] /* base */
    mov [rdi + 2], ax
    shr rax, 16
    mov [rdi + 4], al
    mov [rdi + 7], ah
    mov rax, [rsp + 48] /* limit */
    mov [rdi], ax
    shr rax, 16
    and eax, 15
    mov rbx, [rsp + 56] /* attributes: byte 5, and byte 6's high nibble */
    mov [rdi + 5], bl
    and bh, 0xf0
    or al, bh
    mov [rdi + 6], al
    pop rdi
    pop rbx
    pop rax
    ret 32
