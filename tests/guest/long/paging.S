/* SPDX-License-Identifier: Apache-2.0 */
/* 4-level paging: permissions at every level, error codes, reserved bits, accessed and dirty bits,
 * large pages, SMEP, SMAP, what INVLPG, CR3 and CR4.PGE must forget.
 * Intel SDM (June 2025) Vol. 3A §5.5 (4-level paging), §5.6 (access rights), §5.7 (page-fault
 * exceptions), §5.8 (A and D flags), §5.10 (caching). Not tested: what a TLB may, but need not,
 * keep.
 * Read-modify-write accesses fault as writes (seen on Zen 5, in user mode).
 *
 * qemu deviates: not present: read-modify-write -- faults as a read
 * qemu deviates: not present: lock cmpxchg -- likewise
 * qemu deviates: not present: bts -- likewise
 * qemu deviates: reserved bits: -- P is clear in the error code
 * qemu deviates: 1-GiB pages: bit 13 -- likewise
 * qemu deviates: addresses that are not canonical: across the edge -- checks the first byte only
 * qemu deviates: addresses that are not canonical: by rbp -- #GP, §7.15 says #SS
 * qemu deviates: addresses that are not canonical: push -- likewise
 * qemu deviates: control registers: -- accepts every value
 * qemu dies: of the values it accepts
 */
#include "guest.h"

    .macro KFAULT what, err, insn:vararg /* rdx: the page */
    FAULT "\what", PF, \err, WINDOW+0x1010, \insn
    .endm
    .macro UFAULT what, err, insn:vararg
    USER_FAULT "\what", PF, \err, WINDOW+0x1010, \insn
    .endm
    /* The instruction fetch itself faults: rip is the target. */
    .macro FETCH_FAULT what, err
    TRY .Lafter\@
    jmp rdx
.Lafter\@:
    CAUGHT "\what", PF, \err, WINDOW+0x1010, WINDOW+0x1010
    .endm
    .macro USER_FETCH_FAULT what, err
    TRY .Lafter\@
    ENTER_USER .Lat\@
.Lat\@:
    jmp rdx
.Lafter\@:
    CAUGHT "\what", PF, \err, WINDOW+0x1010, WINDOW+0x1010
    .endm
    .macro FETCH_OK what
    TRY .Lafter\@
    jmp rdx
.Lafter\@:
    CAUGHT "\what", 0x21, NOERR, WINDOW+0x1012, ANY
    .endm
    .macro MAP flags /* page 1 of the window to scratch */
    MAP_PAGE 1, "offset scratch", \flags
    mov rdx, WINDOW + 0x1010
    .endm
    .macro FLAGS_OF level, want, what
    mov rax, [\level]
    and rax, A_ | D
    CHECK "\what", rax, \want
    .endm
    .macro FORGET_AD
    and byte ptr [pml4 + 16], ~A_
    and byte ptr [window_pdpt], ~A_
    and byte ptr [window_pd], ~A_
    and byte ptr [window_pt + 8], ~(A_ | D)
    mov rax, cr3
    mov cr3, rax
    .endm
    .macro FLUSH
    mov rax, cr3
    mov cr3, rax
    .endm

    .text
    .globl main
main:
    mov word ptr [scratch + 0x10], 0x21cd /* int 0x21 */
    mov word ptr [scratch + 0x1010], 0x22cd /* int 0x22 */
    mov byte ptr [idt + 0x21 * 16 + 5], 0xee
    BEGIN "not present"
    MAP 0
    KFAULT "read", 0, mov al, [rdx]
    KFAULT "write", ERR_W, mov [rdx], al
    KFAULT "read-modify-write", ERR_W, inc byte ptr [rdx]
    KFAULT "lock cmpxchg", ERR_W, lock cmpxchg [rdx], rbx
    FETCH_FAULT "fetch", ERR_I
    UFAULT "user read", ERR_U, mov al, [rdx]
    UFAULT "user write", ERR_U|ERR_W, mov [rdx], al
    USER_FETCH_FAULT "user fetch", ERR_U|ERR_I
    KFAULT "bit test", 0, bt dword ptr [rdx], 3
    KFAULT "bts", ERR_W, bts dword ptr [rdx], 3
    SET_CR4 CR4_OSFXSR
    KFAULT "sse read", 0, movups xmm0, [rdx]
    KFAULT "sse write", ERR_W, movups [rdx], xmm0
    KFAULT "x87 write", ERR_W, fnstcw [rdx]
    KFAULT "push from", 0, push qword ptr [rdx]
    KFAULT "pop to", ERR_W, pop qword ptr [rdx]
    KFAULT "jmp through", 0, jmp qword ptr [rdx]
    NOFAULT "prefetch", prefetcht0 [rdx]

    BEGIN "permissions of the last level"
    MAP P
    NOFAULT "supervisor read", mov al, [rdx]
    KFAULT "supervisor write, WP", ERR_W|ERR_P, mov [rdx], al
    KFAULT "cmpxchg that would fail writes too", ERR_W|ERR_P, cmpxchg [rdx], bl
    CLEAR_CR0 CR0_WP
    NOFAULT "supervisor write, no WP", mov byte ptr [rdx + 8], 1
    SET_CR0 CR0_WP
    KFAULT "supervisor write, WP again", ERR_W|ERR_P, mov [rdx], al
    UFAULT "user read of supervisor page", ERR_U|ERR_P, mov al, [rdx]
    UFAULT "user write of supervisor page", ERR_U|ERR_P|ERR_W, mov [rdx], al
    USER_FETCH_FAULT "user fetch of supervisor page", ERR_U|ERR_P|ERR_I
    FETCH_OK "supervisor fetch"
    MAP P|U
    USER_NOFAULT "user read", mov al, [rdx]
    UFAULT "user write", ERR_U|ERR_P|ERR_W, mov [rdx], al
    CLEAR_CR0 CR0_WP
    UFAULT "user write, no WP", ERR_U|ERR_P|ERR_W, mov [rdx], al
    SET_CR0 CR0_WP
    MAP P|U|W
    USER_NOFAULT "user write allowed", mov [rdx + 8], al
    MAP P|U|W|NX
    FETCH_FAULT "supervisor fetch, NX", ERR_P|ERR_I
    USER_FETCH_FAULT "user fetch, NX", ERR_U|ERR_P|ERR_I
    USER_NOFAULT "user read, NX", mov al, [rdx]

    BEGIN "permissions of upper levels"
    MAP P|U|W
    and byte ptr [window_pd], ~W
    FLUSH
    KFAULT "W of the PDE", ERR_W|ERR_P, mov [rdx], al
    or byte ptr [window_pd], W
    and byte ptr [window_pdpt], ~U
    FLUSH
    UFAULT "U of the PDPTE", ERR_U|ERR_P, mov al, [rdx]
    or byte ptr [window_pdpt], U
    or byte ptr [pml4 + 23], 0x80
    FLUSH
    FETCH_FAULT "NX of the PML4E", ERR_P|ERR_I
    and byte ptr [pml4 + 23], 0x7f
    and byte ptr [pml4 + 16], ~P
    FLUSH
    KFAULT "P of the PML4E", 0, mov al, [rdx]
    or byte ptr [pml4 + 16], P
    and byte ptr [window_pdpt], ~P
    FLUSH
    KFAULT "P of the PDPTE", ERR_W, mov [rdx], al
    or byte ptr [window_pdpt], P
    FLUSH
    USER_NOFAULT "all as before", mov [rdx + 8], al

    BEGIN "reserved bits"
    MAP P|U|W|(1<<51)
    KFAULT "read", ERR_RSVD|ERR_P, mov al, [rdx]
    KFAULT "write", ERR_RSVD|ERR_P|ERR_W, mov [rdx], al
    UFAULT "user read", ERR_RSVD|ERR_P|ERR_U, mov al, [rdx]
    FETCH_FAULT "fetch", ERR_RSVD|ERR_P|ERR_I
    MAP (1<<51)
    KFAULT "not present comes first", 0, mov al, [rdx]
    MAP P|U|W
    or byte ptr [pml4 + 16], PS
    FLUSH
    KFAULT "PS of the PML4E", ERR_RSVD|ERR_P, mov al, [rdx]
    and byte ptr [pml4 + 16], ~PS
    or byte ptr [window_pdpt + 6], 8
    FLUSH
    KFAULT "bit 51 of the PDPTE", ERR_RSVD|ERR_P, mov al, [rdx]
    and byte ptr [window_pdpt + 6], ~8
    mov ecx, IA32_EFER
    rdmsr
    and eax, ~EFER_NXE
    wrmsr
    MAP P|U|W|NX
    KFAULT "bit 63 without NXE", ERR_RSVD|ERR_P, mov al, [rdx]
    MAP 0
    FETCH_FAULT "no I in the error code without NXE and SMEP", 0
    mov ecx, IA32_EFER
    rdmsr
    or eax, EFER_NXE
    wrmsr
    mov rdx, WINDOW + 0x1010
    mov qword ptr [window_pd], 0x2000 | PS | P | U | W
    FLUSH
    KFAULT "bit 13 of a 2-MiB page", ERR_RSVD|ERR_P, mov al, [rdx]
    mov qword ptr [window_pd], offset window_pt + 7
    FLUSH

    BEGIN "accessed and dirty bits"
    MAP P|U|W
    FORGET_AD
    mov al, [rdx]
    FLAGS_OF pml4+16, A_, "read: PML4E"
    FLAGS_OF window_pdpt, A_, "read: PDPTE"
    FLAGS_OF window_pd, A_, "read: PDE"
    FLAGS_OF window_pt+8, A_, "read: PTE"
    mov [rdx + 8], al
    FLAGS_OF window_pt+8, A_|D, "write after read: PTE"
    FLAGS_OF window_pd, A_, "write: PDE has no D"
    FORGET_AD
    mov [rdx + 8], al
    FLAGS_OF window_pt+8, A_|D, "write: PTE"
    FORGET_AD
    lock or dword ptr [rdx + 8], 0
    FLAGS_OF window_pt+8, A_|D, "locked or"
    FORGET_AD
    mov eax, 1
    lock cmpxchg [rdx + 0x20], ebx
    FLAGS_OF window_pt+8, A_|D, "cmpxchg that fails"
    FORGET_AD
    FETCH_OK "fetch"
    FLAGS_OF window_pt+8, A_, "fetch: PTE"
    MAP P|U
    KFAULT "write that faults", ERR_W|ERR_P, mov [rdx], al
    mov rax, [window_pt + 8]
    and rax, D
    CHECK "sets no D", rax, 0
    MAP P|U|W
    mov [rdx + 8], al
    mov byte ptr [window_pt + 8], P|U|W|A_ /* D by software off, flush, write again */
    invlpg [rdx]
    mov [rdx + 8], al
    FLAGS_OF window_pt+8, A_|D, "D comes back after INVLPG"

    BEGIN "what must be forgotten"
    MAP P|U|W
    mov ax, [rdx]
    MAP_PAGE 1, "offset scratch + 0x1000", P|U|W
    CHECK "INVLPG", [rdx], [scratch+0x1010]
    mov ax, [rdx]
    mov rax, offset scratch + P + U + W
    mov [window_pt + 8], rax
    FLUSH
    CHECK "CR3", [rdx], [scratch+0x10]
    mov dword ptr [window_pt + 8], 0
    invlpg [rdx + 0xfef]
    KFAULT "INVLPG of another address of the page", 0, mov al, [rdx]
    mov rax, offset scratch + P + U
    mov [window_pt + 8], rax
    NOFAULT "what was not present needs no INVLPG", mov al, [rdx]
    KFAULT "read-only", ERR_W|ERR_P, mov [rdx], al
    or byte ptr [window_pt + 8], W
    NOFAULT "a fault forgets its page", mov [rdx + 8], al
    SET_CR4 CR4_PGE
    MAP P|U|W|G
    mov al, [rdx]
    mov rax, offset scratch + 0x1000 + P + U + W + G
    mov [window_pt + 8], rax
    invlpg [rdx]
    CHECK "INVLPG of a global page", [rdx], [scratch+0x1010]
    mov rax, offset scratch + P + U + W + G
    mov [window_pt + 8], rax
    CLEAR_CR4 CR4_PGE
    CHECK "CR4.PGE 1 to 0", [rdx], [scratch+0x10]
    mov rax, offset scratch + 0x1000 + P + U + W + G
    mov [window_pt + 8], rax
    SET_CR4 CR4_PGE
    CHECK "CR4.PGE 0 to 1", [rdx], [scratch+0x1010]
    CLEAR_CR4 CR4_PGE
    MAP P|U|W
    mov byte ptr [rdx + 8], 1
    mov byte ptr [window_pt + 8], P|U
    FLUSH
    KFAULT "CR3 forgets a writable translation", ERR_W|ERR_P, mov [rdx], al

    call large_pages
    call smep_smap
    call boundaries
    jmp finish

large_pages:
    BEGIN "2-MiB pages"
    mov byte ptr [0x400000 + 0x345678 - 0x200000], 0x5a
    mov rdx, WINDOW + 0x345678 - 0x200000
    mov qword ptr [window_pd], 0x400000 | PS | P | U | W
    FLUSH
    movzx rax, byte ptr [rdx]
    CHECK "offset", rax, 0x5a
    FLAGS_OF window_pd, A_, "A"
    mov [rdx], al
    FLAGS_OF window_pd, A_|D, "D"
    mov qword ptr [window_pd], 0x600000 | PS | P | U
    invlpg [rdx + 0x1000]
    mov byte ptr [0x600000 + 0x345678 - 0x200000], 0xa5
    movzx rax, byte ptr [rdx]
    CHECK "INVLPG of another address in it", rax, 0xa5
    FAULT "write", PF, ERR_P|ERR_W, WINDOW+0x145678, mov [rdx], al
    mov rax, 0x600000 | PS | P | W
    mov [window_pd], rax
    FLUSH
    USER_FAULT "user", PF, ERR_P|ERR_U, WINDOW+0x145678, mov al, [rdx]
    mov qword ptr [window_pd], offset window_pt + 7
    FLUSH

    BEGIN "1-GiB pages"
    mov eax, 0x80000001
    cpuid
    bt edx, 26
    jc 1f
    ret
1:  mov rdx, WINDOW + 0x345678
    mov byte ptr [0x345678], 0x77
    mov qword ptr [window_pdpt], PS | P | U | W
    FLUSH
    movzx rax, byte ptr [rdx]
    CHECK "offset", rax, 0x77
    mov [rdx], al
    FLAGS_OF window_pdpt, A_|D, "A and D"
    mov qword ptr [window_pdpt], 0x2000 | PS | P | U | W
    FLUSH
    FAULT "bit 13", PF, ERR_P|ERR_RSVD, WINDOW+0x345678, mov al, [rdx]
    mov qword ptr [window_pdpt], offset window_pd + 7
    FLUSH
    ret

smep_smap:
    MAP P|U|W
    BEGIN "SMEP"
    NEED_CPUID "SMEP", 7, 0, ebx, 7, 1f
    mov rdx, WINDOW + 0x1010
    FETCH_OK "user page, SMEP off"
    SET_CR4 CR4_SMEP
    FETCH_FAULT "user page", ERR_P|ERR_I
    NOFAULT "data", mov al, [rdx]
    MAP P|W
    FETCH_OK "supervisor page"
    MAP P|U|W
    and byte ptr [window_pdpt], ~U
    FLUSH
    FETCH_OK "supervisor page by an upper level"
    or byte ptr [window_pdpt], U
    FLUSH
    TRY 2f
    ENTER_USER 3f
3:  jmp rdx
2:  CAUGHT "CPL 3 may", 0x21, NOERR, WINDOW+0x1012, ANY
    CLEAR_CR4 CR4_SMEP
1:  MAP P|U|W
    BEGIN "SMAP"
    NEED_CPUID "SMAP", 7, 0, ebx, 20, 1f
    mov rdx, WINDOW + 0x1010
    NOFAULT "SMAP off", mov al, [rdx]
    SET_CR4 CR4_SMAP
    KFAULT "read", ERR_P, mov al, [rdx]
    KFAULT "write", ERR_P|ERR_W, mov [rdx], al
    KFAULT "CLAC", ERR_P, mov al, [rdx]
    stac
    NOFAULT "STAC", mov al, [rdx]
    NOFAULT "STAC, write", mov [rdx + 8], al
    clac
    KFAULT "CLAC again", ERR_P|ERR_W, mov [rdx], al
    FETCH_OK "no concern of fetches"
    USER_NOFAULT "CPL 3", mov al, [rdx]
    CLEAR_CR0 CR0_WP
    KFAULT "without WP, write", ERR_P|ERR_W, mov [rdx], al
    SET_CR0 CR0_WP
    MAP P|U
    stac
    KFAULT "AC does not give W", ERR_P|ERR_W, mov [rdx], al
    clac
    MAP P|W
    NOFAULT "supervisor page", mov [rdx + 8], al
    USER_FAULT "STAC at CPL 3", UD, NOERR, ANY, stac
    USER_FAULT "CLAC at CPL 3", UD, NOERR, ANY, clac
    CLEAR_CR4 CR4_SMAP
1:  ret

boundaries:
    BEGIN "page boundaries"
    MAP_PAGE 1, "offset scratch", P|U|W
    MAP_PAGE 2, 0, 0
    MAP_PAGE 3, "offset scratch + 0x1000", P|U|W
    mov rdx, WINDOW + 0x1ffe
    FAULT "read: cr2 is in the second page", PF, 0, WINDOW+0x2000, mov eax, [rdx]
    FAULT "write: cr2 is in the second page", PF, ERR_W, WINDOW+0x2000, mov [rdx], eax
    mov rdx, WINDOW + 0x2ffe
    FAULT "read: cr2 is in the first page", PF, 0, WINDOW+0x2ffe, mov eax, [rdx]
    mov word ptr [scratch + 0xffe], 0xb848 /* mov rax, imm64 */
    mov rdx, WINDOW + 0x1ffe
    TRY 1f
    jmp rdx
1:  CAUGHT "an instruction's second page", PF, ERR_I, WINDOW+0x1ffe, WINDOW+0x2000
    mov byte ptr [scratch + 0xfff], 0x90
    TRY 1f
    jmp rdx
1:  CAUGHT "the next instruction", PF, ERR_I, WINDOW+0x2000, WINDOW+0x2000

    BEGIN "addresses that are not canonical"
    mov rdx, 0x800000000000
    FAULT "read", GP, 0, ANY, mov al, [rdx]
    FAULT "write", GP, 0, ANY, mov [rdx], al
    mov rdx, 0x7ffffffffffc
    FAULT "across the edge", GP, 0, ANY, mov rax, [rdx]
    mov rbp, 0x800000000000
    FAULT "by rbp", SS_, 0, ANY, mov al, [rbp]
    mov rdx, 0x800000000000
    TRY 1f
    jmp rdx
1:  CAUGHT "jmp", GP, 0, ANY, ANY
    mov rcx, rsp
    mov byte ptr [idt + SS_ * 16 + 4], 1
    mov byte ptr [idt + GP * 16 + 4], 1
    TRY 1f
    mov rsp, 0x800000001000
2:  push rax
1:  mov rsp, rcx
    CAUGHT "push", SS_, 0, 2b, ANY
    mov byte ptr [idt + SS_ * 16 + 4], 0
    mov byte ptr [idt + GP * 16 + 4], 0
    NOFAULT "invlpg", invlpg [rdx]

    BEGIN "control registers"
    mov rax, cr3
    bts rax, 51
    FAULT "CR3 bit 51", GP, 0, ANY, mov cr3, rax
    mov rax, cr0
    btr rax, 0
    FAULT "PG without PE", GP, 0, ANY, mov cr0, rax
    mov rax, cr0
    bts rax, 29
    FAULT "NW without CD", GP, 0, ANY, mov cr0, rax
    mov rax, cr0
    bts rax, 32
    FAULT "CR0 bit 32", GP, 0, ANY, mov cr0, rax
    mov rax, cr4
    btr rax, 5
    FAULT "no PAE in long mode", GP, 0, ANY, mov cr4, rax
    mov rax, cr4
    bts rax, 31
    FAULT "CR4 bit 31", GP, 0, ANY, mov cr4, rax
    mov rax, cr4
    bts rax, 32
    FAULT "CR4 bit 32", GP, 0, ANY, mov cr4, rax
    mov rax, 16
    FAULT "CR8 bit 4", GP, 0, ANY, mov cr8, rax
    mov rax, 0
    FAULT "CR1", UD, NOERR, ANY, .byte 0x0f, 0x20, 0xc8
    FAULT "CR5", UD, NOERR, ANY, .byte 0x0f, 0x20, 0xe8
    mov rax, cr0
    btr rax, 31
    FAULT "PG off in 64-bit code", GP, 0, ANY, mov cr0, rax
    mov ecx, IA32_EFER
    rdmsr
    btr eax, 8
    FAULT "LME while paging", GP, 0, ANY, wrmsr
    rdmsr
    bts eax, 1
    FAULT "EFER bit 1", GP, 0, ANY, wrmsr
    mov rax, cr3
    mov rbx, 5
    mov cr2, rbx
    mov rcx, cr2
    CHECK "CR2 is a register", rcx, 5
    ret
