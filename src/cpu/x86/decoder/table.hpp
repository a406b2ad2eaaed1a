// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The decoder's tables as the decoder reads them; table.cpp builds them from the rows_*.hpp at
/// compile time. An opcode's node is either the index of an Entry (0 = undefined) or, with kBranch
/// set, a choice by one property of the instruction between as many further nodes.

#include <array>
#include <cstdint>

#include "cpu/x86/decoder/instruction.hpp"

namespace doppel::cpu::x86::decoder {

/// The properties a choice can be made by; the order is that of the decisions.
enum class Choice : std::uint8_t {
    Mode64, // 0 = 16- and 32-bit code, 1 = 64-bit code
    Prefix, // 0 none, 1 = 66, 2 = F3, 3 = F2 (F2 and F3 win over 66)
    Mod,    // 0 memory, 1 register
    Reg,    // modrm.reg
    Rm,     // modrm.rm
    W,
    L,
    B,
    Count,
};
inline constexpr std::array<std::uint8_t, 8> kChoiceWays{2, 4, 2, 8, 8, 2, 2, 2};

using Node = std::uint16_t; // [15] branch, [14:12] Choice, [11:0] half its place in `nodes`
inline constexpr Node kBranch = 0x8000;
constexpr Node branch_node(Choice choice, std::size_t place) {
    return Node(kBranch | unsigned(choice) << 12 | unsigned(place / 2));
}

/// How the effective operand size follows from the mode, 66 and REX.W.
enum class SizeRule : std::uint8_t {
    Normal,   // 2/4, 4/2, and 4/2/8
    Byte,     // 1
    Stack64,  // as Normal, but 8/2 in 64-bit code
    Force64,  // as Normal, but always 8 in 64-bit code (Intel; AMD lets 66 cut near branches to 16
              // bits)
    Natural,  // 4, in 64-bit code 8
    NoPrefix, // 4, with REX.W 8: 66 is a mandatory prefix or means nothing
    NoW,      // as Normal, but at most 4
    Count,
};

/// Sizes of operands as functions of the effective operand size (1, 2, 4, 8) and VEX.L.
enum class SizeCode : std::uint8_t {
    None,
    B,     // 1
    W,     // 2
    D,     // 4
    Q,     // 8
    Dq,    // 16
    Qq,    // 32
    X,     // 16, 32 by VEX.L
    H,     // half of X
    F,     // quarter of X
    E,     // eighth of X
    V,     // operand size
    Y,     // 4, or 8 if the operand size is 8
    Z,     // operand size, at most 4
    P,     // far pointer: operand size + 2
    A,     // BOUND: twice the operand size
    S,     // descriptor table: 6, or 10 if the operand size is 8
    T,     // 10
    Env,   // 14 or 28
    Fsave, // 94 or 108
    Fx,    // 512
    Var,
    Count,
};

enum class ImmediateCode : std::uint8_t {
    None,
    Unsigned8,
    Signed8,
    Unsigned16,
    SignedZ,   // 16 or 32 bits, sign-extended
    V,         // 16, 32 or 64 bits
    Is4,       // 8 bits whose upper half is a register number
    Constant1, // from here on the decoder needs code of its own
    Enter,     // 16 + 8
    Far,       // 16 or 32, and a selector
    Moffs,     // displacement as wide as the address
    Count,
};

/// Where the number of an operand's register comes from: a byte lane of a packed word.
enum class Lane : std::uint8_t { Reg, Rm, Vvvv, OpcodeLow, Is4, Reg3, Rm3, Zero };

inline constexpr std::uint8_t kReadsGpr = 0x40;
inline constexpr std::uint8_t kWritesGpr = 0x80;

struct OperandTemplate {
    Operand value;      // reg = number if fixed; size = SizeCode if it is no memory operand
    std::uint8_t shift; // 8 * Lane | kReadsGpr | kWritesGpr
};

/// Bits of Entry::checks.
inline constexpr std::uint8_t kHasModrm = 0x01;
inline constexpr std::uint8_t kRegisterForm = 0x02; // mod is ignored: MOV CR, MOV DR
inline constexpr std::uint8_t kUsesVvvv = 0x04;
inline constexpr std::uint8_t kUnusual = 0x08; // a case in decoder.cpp's finish_unusual()
inline constexpr unsigned kMemoryReplacesGprShift = 4;
inline constexpr std::uint8_t kMemoryReplacesGpr = 0x10; // only the register form has kGprOperand
inline constexpr std::uint8_t kByteRegister = 0x20;      // ah, ch, dh, bh are possible
inline constexpr std::uint8_t kOddImmediate = 0x40;      // ImmediateCode::Constant1 and later

/// Begins as Instruction does, so that the decoder copies its first 13 bytes in one piece.
struct Entry {
    Op op = Op::Invalid;
    std::uint16_t attributes = 0;
    std::uint16_t flags_read = 0;
    std::uint16_t flags_written = 0;
    std::uint16_t flags_undefined = 0;
    InstructionClass type = InstructionClass::Alu;
    IsaFeature feature = IsaFeature::None;
    BranchKind branch = BranchKind::None;
    // By CodeSize: log2(operand size) in two bits each, lowest first for none, 66, REX.W, both.
    std::array<std::uint8_t, 3> operand_sizes{};
    std::uint16_t registers_read = 0; // implicit ones
    std::uint16_t registers_written = 0;
    std::uint8_t checks = 0;
    ImmediateCode immediate = ImmediateCode::None;
    SizeCode memory_size = SizeCode::None;
    Access memory_access = Access::None;
    std::uint8_t memory_operand = 0; // which operand it is
    std::uint8_t operand_count = 0;
    std::uint8_t modrm_mask = 0;   // 0xff if there is a ModRM byte
    std::uint8_t modrm_forced = 0; // 0xc0 if there is none or it names registers whatever mod
    std::uint32_t unused = 0;      // makes 64 bytes
    std::array<OperandTemplate, 4> operands{};        // of the register form
    std::array<OperandTemplate, 4> memory_operands{}; // of the memory form
};
static_assert(sizeof(Entry) == 64);

inline constexpr std::size_t kMaxEntries = 2048;
inline constexpr std::size_t kMaxNodes = 8192;

struct Tables {
    // By "VEX", OpcodeMap, opcode.
    std::array<std::array<std::array<Node, 256>, 4>, 2> maps{};
    std::array<Node, kMaxNodes> nodes{};
    std::array<Entry, kMaxEntries> entries{};
    std::size_t node_count = 0;
    std::size_t entry_count = 1;
};
extern const Tables kTables;

} // namespace doppel::cpu::x86::decoder
