/* SPDX-License-Identifier: Apache-2.0 */
/* 32-bit paging with 4-KiB and 4-MiB pages, then PAE paging: permissions, error codes, A and D,
 * reserved bits, NX, PDPTE registers loaded by CR3. Switching between the formats.
 * Intel SDM (June 2025) Vol. 3A §5.3 (32-bit paging), §5.4 (PAE paging), §5.7.
 *
 * qemu deviates: 4-MiB pages: bit 21 -- P is clear in the error code
 * qemu deviates: PAE paging: bit -- likewise
 * qemu deviates: PAE paging: PDPTE -- has no PDPTE registers
 */
#include "guest.h"

#define VIEW 0x00c00000 /* 12 MiB: what the cases map; page 0 of it is `scratch` */

    .section .pages, "aw", @nobits
    .balign 4096
directory: .skip 4096
table: .skip 4096
pae_pointers: .skip 4096
pae_directory: .skip 4 * 4096
pae_table: .skip 4096

    .macro FLUSH
    mov eax, cr3
    mov cr3, eax
    .endm
    .macro KFAULT what, err, insn:vararg
    FAULT "\what", PF, \err, VIEW+0x10, \insn
    .endm
    .macro UFAULT what, err, insn:vararg
    USER_FAULT "\what", PF, \err, VIEW+0x10, \insn
    .endm
    .macro FETCH_FAULT what, err
    TRY .Lafter\@
    jmp edx
.Lafter\@:
    CAUGHT "\what", PF, \err, VIEW+0x10, VIEW+0x10
    .endm
    .macro FETCH_OK what
    TRY .Lafter\@
    jmp edx
.Lafter\@:
    CAUGHT "\what", 0x21, NOERR, VIEW+0x12, ANY
    .endm
    .macro MAP flags
    mov eax, offset scratch
    or eax, \flags
    mov [table], eax
    mov edx, VIEW + 0x10
    invlpg [edx]
    .endm
    .macro MAP_PAE flags, high=0
    mov eax, offset scratch
    or eax, \flags
    mov [pae_table], eax
    mov dword ptr [pae_table + 4], \high
    mov edx, VIEW + 0x10
    invlpg [edx]
    .endm
    .macro AD_OF what, entry, want
    mov eax, [\entry]
    and eax, A_ | D
    CHECK "\what", eax, \want
    .endm

    .text
    .globl main
main:
    mov word ptr [scratch + 0x10], 0x21cd /* int 0x21 */
    SET_CR4 CR4_PSE
    mov edi, offset directory
    mov eax, PS | P | W | U /* identity by 4-MiB pages; CPL 3 needs its code and stack */
    mov ecx, 1024
1:  mov [edi], eax
    add edi, 4
    add eax, 0x400000
    loop 1b
    mov dword ptr [directory + (VIEW >> 22) * 4], offset table + 7
    mov eax, offset directory
    mov cr3, eax
    SET_CR0 CR0_PG|CR0_WP
    BEGIN "32-bit paging"
    MAP 0
    KFAULT "not present, read", 0, mov al, [edx]
    KFAULT "not present, write", ERR_W, mov [edx], al
    FETCH_FAULT "not present, fetch: no I without NX", 0
    UFAULT "not present, user write", ERR_W|ERR_U, mov [edx], al
    MAP P
    KFAULT "read-only", ERR_P|ERR_W, mov [edx], al
    UFAULT "supervisor page", ERR_P|ERR_U, mov al, [edx]
    CLEAR_CR0 CR0_WP
    NOFAULT "read-only without WP", mov [edx + 4], al
    SET_CR0 CR0_WP
    MAP P|W|U
    USER_NOFAULT "all allowed", mov [edx + 4], al
    and byte ptr [directory + (VIEW >> 22) * 4], ~U
    FLUSH
    UFAULT "U of the PDE", ERR_P|ERR_U, mov al, [edx]
    mov dword ptr [directory + (VIEW >> 22) * 4], offset table + P + U
    FLUSH
    KFAULT "W of the PDE", ERR_P|ERR_W, mov [edx], al
    mov dword ptr [directory + (VIEW >> 22) * 4], offset table + 7
    FLUSH
    MAP P|W|U
    mov al, [edx]
    AD_OF "read sets A", table, A_
    AD_OF "in the PDE too", directory+(VIEW>>22)*4, A_
    mov [edx + 4], al
    AD_OF "write sets D", table, A_|D
    BEGIN "4-MiB pages"
    mov dword ptr [directory + (VIEW >> 22) * 4], 0x800000 | PS | P | W | U
    FLUSH
    mov dword ptr [0x812344], 0x1234
    mov eax, [VIEW + 0x12344]
    CHECK "offset", eax, 0x1234
    mov [VIEW + 0x12344], eax
    AD_OF "A and D", directory+(VIEW>>22)*4, A_|D
    mov edx, VIEW + 0x10
    mov dword ptr [directory + (VIEW >> 22) * 4], 0xa00000 | PS | P | W | U
    FLUSH
    KFAULT "bit 21 is reserved", ERR_P|ERR_RSVD, mov al, [edx]
    CLEAR_CR0 CR0_PG
    FLUSH

    BEGIN "PAE paging"
    mov edi, offset pae_directory
    mov eax, PS | P | W | U
    mov ecx, 2048
1:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add edi, 8
    add eax, 0x200000
    loop 1b
    mov dword ptr [pae_directory + (VIEW >> 21) * 8], offset pae_table + 7
    mov dword ptr [pae_pointers], offset pae_directory + P
    mov dword ptr [pae_pointers + 8], offset pae_directory + 0x1000 + P
    mov dword ptr [pae_pointers + 16], offset pae_directory + 0x2000 + P
    mov dword ptr [pae_pointers + 24], offset pae_directory + 0x3000 + P
    SET_CR4 CR4_PAE
    mov eax, offset pae_pointers
    mov cr3, eax
    SET_CR0 CR0_PG
    MAP_PAE 0
    KFAULT "not present, write", ERR_W, mov [edx], al
    MAP_PAE P
    KFAULT "read-only", ERR_P|ERR_W, mov [edx], al
    UFAULT "supervisor page", ERR_P|ERR_U, mov al, [edx]
    MAP_PAE P|W|U
    USER_NOFAULT "all allowed", mov [edx + 4], al
    AD_OF "A and D", pae_table, A_|D
    AD_OF "A in the PDE", pae_directory+(VIEW>>21)*8, A_
    MAP_PAE P|W|U, 0x80000000
    KFAULT "bit 63 without NXE", ERR_P|ERR_RSVD, mov al, [edx]
    MAP_PAE P|W|U, 0x00080000
    KFAULT "bit 51", ERR_P|ERR_RSVD, mov al, [edx]
    WRITE_MSR IA32_EFER, EFER_NXE
    MAP_PAE P|W|U, 0x80000000
    NOFAULT "NX: data", mov al, [edx]
    FETCH_FAULT "NX: fetch", ERR_P|ERR_I
    MAP_PAE 0
    FETCH_FAULT "not present, fetch: I with NXE", ERR_I
    MAP_PAE P|W|U
    FETCH_OK "fetch"
    /* PDPTEs are registers: changing them in memory does nothing until CR3 is loaded. */
    mov dword ptr [pae_pointers + 24], 0
    mov edx, 0xfee00020
    NOFAULT "PDPTE in its register", mov eax, [edx]
    FLUSH
    mov edx, 0xc0000000
    FAULT "PDPTE not present", PF, 0, 0xc0000000, mov al, [edx]
    mov dword ptr [pae_pointers + 24], offset pae_directory + 0x3000 + P + W
    mov eax, cr3
    FAULT "PDPTE: reserved bit 1", GP, 0, ANY, mov cr3, eax
    mov dword ptr [pae_pointers + 24], offset pae_directory + 0x3000 + P
    FLUSH
    mov dword ptr [pae_pointers + 28], 0x80000000
    mov eax, cr3
    FAULT "PDPTE: bit 63", GP, 0, ANY, mov cr3, eax
    mov dword ptr [pae_pointers + 28], 0
    FLUSH

    BEGIN "PAE: SMEP"
    NEED_CPUID "SMEP", 7, 0, ebx, 7, 1f
    /* Our own code is in user pages: make the kernel's first. */
    and byte ptr [pae_directory], ~U
    and byte ptr [pae_directory + 8], ~U
    FLUSH
    MAP_PAE P|W|U
    SET_CR4 CR4_SMEP
    FETCH_FAULT "user page", ERR_P|ERR_I
    CLEAR_CR4 CR4_SMEP
    FETCH_OK "user page, SMEP off"
1:  CLEAR_CR0 CR0_PG
    jmp finish
