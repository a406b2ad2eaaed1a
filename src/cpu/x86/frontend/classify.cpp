// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/classify.hpp"

#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/rewrite.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

// clang-format off: one line per operation would say no more.
bool is_generic_integer(Op op) {
    switch (op) {
    case Op::Add: case Op::Or: case Op::Adc: case Op::Sbb: case Op::And: case Op::Sub:
    case Op::Xor: case Op::Cmp: case Op::Test: case Op::Inc: case Op::Dec: case Op::Not:
    case Op::Neg: case Op::Mul: case Op::ImulWide: case Op::Imul: case Op::Div: case Op::Idiv:
    case Op::Rol: case Op::Ror: case Op::Rcl: case Op::Rcr: case Op::Shl: case Op::Shr:
    case Op::Sar: case Op::Shld: case Op::Shrd: case Op::Bt: case Op::Bts: case Op::Btr:
    case Op::Btc: case Op::Bsf: case Op::Bsr: case Op::Lzcnt: case Op::Tzcnt: case Op::Popcnt:
    case Op::Crc32: case Op::Bswap: case Op::Movbe: case Op::Mov: case Op::Movzx:
    case Op::Movsx: case Op::Xchg: case Op::Xadd: case Op::Cmpxchg: case Op::Cmpxchg8b:
    case Op::Cmpxchg16b: case Op::Cmov: case Op::Set: case Op::Cbw: case Op::Cwd: case Op::Lahf:
    case Op::Sahf: case Op::Clc: case Op::Stc: case Op::Cmc: case Op::Movnti: case Op::Adcx:
    case Op::Adox: case Op::Andn: case Op::Bextr: case Op::Blsi: case Op::Blsmsk: case Op::Blsr:
    case Op::Bzhi: case Op::Mulx: case Op::Pdep: case Op::Pext: case Op::Rorx: case Op::Sarx:
    case Op::Shlx: case Op::Shrx: case Op::Lfence: case Op::Mfence:
    case Op::Sfence: return true;
    default: return false;
    }
}
// clang-format on

bool is_generic_vector(Op op) {
    switch (op) {
    case Op::X87:
    case Op::Simd:
    case Op::Wait:
    case Op::Fninit:
    case Op::Fnclex:
    case Op::Fldcw:
    case Op::Fnstcw:
    case Op::Fnstsw:
    case Op::FnstswAx:
    case Op::Emms:
    case Op::Ldmxcsr:
    case Op::Stmxcsr:
    case Op::Pcmpestr:
    case Op::Pcmpistr: return true;
    default: return false;
    }
}

/// No #UD or #NM from CR0, CR4, XCR0.
bool unit_enabled(const Instruction& in, std::uint32_t mode) {
    switch (in.type) {
    case InstructionClass::X87:
    case InstructionClass::Mmx: return (mode & mode::kX87) != 0;
    case InstructionClass::Sse: return (mode & mode::kSse) != 0;
    case InstructionClass::Avx: return (mode & mode::kAvx) != 0;
    default: return true;
    }
}

/// A memory operand that one check of the soft TLB covers.
bool plain_memory(const Instruction& in) {
    if (in.memory_access == Access::None || in.memory_access == Access::Address)
        return true;
    return !in.has(attribute::kVsib | attribute::kMaskedMemory) &&
           (is_offset_move(in) || (in.has_modrm() && in.modrm_mod() != 3)) && in.memory_size != 0 &&
           in.memory_size <= 64;
}

/// VEX.W means what it does in 64-bit code; where it chooses a general register it does not.
bool vex_as_in_64(const Instruction& in) {
    const bool four_operands =
        in.map == OpcodeMap::Map0F3A && in.opcode >= 0x4a && in.opcode <= 0x4c;
    if (four_operands && (in.immediate & 0x80) != 0) // a register number whose top bit is ignored
        return false;
    return (in.rex & 8) == 0 ||
           (in.type == InstructionClass::Avx &&
            (in.map == OpcodeMap::Map0F38 || (in.map == OpcodeMap::Map0F3A && in.opcode <= 1)));
}

/// Of an instruction of flat 32-bit code: the emitted one can do the same.
bool fits_flat32(const Instruction& in) {
    if (in.is_vex() && !vex_as_in_64(in))
        return false;
    if (!in.has_memory())
        return true;
    if (in.address_size != 4 || in.memory_segment == Cs) // which need not be readable
        return false;
    // Known addresses in FS and GS are checked against the limit here, others in the block.
    const auto address = static_cast<std::uint32_t>(in.displacement);
    return in.memory_segment < Fs || !has_known_offset(in) ||
           address <= 0u - std::uint32_t{in.memory_size};
}

/// Together with the return address it fits into Site::extra.
constexpr std::int64_t kMostReleased = 0xffff - 8;

Treatment classify_branch(const Instruction& in, std::uint32_t mode) {
    if (in.operand_size != word_bytes(mode))
        return Treatment::Interpret;
    switch (in.branch) {
    case BranchKind::Jump: return Treatment::Jump;
    case BranchKind::Call: return Treatment::Call;
    case BranchKind::Conditional:
        if (in.op == Op::Jcc)
            return Treatment::Conditional;
        return (in.op == Op::Loop || in.op == Op::Jcxz) && in.address_size != 2
                   ? Treatment::CounterBranch
                   : Treatment::Interpret;
    case BranchKind::IndirectJump: return Treatment::IndirectJump;
    case BranchKind::IndirectCall: return Treatment::IndirectCall;
    case BranchKind::Return:
        return in.operands[0].kind == OperandKind::Immediate && in.immediate > kMostReleased
                   ? Treatment::Interpret
                   : Treatment::Return;
    default: return Treatment::Interpret;
    }
}

/// ah and its like, where a REX prefix or a change of places with al would be in the way.
bool is_awkward_high_byte(const Instruction& in) {
    const bool exchanges = in.op == Op::Cmpxchg && in.has_memory();
    if (!exchanges && !in.names(Rsp))
        return false;
    bool high = false;
    bool stack_pointer = false;
    for (const Operand& operand : in.operands) {
        high |= operand.kind == OperandKind::GprHigh;
        stack_pointer |= operand.kind == OperandKind::Gpr && operand.reg == Rsp;
    }
    return high && (stack_pointer || exchanges);
}

/// Counting blocks leave repeated ones to the interpreter, which counts its way through long ones.
Treatment classify_string(const Instruction& in, std::uint32_t mode) {
    const bool flat = in.memory_segment < Fs && (in.address_size == 8 || in.memory_segment != Cs);
    if (in.address_size != word_bytes(mode) || !flat)
        return Treatment::Interpret;
    if (!in.rep() && !in.repne())
        return Treatment::String;
    return (mode & mode::kCount) == 0 && !in.repne() && (in.op == Op::Movs || in.op == Op::Stos)
               ? Treatment::RepString
               : Treatment::Interpret;
}

Treatment classify_stack(const Instruction& in, std::uint32_t mode) {
    if (in.operand_size != word_bytes(mode))
        return Treatment::Interpret;
    if (in.op == Op::Pop)
        return in.operands[0].kind == OperandKind::Gpr ? Treatment::Pop : Treatment::Interpret;
    if (in.op == Op::PushSegment)
        return Treatment::PushSegment;
    if (in.op == Op::Push)
        return in.has_memory() ? Treatment::PushMemory : Treatment::Push;
    return Treatment::Leave;
}

} // namespace

bool interpreter_decides(const Instruction& in) {
    return in.has(attribute::kAligned | attribute::kX87State) || in.type == InstructionClass::X87 ||
           in.type == InstructionClass::Mmx;
}

/// Bit-string addressing (register offset, memory operand) reaches beyond the operand.
bool is_bit_string(const Instruction& in) {
    return (in.op == Op::Bt || in.op == Op::Bts || in.op == Op::Btr || in.op == Op::Btc) &&
           in.has_memory() && in.operands[1].kind == OperandKind::Gpr;
}

namespace {

constexpr Treatment when(bool condition, Treatment treatment) {
    return condition ? treatment : Treatment::Interpret;
}

/// Instructions of kernels and clocks; Interpret for all others.
Treatment classify_system(const Instruction& in, std::uint32_t mode) {
    const bool kernel = (mode & mode::kUser) == 0;
    const bool code64 = (mode & mode::kCode32) == 0;
    const bool word = in.operand_size == word_bytes(mode);
    const std::uint8_t number = in.operands[1].reg;
    switch (in.op) {
    case Op::Rdtsc:
    case Op::Rdtscp: return when((mode & mode::kTsc) != 0, Treatment::Rdtsc);
    case Op::Cli: return when(kernel, Treatment::Cli);
    case Op::Sti: return when(kernel, Treatment::Sti);
    case Op::MovFromControl:
        return when(kernel && number <= 4 && number != 1, Treatment::ReadControl);
    case Op::Cld: return Treatment::Cld;
    case Op::Std: return Treatment::Std;
    case Op::Swapgs: return when(kernel && code64, Treatment::Swapgs);
    case Op::Clac: return when(kernel, Treatment::Clac);
    case Op::Stac: return when(kernel, Treatment::Stac);
    case Op::Rdfsbase:
    case Op::Rdgsbase:
    case Op::Wrfsbase:
    case Op::Wrgsbase: return when(code64, Treatment::SegmentBase);
    case Op::Popf: return when(kernel && word, Treatment::Popf);
    case Op::Pushf: return when(word, Treatment::Pushf);
    case Op::MovFromSegment: return when(!in.has_memory(), Treatment::ReadSegment);
    default: return Treatment::Interpret;
    }
}

Treatment classify_bit_string(const Instruction& in, std::uint32_t mode) {
    const std::uint8_t word = word_bytes(mode);
    return when(in.operand_size != 2 && in.address_size == word &&
                    (word == 8 || in.memory_segment < Fs),
                Treatment::BitString);
}

/// F3 REX.B 90: on hosts of Intel's it is PAUSE. Ours is one on every host.
bool is_xchg_or_pause(const Instruction& in) {
    return in.op == Op::Xchg && in.opcode == 0x90 && in.rep();
}

bool can_execute(const Instruction& in, std::uint32_t mode, const FeatureSet& features) {
    return (in.feature == IsaFeature::None || features.has(in.feature)) && unit_enabled(in, mode) &&
           plain_memory(in) && ((mode & mode::kCode32) == 0 || fits_flat32(in));
}

} // namespace

Treatment classify(const Instruction& in, std::uint32_t mode, const FeatureSet& features) {
    if (!can_execute(in, mode, features))
        return Treatment::Interpret;
    if ((mode & mode::kCode32) == 0) {
        const bool kernel = (mode & mode::kUser) == 0;
        if (in.op == Op::Syscall && !kernel)
            return Treatment::Syscall;
        if (in.op == Op::Sysret && kernel && in.operand_size == 8)
            return Treatment::Sysret;
    }
    if (in.branch != BranchKind::None)
        return classify_branch(in, mode);
    switch (in.op) {
    case Op::Nop:
    case Op::Prefetch: return Treatment::Nothing;
    case Op::Pause: return (mode & mode::kCount) != 0 ? Treatment::Generic : Treatment::Pause;
    case Op::Lea: return Treatment::Lea;
    case Op::Push:
    case Op::PushSegment:
    case Op::Pop:
    case Op::Leave: return classify_stack(in, mode);
    case Op::Movs:
    case Op::Cmps:
    case Op::Scas:
    case Op::Lods:
    case Op::Stos: return classify_string(in, mode);
    default: break;
    }
    if (is_bit_string(in))
        return classify_bit_string(in, mode);
    if (is_awkward_high_byte(in) || is_xchg_or_pause(in))
        return Treatment::Interpret;
    return is_generic_integer(in.op) || is_generic_vector(in.op) ? Treatment::Generic
                                                                 : classify_system(in, mode);
}

} // namespace doppel::cpu::x86::frontend
