// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Operation identifiers and the CPUID features that gate them.

#include <cstdint>

namespace doppel::cpu::x86 {

/// One value per semantics; sizes and operand forms are in Instruction. Conditions (Jcc, SETcc,
/// CMOVcc) are in Instruction::condition().
enum class Op : std::uint16_t {
    Invalid,
    // --- integer arithmetic and moves ---
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
    Inc,
    Dec,
    Not,
    Neg,
    Mul,      // rdx:rax = rax * operand 0 (ax = al * operand 0)
    ImulWide, // likewise, signed
    Imul,     // two operands: 0 *= 1; three: 0 = 1 * 2
    Div,
    Idiv,
    Rol, // operand 1 of the shifts: Immediate (also for D0/D1: 1) or cl; the count is not yet
         // masked
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
    Shld, // operand 2 is the count
    Shrd,
    Bt, // operand 1 Gpr with memory operand 0: bit string addressing
    Bts,
    Btr,
    Btc,
    Bsf,
    Bsr,
    Lzcnt, // without the feature the CPU executes BSR / BSF
    Tzcnt,
    Popcnt,
    Crc32,
    Bswap,
    Movbe,
    Mov, // registers, memory, immediates, moffs
    Movzx,
    Movsx, // and MOVSXD
    Lea,
    Xchg, // with memory: locked with or without prefix
    Xadd,
    Cmpxchg,
    Cmpxchg8b,
    Cmpxchg16b,
    Cmov,
    Set,
    Cbw, // CBW, CWDE, CDQE by operand size
    Cwd, // CWD, CDQ, CQO
    Lahf,
    Sahf,
    Clc,
    Stc,
    Cmc,
    Cld,
    Std,
    Push,
    Pop, // memory operand: its address is computed with the incremented rsp
    PushSegment,
    PopSegment,
    Pusha,
    Popa,
    Pushf,
    Popf,
    Enter,
    Leave,
    Xlat,
    Aaa,
    Aas,
    Aam,
    Aad,
    Daa,
    Das,
    Salc,
    Bound,
    Arpl,
    LoadFarPointer, // LES LDS LSS LFS LGS: operand 0 Gpr, 1 Memory, 2 Segment
    Movnti,
    Nop, // NOP, hint NOPs, ENDBR, RDSSP (no shadow stacks)
    Pause,
    Adcx,
    Adox,
    Andn, // the BMI group is VEX-coded
    Bextr,
    Blsi,
    Blsmsk,
    Blsr,
    Bzhi,
    Mulx,
    Pdep,
    Pext,
    Rorx,
    Sarx,
    Shlx,
    Shrx,
    // --- branches ---
    Jmp, // Relative, or Gpr / Memory: see BranchKind
    Call,
    Ret, // operand 0: Immediate = bytes to release, or none
    Jcc,
    Loop,
    Loope,
    Loopne,
    Jcxz, // the counter register by address size
    JmpFar,
    CallFar,
    RetFar,
    Int,
    Int3,
    Int1,
    Into,
    Iret,
    Syscall,
    Sysret,
    Sysenter,
    Sysexit,
    Rsm,
    // --- strings and I/O: element size = operand_size, no operands listed (IN and OUT: listed) ---
    Movs,
    Cmps,
    Scas,
    Lods,
    Stos,
    In,
    Out,
    Ins,
    Outs,
    // --- system ---
    Cli,
    Sti,
    Hlt,
    Cpuid,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Rdmsr,
    Wrmsr,
    Rdrand,
    Rdseed,
    Rdpid,
    Rdfsbase,
    Rdgsbase,
    Wrfsbase,
    Wrgsbase,
    Swapgs,
    MovFromSegment,
    MovToSegment,
    MovFromControl,
    MovToControl,
    MovFromDebug,
    MovToDebug,
    Clts,
    Lmsw,
    Smsw,
    Lgdt,
    Lidt,
    Sgdt,
    Sidt,
    Lldt,
    Sldt,
    Ltr,
    Str,
    Lar,
    Lsl,
    Verr,
    Verw,
    Clac,
    Stac,
    Invlpg,
    Invpcid,
    Invd,
    Wbinvd,
    Monitor,
    Mwait,
    Xgetbv,
    Xsetbv,
    Vmcall,
    Vmmcall,
    Clflush,
    Clflushopt,
    Clwb,
    Prefetch, // all of them; memory_access is Address
    Lfence,
    Mfence,
    Sfence,
    // --- x87, MMX, SSE, AVX: executed by the host CPU. The general case first ---
    X87,  // arithmetic, loads, stores, FCOMI (flags_written), FCMOV (flags_read)
    Simd, // MMX, SSE, AVX by `type`; explicit Gpr operands if attribute kGprOperand
    Wait,
    Fninit,
    Fnclex,
    Fldcw,
    Fnstcw,
    Fnstsw,   // memory
    FnstswAx, // writes ax
    Fldenv,   // the environment holds FIP/FDP; 14 or 28 bytes by operand size
    Fnstenv,
    Frstor, // 94 or 108 bytes
    Fnsave,
    Emms,    // and FEMMS
    Ldmxcsr, // and VLDMXCSR
    Stmxcsr,
    Fxsave, // FXSAVE64 if operand_size is 8; likewise below
    Fxrstor,
    Xsave,
    Xsaveopt,
    Xsavec,
    Xsaves,
    Xrstor,
    Xrstors,
    MaskMov,  // (V)MASKMOVDQU, MASKMOVQ: store to memory_segment:[rdi]; memory_access is Write
    VmaskMov, // VMASKMOVPS/PD, VPMASKMOVD/Q: load or store by memory_access; no fault where masked
    Gather,   // operand 0 destination, 1 memory (VSIB), 2 mask
    Pcmpestr, // reads eax, edx (rax, rdx with REX.W); xSTRI writes ecx; all write flags
    Pcmpistr,
    Count,
};

/// What CPUID must offer; otherwise the executor raises #UD (Lzcnt, Tzcnt: runs BSR, BSF instead).
/// VEX-coded instructions (InstructionClass::Avx) need Avx besides the feature named.
enum class IsaFeature : std::uint8_t {
    None, // part of every x86-64 CPU
    Fpu,
    Tsc,
    Msr,
    Cx8,
    Sep,
    Cmov,
    Clflush,
    Mmx,
    Fxsr,
    Sse,
    Sse2,
    Sse3,
    Pclmulqdq,
    Monitor,
    Ssse3,
    Fma,
    Cx16,
    Sse41,
    Sse42,
    Movbe,
    Popcnt,
    Aes,
    Xsave,
    Avx,
    F16c,
    Rdrand,
    Fsgsbase,
    Bmi1,
    Avx2,
    Bmi2,
    Invpcid,
    Rdseed,
    Adx,
    Smap,
    Clflushopt,
    Clwb,
    Sha,
    Rdpid,
    Lzcnt,
    LahfLm, // LAHF and SAHF in 64-bit mode
    Prefetchw,
    Femms,
    Syscall,
    Rdtscp,
    LongMode,
    Xsaveopt,
    Xsavec,
    Xsaves,
    Vmx, // VMCALL
    Svm, // VMMCALL
    Gfni,
    Vaes,
    Vpclmulqdq,
    Count,
};

} // namespace doppel::cpu::x86
