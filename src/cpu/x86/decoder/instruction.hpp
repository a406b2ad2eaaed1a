// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One decoded x86 instruction: what the interpreter and the translator know about it.
/// Facts from Intel SDM (June 2025) Vol. 2 and AMD APM Vol. 3 rev. 3.36; this file only names them.
/// Not modelled: EVEX (AVX-512 is hidden from guests) and XOP, both decode as undefined.

#include <cstdint>
#include <type_traits>

#include "cpu/x86/decoder/op.hpp"

namespace doppel::cpu::x86 {

/// CS.L / CS.D of the code being decoded (and CR0.PE=0 or V86: Bits16).
enum class CodeSize : std::uint8_t { Bits16, Bits32, Bits64 };

enum class OperandKind : std::uint8_t {
    None,
    Gpr,        // reg 0..15: the low `size` bytes of rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, …
    GprHigh,    // ah, ch, dh, bh: bits 15:8 of rax, rcx, rdx, rbx, which is reg 0..3
    Segment,    // reg 0..5: es, cs, ss, ds, fs, gs
    Control,    // reg = number (0, 2, 3, 4, 8)
    Debug,      // reg = number (0..7)
    X87,        // st(reg)
    Mmx,        // mm(reg)
    Vector,     // xmm(reg) or ymm(reg) by size
    Memory,     // the memory_* fields of the instruction
    Immediate,  // `immediate`, already sign- or zero-extended to 64 bits
    Immediate2, // `immediate2`: second operand of ENTER
    Relative,   // branch target relative to the next instruction: Instruction::target()
    FarPointer, // immediate2 : immediate, of JMP/CALL ptr16:16 and ptr16:32
};

/// What an instruction does with an operand.
enum class Access : std::uint8_t {
    None = 0,
    Read = 1,
    Write = 2,
    ReadWrite = 3,
    Address = 4, // only the address is used: LEA, INVLPG, CLFLUSH, PREFETCH, hint NOP, …
};

struct Operand {
    OperandKind kind : 5;
    Access access : 3;
    std::uint8_t reg;
    std::uint8_t size; // bytes; 0 where memory_size is larger than a register (XSAVE, …)
};

enum class InstructionClass : std::uint8_t {
    Alu,    // integer arithmetic, moves, stack, shifts, bits, BMI
    Branch, // everything that loads RIP, the BranchKind tells how
    String, // MOVS CMPS SCAS LODS STOS
    Io,     // IN OUT INS OUTS
    System, // privileged, or visible to the system layer (CPUID, RDTSC, CLI, LAR, …)
    X87,    // raises #NM with CR0.EM or TS
    Mmx,    // #UD with CR0.EM, #NM with CR0.TS, and a pending x87 exception is raised
    Sse,    // #UD with CR0.EM or !CR4.OSFXSR, #NM with CR0.TS
    Avx,    // VEX: #UD with !CR4.OSXSAVE or XCR0[2:1] != 3, #NM with CR0.TS
};

enum class BranchKind : std::uint8_t {
    None,
    Jump,        // relative
    Conditional, // relative: Jcc, LOOPcc, JrCXZ
    Call,        // relative
    IndirectJump,
    IndirectCall,
    Return, // near
    Other,  // far transfers, interrupts, IRET, SYSCALL & co., HLT is not one
};

enum class Encoding : std::uint8_t { Legacy, Vex2, Vex3 };

/// Opcode map; the value is the number VEX.mmmmm gives it.
enum class OpcodeMap : std::uint8_t { Primary, Map0F, Map0F38, Map0F3A };

/// Bits of Instruction::prefixes. A mandatory prefix is reported here too.
namespace prefix {
inline constexpr std::uint8_t kOperandSize = 0x01; // 66, or VEX.pp = 1
inline constexpr std::uint8_t kAddressSize = 0x02; // 67
inline constexpr std::uint8_t kRep = 0x04;         // F3 was the last of F2/F3, or VEX.pp = 2
inline constexpr std::uint8_t kRepne = 0x08;       // F2 was the last of F2/F3, or VEX.pp = 3
inline constexpr std::uint8_t kLock = 0x10;        // F0; the decoder has checked that it is legal
inline constexpr std::uint8_t kSegment = 0x20; // an override that is in force is in memory_segment
inline constexpr std::uint8_t kRex = 0x40;     // a REX byte that counts stands before the opcode
} // namespace prefix

/// Bits of Instruction::attributes.
namespace attribute {
// #GP(0) unless CPL is 0 (or real mode); CLAC, STAC, MONITOR, MWAIT raise #UD instead.
inline constexpr std::uint16_t kPrivileged = 0x0001;
// #UD in real and V86 mode: LAR, LLDT, ARPL, …, everything VEX-coded.
inline constexpr std::uint16_t kProtectedOnly = 0x0002;
// The memory operand, if there is one, must be aligned to its size: #GP(0).
inline constexpr std::uint16_t kAligned = 0x0004;
// Result or exceptions depend on MXCSR.
inline constexpr std::uint16_t kMxcsr = 0x0008;
// Reads or writes x87 or MMX registers or their environment.
inline constexpr std::uint16_t kX87State = 0x0010;
// Reads or writes XMM or YMM registers.
inline constexpr std::uint16_t kVectorState = 0x0020;
// memory_index is a vector register (gather).
inline constexpr std::uint16_t kVsib = 0x0040;
// Elements are accessed under a mask and fault only where it is set: VMASKMOV, MASKMOV, gather.
inline constexpr std::uint16_t kMaskedMemory = 0x0080;
// May leave flags_written as they were: shifts by cl, REP CMPS with rcx = 0.
inline constexpr std::uint16_t kFlagsConditional = 0x0100;
// x87, MMX, SSE or AVX class, but reads or writes a general register that is not part of the
// address.
inline constexpr std::uint16_t kGprOperand = 0x0200;
// No branch, yet the code behind it may run in another mode or mapping: MOV CR, POPF, STI, MOV SS,
// …
inline constexpr std::uint16_t kEndsBlock = 0x0400;
// LOCK would be legal with a memory destination.
inline constexpr std::uint16_t kLockable = 0x0800;
// IOPL decides: CLI STI PUSHF POPF IRET INT IN OUT INS OUTS.
inline constexpr std::uint16_t kIoplSensitive = 0x1000;
// x87 instruction that ignores pending exceptions: FNINIT, FNSTSW, …
inline constexpr std::uint16_t kX87NoWait = 0x2000;
} // namespace attribute

inline constexpr std::uint8_t kNoRegister = 0xff;
inline constexpr std::uint8_t kRip = 0x10;             // memory_base of a RIP-relative operand
inline constexpr std::uint16_t kVariableSize = 0xffff; // memory_size of XSAVE and friends

/// 64 bytes, trivially copyable, no pointers; any thread.
struct Instruction {
    // --- what it is (a block copy from the table) ---
    Op op;
    std::uint16_t attributes;
    // EFLAGS bit positions: CF PF AF ZF SF TF IF DF OF, and IOPL and NT of POPF & co.
    std::uint16_t flags_read;
    std::uint16_t flags_written;   // includes the undefined ones
    std::uint16_t flags_undefined; // subset of flags_written
    InstructionClass type;
    IsaFeature feature;
    BranchKind branch;
    OpcodeMap map : 4;
    Encoding encoding : 4;
    std::uint8_t opcode; // last opcode byte, after the escapes
    std::uint8_t length; // 1..15

    // Sets of general registers, bit n = register n; implicit ones (stack, strings, MUL, CPUID, …)
    // and those of the memory address included. A write of 8 or 16 bits, or one that may not
    // happen, is also a read.
    std::uint16_t registers_read;
    std::uint16_t registers_written;

    std::uint8_t prefixes; // prefix::k…
    std::uint8_t rex;      // 0100WRXB; of a VEX prefix the same bits, upright; 0 without either
    // 1, 2, 4, 8: effective, default-64 and byte forms applied; for stack operations the size of
    // what is pushed; for vectors only REX.W's effect (their length is in operands[].size).
    std::uint8_t operand_size;
    std::uint8_t address_size; // 2, 4, 8

    // --- the memory operand, valid if memory_access is not None ---
    std::uint16_t memory_size; // bytes accessed; for gathers one element; kVariableSize
    Access memory_access;
    // 0..5 = es cs ss ds fs gs, defaults and overrides applied; in 64-bit code only fs and gs have
    // a base. Valid also without memory_access for string instructions, XLAT and MONITOR: that of
    // the side that can be overridden.
    std::uint8_t memory_segment;
    std::uint8_t memory_base;  // 0..15, kRip, kNoRegister
    std::uint8_t memory_index; // 0..15, kNoRegister
    std::uint8_t memory_scale; // 1, 2, 4, 8

    // --- encoding, for rewriting ---
    std::uint8_t modrm;
    std::uint8_t modrm_offset : 4;  // 0 = there is none
    std::uint8_t opcode_offset : 4; // `opcode`'s; the escapes, REX or VEX stand directly before it
    std::uint8_t displacement_size : 4; // bytes of it in the encoding (0, 1, 2, 4, 8)
    std::uint8_t immediate_size : 4;    // all immediates together; they are the last bytes

    Operand operands[4]; // Intel order, destination first; unused ones are None

    std::uint16_t immediate2;  // ENTER's level, a far pointer's selector
    std::int64_t displacement; // sign-extended; the full address of MOV moffs
    std::uint64_t immediate;   // sign- or zero-extended as the instruction uses it

    // --- helpers; forced inline: code with general registers only calls them too ---
    [[gnu::always_inline]] bool has_modrm() const { return modrm_offset != 0; }
    [[gnu::always_inline]] std::uint8_t modrm_mod() const { return modrm >> 6; }
    [[gnu::always_inline]] std::uint8_t modrm_reg() const {
        return (modrm >> 3) & 7;
    } // not extended by REX.R
    [[gnu::always_inline]] std::uint8_t modrm_rm() const {
        return modrm & 7;
    } // not extended by REX.B
    [[gnu::always_inline]] bool has_memory() const { return memory_access != Access::None; }
    /// Those that are read or written, a bit each.
    [[gnu::always_inline]] unsigned registers() const {
        return static_cast<unsigned>(registers_read) | registers_written;
    }
    [[gnu::always_inline]] bool names(unsigned gpr) const { return (registers() >> gpr & 1) != 0; }
    [[gnu::always_inline]] bool reads_memory() const {
        return (std::uint8_t(memory_access) & 1) != 0;
    }
    [[gnu::always_inline]] bool writes_memory() const {
        return (std::uint8_t(memory_access) & 2) != 0;
    }
    [[gnu::always_inline]] bool has(std::uint16_t attribute) const {
        return (attributes & attribute) != 0;
    }
    [[gnu::always_inline]] bool lock() const { return (prefixes & prefix::kLock) != 0; }
    [[gnu::always_inline]] bool rep() const { return (prefixes & prefix::kRep) != 0; }
    [[gnu::always_inline]] bool repne() const { return (prefixes & prefix::kRepne) != 0; }
    [[gnu::always_inline]] bool is_vex() const { return encoding != Encoding::Legacy; }
    /// Condition of Jcc, SETcc, CMOVcc: 0..15 = o no b ae e ne be a s ns p np l ge le g.
    [[gnu::always_inline]] std::uint8_t condition() const { return opcode & 0xf; }
    /// Target of a relative branch; `next` = RIP behind the instruction. The result is cut to the
    /// operand size (16-bit: also outside 64-bit mode IP wraps at 64 KiB).
    [[gnu::always_inline]] std::uint64_t target(std::uint64_t next) const {
        const std::uint64_t full = next + immediate;
        return operand_size == 8 ? full : operand_size == 4 ? full & 0xffff'ffff : full & 0xffff;
    }
    [[gnu::always_inline]] std::uint8_t displacement_offset() const {
        return std::uint8_t(length - immediate_size - displacement_size);
    }
    [[gnu::always_inline]] std::uint8_t immediate_offset() const {
        return std::uint8_t(length - immediate_size);
    }
};

static_assert(sizeof(Instruction) == 64);
static_assert(std::is_trivially_copyable_v<Instruction>);

} // namespace doppel::cpu::x86
