/* SPDX-License-Identifier: Apache-2.0 */
/* What every guest starts with: names of bits, selectors and addresses, and the macros that make a
 * test case one or two lines. Assembler only; Intel syntax. 32- and 64-bit guests alike.
 *
 *   BEGIN "name"                    names the cases that follow until the next BEGIN
 *   CHECK "what", got, want         64-bit (32-bit) registers or memory or immediates (32 bits)
 *   FAULT "what", vec, err, cr2, insn …   the instruction must fault at its own address
 *   NOFAULT "what", insn …          it must not
 *   TRY / CAUGHT                    the same around several instructions
 *
 * A fault that is expected continues behind the case with all registers but the stack pointer as
 * they were at the fault, at CPL 0, with interrupts as in the interrupted code masked.
 */
#ifndef GUEST_H
#define GUEST_H

    .intel_syntax noprefix

#ifdef __x86_64__
#define AX rax
#define BX rbx
#define CX rcx
#define DX rdx
#define SI rsi
#define DI rdi
#define BP rbp
#define SP rsp
#define PUSHF pushfq
#define POPF popfq
#define WORD_PTR qword ptr
#define DWORD .quad
#define WORD_BYTES 8
#else
#define AX eax
#define BX ebx
#define CX ecx
#define DX edx
#define SI esi
#define DI edi
#define BP ebp
#define SP esp
#define PUSHF pushfd
#define POPF popfd
#define WORD_PTR dword ptr
#define DWORD .long
#define WORD_BYTES 4
#endif

/* --- ports --- */
#define COM1 0x3f8
#define DEBUG_EXIT 0xf4 /* value 0 (process exit code 1): all cases passed; value 1 (3): not */

/* --- vectors --- */
#define DE 0
#define DB 1
#define NMI 2
#define BP_ 3
#define OF 4
#define BR 5
#define UD 6
#define NM 7
#define DF 8
#define TS 10
#define NP 11
#define SS_ 12
#define GP 13
#define PF 14
#define MF 16
#define AC 17
#define XM 19
#define USER_EXIT 0x80 /* the gate by which CPL 3 code ends a case */

/* Values of no meaning to the processor. */
#define NOERR 0x5a5a      /* the vector pushes no error code */
#define ANY 0x5a5a5a5a    /* not compared */

/* --- page-table and error-code bits --- */
#define P 1
#define W 2
#define U 4
#define PWT 8
#define PCD 0x10
#define A_ 0x20
#define D 0x40
#define PS 0x80
#define G 0x100
#define NX 0x8000000000000000
#define ERR_P 1
#define ERR_W 2
#define ERR_U 4
#define ERR_RSVD 8
#define ERR_I 0x10

/* --- control registers, EFER, flags --- */
#define CR0_PE 1
#define CR0_MP 2
#define CR0_EM 4
#define CR0_TS 8
#define CR0_NE 0x20
#define CR0_WP 0x10000
#define CR0_AM 0x40000
#define CR0_NW 0x20000000
#define CR0_CD 0x40000000
#define CR0_PG 0x80000000
#define CR4_VME 1
#define CR4_PVI 2
#define CR4_TSD 4
#define CR4_DE 8
#define CR4_PSE 0x10
#define CR4_PAE 0x20
#define CR4_MCE 0x40
#define CR4_PGE 0x80
#define CR4_PCE 0x100
#define CR4_OSFXSR 0x200
#define CR4_OSXMMEXCPT 0x400
#define CR4_UMIP 0x800
#define CR4_FSGSBASE 0x10000
#define CR4_PCIDE 0x20000
#define CR4_OSXSAVE 0x40000
#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000
#define IA32_EFER 0xc0000080
#define EFER_SCE 1
#define EFER_LME 0x100
#define EFER_LMA 0x400
#define EFER_NXE 0x800
#define FLAG_CF 1
#define FLAG_ZF 0x40
#define FLAG_TF 0x100
#define FLAG_IF 0x200
#define FLAG_DF 0x400
#define FLAG_IOPL 0x3000
#define FLAG_NT 0x4000
#define FLAG_RF 0x10000
#define FLAG_VM 0x20000
#define FLAG_AC 0x40000

/* --- selectors: the two runtimes' GDTs --- */
#define KCODE 0x08
#define KDATA 0x10
#ifdef __x86_64__
#define UCODE32 0x18
#define UDATA 0x20
#define UCODE 0x28
#define UDATA_COPY 0x30
#define KCODE32 0x38
#define KCODE16 0x40
#define TSS_SELECTOR 0x48
#define SPARE 0x58 /* from here to GDT_LAST: for the cases */
#else
#define UCODE 0x18
#define UDATA 0x20
#define TSS_SELECTOR 0x28
#define KCODE16 0x30
#define KDATA16 0x38
#define SPARE 0x40
#endif
#define GDT_LAST 0x1f8

/* --- addresses --- */
#ifdef __x86_64__
#define USER_BASE 0x8000000000 /* alias of physical 0 … 16 MiB for CPL 3 */
#define WINDOW 0x10000000000   /* 512 pages that the cases map as they like: window_pt */
#else
#define USER_BASE 0
#endif
#define LOW_CODE 0x8000 /* real-mode code is copied here */

/* The pushed frame that a hook gets in rdi (64 bits) or edi (32 bits). */
#ifdef __x86_64__
#define F_RAX 112
#define F_RCX 104
#define F_RDX 96
#define F_RBX 88
#define F_RBP 80
#define F_RSI 72
#define F_RDI 64
#define F_VECTOR 120
#define F_ERROR 128
#define F_RIP 136
#define F_CS 144
#define F_FLAGS 152
#define F_RSP 160
#define F_SS 168
#else
#define F_RAX 36
#define F_RCX 32
#define F_RDX 28
#define F_RBX 24
#define F_RBP 16
#define F_RSI 12
#define F_RDI 8
#define F_VECTOR 40
#define F_ERROR 44
#define F_RIP 48
#define F_CS 52
#define F_FLAGS 56
#define F_RSP 60
#define F_SS 64
#define F_ES 68
#define F_DS 72
#endif

    .macro BEGIN name
    .pushsection .rodata
.Ltest\@:
    .asciz "\name"
    .popsection
    push offset .Ltest\@
    call start_test
    .endm

    /* Operands are pushed: rsp-relative ones will not do. */
    .macro CHECK what, got, want
    .pushsection .rodata
.Lcheck\@:
    .asciz "\what"
    .popsection
    push \got
    push \want
    push offset .Lcheck\@
    call check_equal
    .endm

    .macro FAIL what
    CHECK "\what", 1, 0
    .endm

    /* Until CAUGHT (or check_fault), an exception goes to `label`. */
    .macro TRY label
    push offset \label
    call start_try
    .endm

    /* What the last exception must have been; ANY is not compared. */
    .macro CAUGHT what, vec, err, rip, cr2
    .pushsection .rodata
.Ltext\@:
    .asciz "\what"
    .balign 8
.Lcaught\@:
    DWORD .Ltext\@, \vec, \err, \rip, \cr2
    .popsection
    push offset .Lcaught\@
    call check_fault
    .endm

    .macro FAULT what, vec, err, cr2, insn:vararg
    TRY .Lafter\@
.Lat\@:
    \insn
.Lafter\@:
    CAUGHT "\what", \vec, \err, .Lat\@, \cr2
    .endm

    .macro NOFAULT what, insn:vararg
    TRY .Lafter\@
    \insn
.Lafter\@:
    CAUGHT "\what", ANY, 0, 0, 0
    .endm

    /* CPL 3: the code runs in the user alias; `label` is an address of the supervisor's view. */
    .macro ENTER_USER label
    push offset \label
    call enter_user
    .endm

    .macro USER_FAULT what, vec, err, cr2, insn:vararg
    TRY .Lafter\@
    ENTER_USER .Lat\@
.Lat\@:
    \insn
    int USER_EXIT
.Lafter\@:
    CAUGHT "\what", \vec, \err, .Lat\@+USER_BASE, \cr2
    .endm

    .macro USER_NOFAULT what, insn:vararg
    TRY .Lafter\@
    ENTER_USER .Lat\@
.Lat\@:
    \insn
    int USER_EXIT
.Lafter\@:
    CAUGHT "\what", USER_EXIT, ANY, ANY, ANY
    .endm

    /* `vector` calls `label` with the frame in rdi (edi); it returns to the interrupted code. */
    .macro HOOK vector, label
    mov WORD_PTR [hooks + \vector * WORD_BYTES], offset \label
    .endm
    .macro UNHOOK vector
    mov WORD_PTR [hooks + \vector * WORD_BYTES], 0
    .endm

    .macro SET_CR4 bits
    mov AX, cr4
    or AX, \bits
    mov cr4, AX
    .endm
    .macro CLEAR_CR4 bits
    mov AX, cr4
    and AX, ~(\bits)
    mov cr4, AX
    .endm
    .macro SET_CR0 bits
    mov AX, cr0
    mov ebx, \bits
    or AX, BX
    mov cr0, AX
    .endm
    .macro CLEAR_CR0 bits
    mov AX, cr0
    mov ebx, \bits
    not BX
    and AX, BX
    mov cr0, AX
    .endm

    .macro WRITE_MSR number, low, high=0
    mov ecx, \number
    mov eax, \low
    mov edx, \high
    wrmsr
    .endm

    /* Skips to `label` (and says so) when a CPUID bit is clear. */
    .macro NEED_CPUID what, leaf, subleaf, reg, bit, label
    mov eax, \leaf
    mov ecx, \subleaf
    cpuid
    bt \reg, \bit
    jc .Lhave\@
    .pushsection .rodata
.Lneed\@:
    .asciz "\what"
    .popsection
    push offset .Lneed\@
    call say_skipped
    jmp \label
.Lhave\@:
    .endm

    .macro OUTB port, value
    mov al, \value
    mov dx, \port
    out dx, al
    .endm

#ifdef __x86_64__
    /* A page of the window: physical address (immediate or label), flags. */
    .macro MAP_PAGE index, physical, flags
    mov rax, \physical
    mov rbx, \flags
    or rax, rbx
    mov [window_pt + \index * 8], rax
    mov rax, WINDOW + \index * 4096
    invlpg [rax]
    .endm
#endif

    /* Writes an 8-byte descriptor: base and limit (20 bits) may be registers or immediates;
       attributes: bits 40 … 47 in the low byte, 52 … 55 in bits 12 … 15 (0xa09b = 64-bit code). */
    .macro DESCRIPTOR selector, base, limit, attributes
    push \attributes
    push \limit
    push \base
    push \selector
    call set_descriptor
    .endm

#ifdef __x86_64__
#define APIC 0xfee00000

    /* The second CPU (lib/second_cpu.S) runs `label`, wait_ap waits for it. */
    .macro ORDER label
    mov qword ptr [ap_work], offset \label
    inc dword ptr [order]
    .endm
    .macro WAIT_FOR location, value /* or more */
    mov ecx, 400000000
.Lwait\@:
    pause
    cmp dword ptr [\location], \value
    jae .Ldone\@
    dec ecx
    jnz .Lwait\@
.Ldone\@:
    .endm
#endif

#endif
