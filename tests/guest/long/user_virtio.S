/* SPDX-License-Identifier: Apache-2.0 */
/* virtio-rng driven from CPL 3: a driver that negotiates, sets its queue up, offers buffers, rings
 * the doorbell and polls the used ring, with the device's registers mapped for it. CPL 0 finds the
 * function and its capabilities.
 * Skipped on a machine that has none.
 * Virtual I/O Device 1.2 §3.1.1 (initialization), §4.1.4 (PCI layout), §2.7 (split virtqueues),
 * §5.4.
 *
 * doppel: --rng
 * qemu: -device virtio-rng-pci,disable-legacy=on
 * kvm: kvm-ring3
 */
#include "guest.h"

#define RNG 0x10441af4 /* device and vendor */
#define BAR 0xd0000000
#define BUFFERS 8
#define BUFFER_BYTES 64
#define DESCRIPTORS offset scratch
#define AVAILABLE offset scratch + 0x1000
#define USED offset scratch + 0x2000
#define BUFFER offset scratch + 0x3000
/* common configuration */
#define DRIVER_FEATURE_SELECT 8
#define DRIVER_FEATURE 12
#define STATUS 20
#define QUEUE_SELECT 22
#define QUEUE_SIZE 24
#define QUEUE_ENABLE 28
#define QUEUE_NOTIFY_OFF 30
#define QUEUE_DESC 32
#define QUEUE_DRIVER 40
#define QUEUE_DEVICE 48

    .text
    .globl main
main:
    OUTB 0x21, 0xff
    OUTB 0xa1, 0xff
    BEGIN "PCI function"
    call find_function
    cmp eax, RNG
    je 1f
    push offset no_device
    call say_skipped
    ret
1:  call find_structures
    mov eax, [common]
    or eax, [notify]
    cmp eax, -1
    setne al
    movzx eax, al
    CHECK "its structures", rax, 1
    cmp eax, 1
    jne finish
    mov eax, BAR /* 16 pages of it for CPL 3 */
    mov edi, offset window_pt
    mov ecx, 16
1:  mov ebx, eax
    or ebx, P + W + U + PCD
    mov [rdi], rbx
    add eax, 4096
    add edi, 8
    loop 1b
    mov rax, cr3
    mov cr3, rax

    BEGIN "driver"
    TRY 9f
    ENTER_USER 1f
1:  mov rbp, USER_BASE
    mov r8, WINDOW
    mov eax, [rbp + common]
    add r8, rax /* r8: common configuration */
    xor r12d, r12d /* buffers that came back */
    xor r13d, r13d /* their bytes */
    mov byte ptr [r8 + STATUS], 0
2:  cmp byte ptr [r8 + STATUS], 0
    jne 2b
    mov byte ptr [r8 + STATUS], 1
    mov byte ptr [r8 + STATUS], 3
    mov dword ptr [r8 + DRIVER_FEATURE_SELECT], 0
    mov dword ptr [r8 + DRIVER_FEATURE], 0
    mov dword ptr [r8 + DRIVER_FEATURE_SELECT], 1
    mov dword ptr [r8 + DRIVER_FEATURE], 1 /* VIRTIO_F_VERSION_1 */
    mov byte ptr [r8 + STATUS], 0x0b
    movzx r14d, byte ptr [r8 + STATUS]
    cmp r14d, 0x0b
    jne 8f
    mov word ptr [r8 + QUEUE_SELECT], 0
    mov word ptr [r8 + QUEUE_SIZE], BUFFERS
    mov rax, DESCRIPTORS
    mov [r8 + QUEUE_DESC], eax
    mov dword ptr [r8 + QUEUE_DESC + 4], 0
    mov rax, AVAILABLE
    mov [r8 + QUEUE_DRIVER], eax
    mov dword ptr [r8 + QUEUE_DRIVER + 4], 0
    mov rax, USED
    mov [r8 + QUEUE_DEVICE], eax
    mov dword ptr [r8 + QUEUE_DEVICE + 4], 0
    movzx r9d, word ptr [r8 + QUEUE_NOTIFY_OFF]
    imul r9d, [rbp + multiplier]
    add r9d, [rbp + notify]
    mov rax, WINDOW
    add r9, rax /* r9: the doorbell */
    mov word ptr [r8 + QUEUE_ENABLE], 1
    mov byte ptr [r8 + STATUS], 0x0f

    xor ebx, ebx
3:  mov rdi, rbx /* descriptor rbx: buffer rbx, for the device to write */
    shl edi, 4
    mov rax, DESCRIPTORS
    add rdi, rax
    add rdi, rbp
    mov rax, rbx
    imul eax, eax, BUFFER_BYTES
    mov rcx, BUFFER
    add rax, rcx
    mov [rdi], rax
    mov dword ptr [rdi + 8], BUFFER_BYTES
    mov dword ptr [rdi + 12], 2
    mov rsi, AVAILABLE
    add rsi, rbp
    mov [rsi + 4 + rbx * 2], bx
    lea eax, [rbx + 1]
    mov [rsi + 2], ax
    mfence
    mov word ptr [r9], 0
    mov rsi, USED
    add rsi, rbp
    mov rcx, 2000000000
4:  movzx edx, word ptr [rsi + 2]
    cmp edx, eax
    je 5f
    pause
    dec rcx
    jnz 4b
    jmp 8f
5:  inc r12d
    add r13d, [rsi + 4 + rbx * 8 + 4]
    inc ebx
    cmp ebx, BUFFERS
    jne 3b
8:  ud2 /* leaves CPL 3 */
9:  CAUGHT "back from CPL 3", UD, NOERR, ANY, ANY
    CHECK "features", r14, 0x0b
    CHECK "buffers used", r12, BUFFERS
    CHECK "bytes", r13, BUFFERS*BUFFER_BYTES

    BEGIN "random bytes"
    mov rsi, BUFFER
    xor eax, eax
    xor ebx, ebx
1:  mov rdx, [rsi + rbx * 8] /* no two words of eight bytes are the same */
    mov rcx, rbx
2:  inc ecx
    cmp ecx, BUFFERS * BUFFER_BYTES / 8
    jae 3f
    cmp rdx, [rsi + rcx * 8]
    jne 2b
    inc eax
    jmp 2b
3:  inc ebx
    cmp ebx, BUFFERS * BUFFER_BYTES / 8
    jb 1b
    CHECK "words that are twice there", rax, 0
    ret

    /* Register ebx of the function into eax; eax into it. */
read_config:
    push rdx
    mov eax, [function]
    add eax, ebx
    and eax, 0xfffffffc
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    in eax, dx
    pop rdx
    ret
write_config:
    push rdx
    push rax
    mov eax, [function]
    add eax, ebx
    mov dx, 0xcf8
    out dx, eax
    pop rax
    mov dx, 0xcfc
    out dx, eax
    pop rdx
    ret

    /* eax: RNG when it is on bus 0; decodes memory and masters the bus then. */
find_function:
    mov dword ptr [function], 0x80000000
1:  xor ebx, ebx
    call read_config
    cmp eax, RNG
    je 2f
    add dword ptr [function], 0x800
    cmp dword ptr [function], 0x80010000
    jb 1b
    xor eax, eax
    ret
2:  mov ebx, 0x10
    mov r12d, 6
3:  call read_config /* the first BAR that decodes memory is the one with the structures */
    mov ecx, eax
    test cl, 1
    jnz 4f
    mov eax, 0xffffffff
    call write_config
    call read_config
    xchg eax, ecx
    call write_config /* as it was */
    mov eax, ecx
    and eax, 0xfffffff0
    jz 4f
    cmp eax, 0xffffc000 /* 16 KiB or more: not a table of vectors */
    ja 4f
    mov eax, BAR
    call write_config
    mov eax, ebx
    sub eax, 0x10
    shr eax, 2
    mov [bar_number], eax
    and ecx, 6
    cmp ecx, 4
    jne 5f
    add ebx, 4
    xor eax, eax
    call write_config
    jmp 5f
4:  add ebx, 4
    dec r12d
    jnz 3b
5:  mov ebx, 4
    mov eax, 6
    call write_config
    mov eax, RNG
    ret

    /* Vendor capabilities 1 (common) and 2 (notify): offsets into the BAR. */
find_structures:
    mov dword ptr [common], -1
    mov dword ptr [notify], -1
    mov ebx, 0x34
    call read_config
    movzx ebx, al
1:  test ebx, ebx
    jz 4f
    call read_config
    mov ecx, eax /* id, next, length, type */
    cmp cl, 9
    jne 3f
    push rbx
    add ebx, 4
    call read_config
    movzx edx, al
    cmp edx, [bar_number]
    jne 2f
    add ebx, 4
    call read_config
    mov edx, ecx
    shr edx, 24
    cmp edx, 1
    jne 5f
    mov [common], eax
5:  cmp edx, 2
    jne 2f
    mov [notify], eax
    add ebx, 8
    call read_config
    mov [multiplier], eax
2:  pop rbx
3:  movzx ebx, ch
    jmp 1b
4:  ret

    .section .rodata
no_device: .asciz "virtio-rng"

    .bss
    .balign 8
function: .skip 8
bar_number: .skip 8
common: .skip 8
notify: .skip 8
multiplier: .skip 8
