/* SPDX-License-Identifier: Apache-2.0 */
/* A boot sector in real mode, 512 bytes: segments and wrapping, interrupts by the vector table,
 * limits of 64 KiB, unreal mode, protected mode and back.
 * Intel SDM (June 2025) Vol. 3B §22.1 (real-address mode), Vol. 3A §10.9 (mode switching).
 *
 * qemu deviates: real mode: case i -- checks no limits
 * kvm: kvm-api
 */
    .intel_syntax noprefix
    .code16

    /* A letter for each case; FAIL names the first that is wrong. */
    .macro EXPECT letter
    mov bl, \letter
    jne failed
    .endm

    .globl _start
_start:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    cld
    ljmp 0x7c0, offset here - 0x7c00
here:
    ljmp 0, offset 1f
1:  mov si, offset text_real
    call say
    /* a: a segment is a paragraph */
    mov ax, 0x2000
    mov es, ax
    mov dword ptr es:[0x10], 0x12345678
    mov ax, 0x2001
    mov es, ax
    cmp dword ptr es:[0], 0x12345678
    EXPECT 'a'
    /* b: int through the vector table, frame of three words */
    mov word ptr [0x21 * 4], offset on_int
    mov word ptr [0x21 * 4 + 2], ds
    mov bp, sp
    sti
    int 0x21
    cmp sp, bp
    EXPECT 'b'
    /* c: the handler ran with IF clear, and got it back */
    pushf
    pop ax
    not word ptr [flags_seen]
    and ax, [flags_seen]
    and ax, 0x200
    cmp ax, 0x200
    EXPECT 'c'
    cli
    /* d: #DE through vector 0, ip of the instruction itself */
    mov word ptr [0], offset on_divide
    mov word ptr [2], ds
    xor cx, cx
    xor dx, dx
    mov ax, 1
divide:
    div cx
    cmp cx, 1
    EXPECT 'd'
    /* e: push and pop wrap in sp's 64 KiB */
    mov bp, sp
    xor sp, sp
    push 0x55aa
    cmp sp, 0xfffe
    mov sp, bp
    EXPECT 'e'
    /* f: big offsets after a visit to protected mode ("unreal" mode) */
    lgdt [gdt_pointer]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp 1f
1:  mov cx, 8
    mov fs, cx
    and al, 0xfe
    mov cr0, eax
    jmp 1f
1:  mov eax, 0x100000
    mov dword ptr fs:[eax], 0x600df00d
    cmp dword ptr fs:[eax], 0x600df00d
    EXPECT 'f'
    /* g: loading a selector in real mode keeps the large limit */
    xor cx, cx
    mov fs, cx
    cmp dword ptr fs:[eax], 0x600df00d
    EXPECT 'g'
    /* h: A20 is on */
    mov byte ptr [0x500], 1
    mov ax, 0xffff
    mov es, ax
    mov byte ptr es:[0x510], 2
    cmp byte ptr [0x500], 1
    EXPECT 'h'
    /* i: #GP (13) beyond the limit: no error code in real mode */
    mov word ptr [13 * 4], offset on_gp
    mov word ptr [13 * 4 + 2], ds
    mov bx, 0
    mov eax, 0x10000
beyond:
    mov cl, [eax]
    nop
    cmp bx, 1
    EXPECT 'i'
    mov si, offset text_ok
    call say
    mov al, 0
leave:
    out 0xf4, al
    hlt
    jmp leave

failed:
    mov [text_letter], bl
    mov si, offset text_fail
    call say
    mov al, 1
    jmp leave

on_int:
    pushf
    pop word ptr [flags_seen]
    iret
on_divide:
    push bp
    mov bp, sp
    cmp word ptr [bp + 2], offset divide
    pop bp
    jne 1f
    mov cx, 1
1:  mov dx, 0
    iret
on_gp:
    push bp
    mov bp, sp
    cmp word ptr [bp + 2], offset beyond
    jne 1f
    mov bx, 1
1:  mov word ptr [bp + 2], offset beyond + 4
    pop bp
    iret

say:
    mov dx, 0x3fd
1:  in al, dx
    test al, 0x20
    jz 1b
    lodsb
    test al, al
    jz 2f
    mov dx, 0x3f8
    out dx, al
    jmp say
2:  ret

gdt:
    .quad 0
    .quad 0x00cf93000000ffff
gdt_pointer:
    .word 15
    .long gdt
flags_seen: .word 0
text_real: .asciz "real mode\n"
text_ok: .asciz "ok real mode\n"
text_fail: .ascii "FAIL real mode: case "
text_letter: .asciz "?\n"
    .org 510
    .word 0xaa55
