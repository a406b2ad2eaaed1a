/* SPDX-License-Identifier: Apache-2.0 */
/* PCIDs: what CR3 with or without bit 63, INVPCID of each type, INVLPG and CR4 must forget; faults.
 * Intel SDM (June 2025) Vol. 3A §5.10.1 (PCIDs), §5.10.4 (invalidation), Vol. 2A INVPCID.
 * Cases check only what must be forgotten; what may be kept is not asked.
 */
#include "guest.h"

    .macro POINT page /* the window's page 1 shows scratch page 0 or 1, by the table alone */
    mov rax, offset scratch + \page * 4096 + P + W + U
    mov [window_pt + 8], rax
    .endm
    .macro POINT_GLOBAL page
    mov rax, offset scratch + \page * 4096 + P + W + U + G
    mov [window_pt + 8], rax
    .endm
    .macro SWITCH pcid /* flushes this PCID */
    mov rax, offset pml4 + \pcid
    mov cr3, rax
    .endm
    .macro SWITCH_KEEP pcid /* bit 63: need not flush */
    mov rax, offset pml4 + \pcid
    bts rax, 63
    mov cr3, rax
    .endm
    .macro SEEN what, want
    mov rdx, WINDOW + 0x1000
    CHECK "\what", [rdx], \want
    .endm
    .macro FORGET type, pcid
    mov qword ptr [descriptor], \pcid
    mov rax, WINDOW + 0x1000
    mov [descriptor + 8], rax
    mov eax, \type
    invpcid rax, [descriptor]
    .endm

    .text
    .globl main
main:
    mov qword ptr [scratch], 100
    mov qword ptr [scratch + 4096], 101
    BEGIN "PCID"
    NEED_CPUID "PCID", 1, 0, ecx, 17, done
    mov rax, cr3
    bts rax, 63
    FAULT "bit 63 without PCIDE", GP, 0, ANY, mov cr3, rax
    mov rax, offset pml4 + 8
    mov cr3, rax
    mov rax, cr4
    bts rax, 17
    FAULT "PCIDE with CR3[11:0]", GP, 0, ANY, mov cr4, rax
    SWITCH 0
    SET_CR4 CR4_PCIDE
    POINT 0
    SWITCH 1
    SEEN "PCID 1", 100
    mov rax, cr3
    and eax, 0xfff
    CHECK "CR3 shows it", rax, 1
    POINT 1
    SWITCH 1
    SEEN "CR3 flushes its PCID", 101
    SWITCH 2
    SEEN "PCID 2", 101
    POINT 0
    SWITCH_KEEP 3
    SEEN "a PCID never used knows nothing", 100
    SWITCH_KEEP 2
    mov rdx, WINDOW + 0x1000
    invlpg [rdx]
    SEEN "INVLPG after a kept CR3", 100
    mov rax, cr3
    bt rax, 63
    setc al
    movzx eax, al
    CHECK "bit 63 reads 0", rax, 0
    SWITCH 1
    SEEN "flushed on the way back", 100
    /* An address kept through another space must still be right if the tables did not change. */
    mov ecx, 1000
1:  SWITCH_KEEP 2
    mov rdx, WINDOW + 0x1000
    mov rbx, [rdx]
    SWITCH_KEEP 1
    mov rdx, WINDOW + 0x1000
    add rbx, [rdx]
    cmp rbx, 200
    jne 2f
    loop 1b
2:  CHECK "a thousand switches", rcx, 0
    /* Different tables under different PCIDs. */
    lea rsi, [rip + pml4]
    lea rdi, [rip + other_pml4]
    mov ecx, 512
    rep movsq
    mov qword ptr [other_pml4 + 16], offset other_pdpt + 7
    mov qword ptr [other_pdpt], offset other_pd + 7
    mov qword ptr [other_pd], offset other_pt + 7
    mov qword ptr [other_pt + 8], offset scratch + 4096 + P + W + U
    mov ecx, 1000
1:  mov rax, offset other_pml4 + 5
    bts rax, 63
    mov cr3, rax
    mov rdx, WINDOW + 0x1000
    mov rbx, [rdx]
    SWITCH_KEEP 1
    mov rdx, WINDOW + 0x1000
    shl rbx, 32
    add rbx, [rdx]
    mov rax, 0x6500000064
    cmp rbx, rax
    jne 2f
    loop 1b
2:  CHECK "two spaces, a thousand switches", rcx, 0

    BEGIN "global pages"
    SET_CR4 CR4_PGE
    POINT_GLOBAL 0
    SWITCH 1
    mov rdx, WINDOW + 0x1000
    mov rax, [rdx]
    POINT_GLOBAL 1
    invlpg [rdx]
    SEEN "INVLPG forgets a global page", 101
    SWITCH_KEEP 2
    SEEN "under every PCID", 101
    POINT 0
    CLEAR_CR4 CR4_PGE
    SEEN "CR4.PGE forgets all PCIDs: 2", 100
    SWITCH_KEEP 1
    SEEN "CR4.PGE forgets all PCIDs: 1", 100

    BEGIN "INVPCID"
    NEED_CPUID "INVPCID", 7, 0, ebx, 10, no_invpcid
    SWITCH 2
    SEEN "2", 100
    SWITCH 1
    SEEN "1", 100
    POINT 1
    FORGET 0, 1
    SEEN "type 0: an address", 101
    FORGET 0, 2
    SWITCH_KEEP 2
    SEEN "type 0: an address of another PCID", 101
    POINT 0
    FORGET 1, 2
    SEEN "type 1: this PCID", 100
    FORGET 1, 1
    SWITCH_KEEP 1
    SEEN "type 1: another PCID", 100
    POINT 1
    FORGET 3, 0
    SEEN "type 3: all but global", 101
    SWITCH_KEEP 2
    SEEN "type 3: in the other PCID", 101
    SET_CR4 CR4_PGE
    POINT_GLOBAL 0
    FORGET 2, 0
    SEEN "type 2: all", 100
    POINT_GLOBAL 1
    FORGET 2, 0
    SEEN "type 2: global ones too", 101
    SWITCH_KEEP 1
    SEEN "type 2: in the other PCID", 101
    CLEAR_CR4 CR4_PGE
    mov eax, 4
    FAULT "type 4", GP, 0, ANY, invpcid rax, [descriptor]
    mov qword ptr [descriptor], 0x1000
    mov eax, 1
    FAULT "reserved bits of the descriptor", GP, 0, ANY, invpcid rax, [descriptor]
    mov qword ptr [descriptor], 1
    mov rax, 0x800000000000
    mov [descriptor + 8], rax
    mov eax, 0
    FAULT "type 0: not canonical", GP, 0, ANY, invpcid rax, [descriptor]
    mov eax, 1
    NOFAULT "type 1 does not look at the address", invpcid rax, [descriptor]
    USER_FAULT "at CPL 3", GP, 0, ANY, invpcid rax, [rip + descriptor]
    SWITCH 0
    CLEAR_CR4 CR4_PCIDE
    mov qword ptr [descriptor], 0
    mov eax, 2
    NOFAULT "without PCIDE", invpcid rax, [descriptor]
    mov qword ptr [descriptor], 1
    mov qword ptr [descriptor + 8], 0
    mov eax, 1
    FAULT "a PCID without PCIDE", GP, 0, ANY, invpcid rax, [descriptor]
    jmp finish
no_invpcid:
    SWITCH 0
    CLEAR_CR4 CR4_PCIDE
done:
    jmp finish

    .data
    .balign 16
descriptor: .quad 0, 0
    .section .pages, "aw", @nobits
    .balign 4096
other_pml4: .skip 4096
other_pdpt: .skip 4096
other_pd: .skip 4096
other_pt: .skip 4096
