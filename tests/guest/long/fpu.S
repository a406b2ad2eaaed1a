/* SPDX-License-Identifier: Apache-2.0 */
/* When x87, SSE and AVX instructions may run at all, their exceptions, and the XSAVE family.
 * Intel SDM (June 2025) Vol. 3A §2.5, §14 (TS, EM, OSFXSR), Vol. 1 §13 (XSAVE), Vol. 2 XSETBV.
 *
 * qemu deviates: exceptions: -- no unmasked SSE exceptions; fld1 does not wait
 * qemu deviates: XSAVE: TS: xsave -- not checked
 * qemu deviates: XSAVE: EM does not matter to AVX -- #UD
 * qemu deviates: XSAVE: reserved MXCSR bits -- not checked
 */
#include "guest.h"

    .section .pages, "aw", @nobits
    .balign 64
area: .skip 1024
    .text
    .globl main
main:
    BEGIN "CR0.TS and CR0.EM"
    SET_CR4 CR4_OSFXSR
    NOFAULT "x87", fld1
    NOFAULT "SSE", addps xmm0, xmm0
    SET_CR0 CR0_TS
    FAULT "TS: x87", NM, NOERR, ANY, fld1
    FAULT "TS: SSE", NM, NOERR, ANY, addps xmm0, xmm0
    FAULT "TS: MMX", NM, NOERR, ANY, paddb mm0, mm0
    FAULT "TS and MP: fwait", NM, NOERR, ANY, fwait
    FAULT "TS: fxsave", NM, NOERR, ANY, fxsave [area]
    NOFAULT "TS: integers that look like SSE", movnti [area], eax
    NOFAULT "TS: sfence", sfence
    NOFAULT "TS: prefetch", prefetchnta [area]
    CLEAR_CR0 CR0_MP
    NOFAULT "TS without MP: fwait", fwait
    FAULT "TS without MP: x87", NM, NOERR, ANY, fld1
    SET_CR0 CR0_MP
    clts
    NOFAULT "clts", fwait
    SET_CR0 CR0_EM
    FAULT "EM: x87", NM, NOERR, ANY, fld1
    FAULT "EM: SSE", UD, NOERR, ANY, addps xmm0, xmm0
    FAULT "EM: MMX", UD, NOERR, ANY, paddb mm0, mm0
    NOFAULT "EM: fwait", fwait
    CLEAR_CR0 CR0_EM
    CLEAR_CR4 CR4_OSFXSR
    FAULT "no OSFXSR: SSE", UD, NOERR, ANY, addps xmm0, xmm0
    FAULT "no OSFXSR: ldmxcsr", UD, NOERR, ANY, ldmxcsr [mxcsr]
    NOFAULT "no OSFXSR: MMX", paddb mm0, mm0
    NOFAULT "no OSFXSR: fxsave", fxsave [area]
    SET_CR4 CR4_OSFXSR
    emms

    BEGIN "exceptions"
    fninit
    fldcw [divide_unmasked]
    fld1
    fldz
    NOFAULT "the division itself", fdivp st(1), st
    FAULT "#MF at the next waiting instruction", MF, NOERR, ANY, fwait
    FAULT "#MF again", MF, NOERR, ANY, fld1
    fnstsw ax
    and eax, 0x80ff
    CHECK "status", rax, 0x8084
    NOFAULT "fnclex does not wait", fnclex
    NOFAULT "then all is well", fwait
    fninit
    ldmxcsr [mxcsr_divide_unmasked]
    movups xmm0, [ones]
    xorps xmm1, xmm1
    FAULT "OSXMMEXCPT 0: #UD", UD, NOERR, ANY, divps xmm0, xmm1
    SET_CR4 CR4_OSXMMEXCPT
    ldmxcsr [mxcsr_divide_unmasked]
    FAULT "#XM", XM, NOERR, ANY, divps xmm0, xmm1
    stmxcsr [scratch]
    mov eax, [scratch]
    CHECK "MXCSR has the flag", rax, 0x1d84
    movd eax, xmm0
    CHECK "the destination stays", rax, 0x3f800000
    ldmxcsr [mxcsr]
    NOFAULT "masked", divps xmm0, xmm1
    FAULT "ldmxcsr: reserved bit", GP, 0, ANY, ldmxcsr [mxcsr_reserved]
    FAULT "movaps unaligned", GP, 0, ANY, movaps xmm0, [area + 8]
    FAULT "addps unaligned", GP, 0, ANY, addps xmm0, [area + 4]
    NOFAULT "movups unaligned", movups xmm0, [area + 4]
    FAULT "fxsave unaligned", GP, 0, ANY, fxsave [area + 8]
    FAULT "fxrstor unaligned", GP, 0, ANY, fxrstor [area + 8]

    BEGIN "XSAVE"
    NEED_CPUID "XSAVE", 1, 0, ecx, 26, 9f
    bt ecx, 27
    setc al
    movzx eax, al
    CHECK "OSXSAVE is CR4's", rax, 0
    xor ecx, ecx
    FAULT "xgetbv without OSXSAVE", UD, NOERR, ANY, xgetbv
    FAULT "xsave without OSXSAVE", UD, NOERR, ANY, xsave [area]
    SET_CR4 CR4_OSXSAVE
    mov eax, 1
    cpuid
    bt ecx, 27
    setc al
    movzx eax, al
    CHECK "OSXSAVE shows", rax, 1
    xor ecx, ecx
    xgetbv
    CHECK "XCR0", rax, 1
    FAULT "AVX without XCR0", UD, NOERR, ANY, vaddps ymm0, ymm0, ymm0
    xor edx, edx
    mov eax, 2
    FAULT "XCR0 without x87", GP, 0, ANY, xsetbv
    mov eax, 5
    FAULT "AVX without SSE", GP, 0, ANY, xsetbv
    mov eax, 0x80000001
    FAULT "a bit that does not exist", GP, 0, ANY, xsetbv
    mov eax, 1
    mov ecx, 1
    FAULT "XCR1", GP, 0, ANY, xsetbv
    xor ecx, ecx
    USER_FAULT "xsetbv at CPL 3", GP, 0, ANY, xsetbv
    USER_NOFAULT "xgetbv at CPL 3", xgetbv
    mov eax, 7
    xor edx, edx
    NOFAULT "XCR0 = 7", xsetbv
    NOFAULT "AVX", vaddps ymm0, ymm0, ymm0
    mov eax, 0xd
    xor ecx, ecx
    cpuid
    CHECK "size of the area", rbx, 832
    SET_CR0 CR0_TS
    FAULT "TS: AVX", NM, NOERR, ANY, vaddps ymm0, ymm0, ymm0
    FAULT "TS: xsave", NM, NOERR, ANY, xsave [area]
    clts
    SET_CR0 CR0_EM
    NOFAULT "EM does not matter to AVX", vaddps ymm0, ymm0, ymm0
    CLEAR_CR0 CR0_EM
    mov eax, 7
    xor edx, edx
    FAULT "xsave unaligned", GP, 0, ANY, xsave [area + 32]
    fninit
    vzeroall
    movups xmm3, [ones]
    mov eax, 7
    xor edx, edx
    xsave [area]
    mov rax, [area + 512]
    and eax, 2
    CHECK "XSTATE_BV: SSE in use", rax, 2
    mov eax, [area + 160 + 48]
    CHECK "xmm3 in its place", rax, 0x3f800000
    xorps xmm3, xmm3
    mov eax, 7
    xrstor [area]
    movd eax, xmm3
    CHECK "xrstor", rax, 0x3f800000
    mov qword ptr [area + 512], 0
    mov eax, 7
    xrstor [area]
    movd eax, xmm3
    CHECK "xrstor of the initial state", rax, 0
    mov qword ptr [area + 512], 0x8000
    mov eax, 7
    FAULT "XSTATE_BV beyond XCR0", GP, 0, ANY, xrstor [area]
    mov qword ptr [area + 512], 7
    mov qword ptr [area + 520], 1
    FAULT "XCOMP_BV in the standard form", GP, 0, ANY, xrstor [area]
    mov qword ptr [area + 520], 0
    mov qword ptr [area + 528], 1
    FAULT "reserved header bytes", GP, 0, ANY, xrstor [area]
    mov qword ptr [area + 528], 0
    mov dword ptr [area + 24], 0xffff0000
    FAULT "reserved MXCSR bits", GP, 0, ANY, xrstor [area]
    CLEAR_CR4 CR4_OSXSAVE
    FAULT "AVX without OSXSAVE", UD, NOERR, ANY, vaddps ymm0, ymm0, ymm0
9:  jmp finish

    .data
    .balign 16
ones: .long 0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000
mxcsr: .long 0x1f80
mxcsr_divide_unmasked: .long 0x1d80
mxcsr_reserved: .long 0x80001f80
divide_unmasked: .word 0x37b
