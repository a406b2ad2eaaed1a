/* SPDX-License-Identifier: Apache-2.0 */
/* UMIP, TSD, PCE: instructions that CPL 3 may be denied; CPUID faults of MSRs that do not exist;
 * RDTSCP, RDPID; a few MSRs and their reserved bits.
 * Intel SDM (June 2025) Vol. 3A §2.5 (CR4), Vol. 4 table 2-2.
 *
 * qemu deviates: MSRs: -- accepts any number and most values
 * qemu deviates: CPUID: lock cpuid -- accepts it
 */
#include "guest.h"

    .macro MSR_ROUND_TRIP what, number, low, high
    WRITE_MSR \number, \low, \high
    mov ecx, \number
    rdmsr
    mov ebx, \low
    CHECK "\what, low", rax, rbx
    CHECK "\what, high", rdx, \high
    .endm

    .macro prefixes_15
    .fill 15, 1, 0x66
    nop
    .endm

    .text
    .globl main
main:
    BEGIN "UMIP"
    NEED_CPUID "UMIP", 7, 0, ecx, 2, 9f
    USER_NOFAULT "sgdt without UMIP", sgdt [rsp - 64]
    USER_NOFAULT "sldt without UMIP", sldt eax
    SET_CR4 CR4_UMIP
    USER_FAULT "sgdt", GP, 0, ANY, sgdt [rsp - 64]
    USER_FAULT "sidt", GP, 0, ANY, sidt [rsp - 64]
    USER_FAULT "sldt", GP, 0, ANY, sldt eax
    USER_FAULT "str", GP, 0, ANY, str eax
    USER_FAULT "smsw", GP, 0, ANY, smsw eax
    NOFAULT "CPL 0 may", sgdt [rsp - 64]
    CLEAR_CR4 CR4_UMIP
9:  BEGIN "TSD and PCE"
    USER_NOFAULT "rdtsc", rdtsc
    SET_CR4 CR4_TSD
    USER_FAULT "rdtsc with TSD", GP, 0, ANY, rdtsc
    NOFAULT "rdtsc at CPL 0", rdtsc
    mov eax, 0x80000001
    cpuid
    bt edx, 27
    jnc 1f
    USER_FAULT "rdtscp with TSD", GP, 0, ANY, rdtscp
    CLEAR_CR4 CR4_TSD
    WRITE_MSR 0xc0000103, 0x12345
    rdtscp
    CHECK "TSC_AUX by rdtscp", rcx, 0x12345
1:  CLEAR_CR4 CR4_TSD
    rdtsc
    mov ebx, eax
    mov esi, edx
    rdtsc
    shl rdx, 32
    add rax, rdx
    shl rsi, 32
    add rbx, rsi
    cmp rax, rbx
    setae al
    movzx eax, al
    CHECK "the TSC does not go back", rax, 1
    USER_FAULT "rdpmc without PCE", GP, 0, ANY, rdpmc

    BEGIN "MSRs"
    mov ecx, 0x4b564dff
    FAULT "one that does not exist", GP, 0, ANY, rdmsr
    xor eax, eax
    xor edx, edx
    FAULT "writing one that does not exist", GP, 0, ANY, wrmsr
    USER_FAULT "wrmsr at CPL 3", GP, 0, ANY, wrmsr
    mov ecx, 0x277
    mov eax, 0x02000000
    FAULT "PAT: type 2", GP, 0, ANY, wrmsr
    MSR_ROUND_TRIP "PAT", 0x277, 0x00070406, 0x70406
    MSR_ROUND_TRIP "STAR", 0xc0000081, 0x1234, 0x180008
    MSR_ROUND_TRIP "LSTAR", 0xc0000082, 0x5678, 0x1234
    MSR_ROUND_TRIP "SYSENTER_ESP", 0x175, 0x5678, 0x1234
    MSR_ROUND_TRIP "TSC_AUX", 0xc0000103, 0x77, 0
    mov ecx, 0xc0000103
    mov edx, 1
    FAULT "TSC_AUX above 32 bits", GP, 0, ANY, wrmsr
    mov ecx, 0xfe
    rdmsr /* MTRRcap */
    mov ecx, 0xfe
    FAULT "MTRRcap is read-only", GP, 0, ANY, wrmsr
    mov ecx, 0x1b
    rdmsr
    and eax, 0xfffff900
    mov ebx, 0xfee00900
    CHECK "APIC_BASE of the first CPU", rax, rbx
    mov ecx, 0x10
    xor eax, eax
    xor edx, edx
    wrmsr
    rdtsc
    cmp edx, 1
    setb al
    movzx eax, al
    CHECK "the TSC is written", rax, 1

    BEGIN "CPUID"
    xor eax, eax
    cpuid
    cmp eax, 7
    setae al
    movzx eax, al
    CHECK "leaf 7 exists", rax, 1
    mov rax, 0xffffffff00000001
    mov rcx, -1
    cpuid
    mov ecx, eax
    CHECK "eax is zero-extended", rax, rcx
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000008
    setae al
    movzx eax, al
    CHECK "leaf 80000008 exists", rax, 1
    USER_NOFAULT "at CPL 3", cpuid
    FAULT "lock cpuid", UD, NOERR, ANY, .byte 0xf0, 0x0f, 0xa2
    FAULT "lock on a register", UD, NOERR, ANY, .byte 0xf0, 0x01, 0xc0
    FAULT "more than 15 bytes", GP, 0, ANY, prefixes_15
    FAULT "ud1", UD, NOERR, ANY, .byte 0x0f, 0xb9, 0xc0
    FAULT "0f 0b", UD, NOERR, ANY, ud2
    FAULT "push es in 64-bit code", UD, NOERR, ANY, .byte 0x06
    FAULT "aam in 64-bit code", UD, NOERR, ANY, .byte 0xd4, 0x0a
    FAULT "ljmp immediate in 64-bit code", UD, NOERR, ANY, .byte 0xea, 0, 0, 0, 0, 8, 0
    jmp finish
