// SPDX-License-Identifier: Apache-2.0
#pragma once
/// First pass of a translation: decodes the instructions of a block and finds out what the second
/// pass must know beforehand.
#include <array>
#include <cstdint>

#include "cpu/translator/cache/block.hpp"
#include "cpu/x86/decoder/instruction.hpp"
#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/loop_plan.hpp"
#include "cpu/x86/system/context.hpp"
#include "description/tuning.hpp"

namespace doppel::cpu::x86::frontend {

/// How an instruction is translated.
enum class Treatment : std::uint8_t {
    Generic, // emitted again, operands replaced
    Nothing, // prefetch, hint NOP
    Lea,
    Push,
    PushMemory,
    PushSegment,
    Pop,
    Leave,
    Rdtsc, // and RDTSCP
    Cli,
    Sti,
    Pause,
    Cld,
    Std,
    Pushf,
    Popf,
    Clac,
    Stac,
    Swapgs,
    SegmentBase, // RDFSBASE and its like
    ReadSegment, // MOV r, sreg
    ReadControl, // MOV r, CR0/2/3/4
    String,      // MOVS, CMPS, SCAS, LODS, STOS: one element
    RepString,   // REP MOVS, REP STOS
    BitString,   // BT and its like, register offset into memory
    Jump,        // direct; likewise the following
    Conditional,
    CounterBranch, // LOOP, JrCXZ
    Call,
    IndirectJump,
    IndirectCall,
    Return,
    Syscall,
    Sysret,
    Interpret, // ends the block: the interpreter executes it
};

struct ScannedInstruction {
    Instruction in;
    std::uint16_t page_offset = 0;
    std::uint16_t buffer_offset = 0; // of its bytes in BlockScan::bytes
    Treatment treatment = Treatment::Interpret;
    std::uint8_t index = 0; // in the block
    bool stack = false;     // accesses [rsp + stack_offset], in the range of stack group …
    std::uint8_t stack_group = 0;
    std::int16_t stack_offset = 0; // from guest rsp before the instruction
    std::int16_t rsp_before = 0;   // guest rsp relative to the start of the group
    static constexpr std::uint8_t kNoGroup = 0xff;
    std::uint8_t base_group = kNoGroup; // of BlockScan::bases, whose range it accesses at …
    std::int32_t base_offset = 0;
    LoopAccess loop_access{}; // of BlockScan::loop
};

/// Stack accesses whose distance from each other is known and small: one check serves all.
struct StackGroup {
    std::int16_t low = 0, high = 0; // [low, high) from rsp at the start of the group
    bool used = false;
};

/// Accesses through the same base and index register, likewise.
struct BaseGroup {
    std::int32_t low = 0, high = 0; // [low, high) from base + index at the start of the group
    std::uint8_t accesses = 0;
    bool writes = false; // some access, before the block can be left
};

/// A guest register without a home has that of another one, which these instructions name less; its
/// own place in CpuState::gpr is where that one waits.
struct Lending {
    std::uint8_t reg = 0;
    std::uint8_t home_of = 0;
};

struct CodeBytes {
    const std::byte* first = nullptr;  // guest bytes at the block's start …
    std::uint32_t first_count = 0;     // … to the end of the page
    const std::byte* second = nullptr; // the next page, for a block of one crossing instruction
};

struct BlockScan {
    static constexpr std::size_t kMaxInstructions = 64;
    static constexpr std::size_t kMaxTurn = 128; // instructions of one turn of a loop
    static constexpr std::size_t kMaxGroups = 16;
    static constexpr std::size_t kMaxBases = 16;
    std::array<ScannedInstruction, kMaxTurn> list;
    std::size_t count = 0;
    static constexpr std::size_t kMaxBytes = 1024;
    /// A copy, as the guest may change its own meanwhile; the decoder looks beyond the last one.
    std::array<std::uint8_t, kMaxBytes + 64> bytes;
    std::array<StackGroup, kMaxGroups> groups{};
    std::array<BaseGroup, kMaxBases> bases;
    std::size_t base_count = 0;
    /// The first so many instructions do not want the flags, and the last of them makes new ones;
    /// the others write the guest registers `dead_writes`. 0: it is not so.
    std::size_t dead_count = 0;
    std::uint16_t dead_writes = 0;
    translator::FlagsWanted flags_wanted = translator::FlagsWanted::InRegister;
    std::uint16_t end_offset = 0; // page offset behind the last instruction
    std::uint32_t mode = 0;
    std::uint64_t page_va = 0;  // linear address of the block's page, here and now
    std::uint16_t far_link = 0; // number of the next direct branch to another page, see TlbInstance
    bool compact = false;       // checks are calls: see SharedChecks
    std::uint32_t landing = 0;  // number of the block's one, see CodeCache::next_landing()
    std::array<Lending, 4> lendings{};
    std::size_t lending_count = 0;
    std::size_t lending_end = 0; // list index behind the instructions that this is for
    description::Tuning tuning;
    LoopPlan loop; // active: the instructions are one turn of it, in the order of execution
};

/// Behind it an instruction may reach into the next page: not a place to jump to.
inline constexpr std::uint16_t kLastStart = 4096 - 15;

inline constexpr std::uint16_t kFlagBits = 0x8d5;

/// Leaves flags that the manuals call undefined as they were, on some CPUs: the guest gets what
/// the CPU does.
constexpr bool keeps_undefined_flags(Op op) {
    switch (op) {
    case Op::Mul:
    case Op::Imul:
    case Op::ImulWide:
    case Op::Div:
    case Op::Idiv:
    case Op::Bsf:
    case Op::Bsr:
    case Op::Lzcnt:
    case Op::Tzcnt:
    case Op::Shld:
    case Op::Shrd: return true;
    default: return false;
    }
}

/// EFLAGS must be the guest's when the instruction executes.
constexpr bool needs_flags(const Instruction& in) {
    if (keeps_undefined_flags(in.op))
        return true;
    const bool all =
        (in.flags_written & kFlagBits) == kFlagBits && !in.has(attribute::kFlagsConditional);
    return (in.flags_read & kFlagBits) != 0 || ((in.flags_written & kFlagBits) != 0 && !all);
}
constexpr bool writes_flags(const Instruction& in) { return (in.flags_written & kFlagBits) != 0; }

/// And does not need the old ones.
constexpr bool makes_all_flags(const Instruction& in) {
    return (in.flags_written & kFlagBits) == kFlagBits && !needs_flags(in);
}

/// The host may raise a signal where the guest would have an exception.
constexpr bool may_signal(const Instruction& in) {
    if (in.type == InstructionClass::Alu)
        return in.op == Op::Div || in.op == Op::Idiv || in.op == Op::Cmpxchg16b;
    switch (in.type) {
    case InstructionClass::X87:
    case InstructionClass::Mmx: return true;
    case InstructionClass::Sse:
    case InstructionClass::Avx:
        return in.has(attribute::kMxcsr | attribute::kAligned | attribute::kX87State) ||
               in.op == Op::Ldmxcsr;
    default: return false;
    }
}

/// Where the flags should be at the start, from what happens to them first.
translator::FlagsWanted wanted_flags(const BlockScan& scan);

/// Fills dead_count and dead_writes.
void find_dead_flags(BlockScan& scan);

/// `mode` is that of the block's key. The scan has at least one instruction.
void scan_block(BlockScan& out, const CodeBytes& code, std::uint16_t page_offset,
                std::uint32_t mode, const FeatureSet& features, const description::Tuning& tuning);

} // namespace doppel::cpu::x86::frontend
