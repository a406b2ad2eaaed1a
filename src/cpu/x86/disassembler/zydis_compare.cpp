// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/disassembler/zydis_compare.hpp"

#include <Zydis/Zydis.h>
#include <fmt/format.h>

#include "cpu/x86/disassembler/disassembler.hpp"
#include "cpu/x86/disassembler/zydis_allowed.hpp"

namespace doppel::cpu::x86 {
namespace {

struct Pair {
    const Instruction& ours;
    const ZydisDecodedInstruction& theirs;
    const ZydisDecodedOperand* operands;
    CodeSize code_size;
};

const ZydisDecoder& decoder_for(CodeSize code_size) {
    static const auto decoders = [] {
        std::array<ZydisDecoder, 3> made{};
        ZydisDecoderInit(&made[0], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
        ZydisDecoderInit(&made[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
        ZydisDecoderInit(&made[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
        for (auto& decoder : made)
            for (const auto mode : {ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET,
                                    ZYDIS_DECODER_MODE_CLDEMOTE, ZYDIS_DECODER_MODE_WBNOINVD})
                ZydisDecoderEnableMode(&decoder, mode, ZYAN_FALSE);
        return made;
    }();
    return decoders[std::size_t(code_size)];
}

/// Register number as we count: 0..15, kRip, kNoRegister.
std::uint8_t number_of(ZydisRegister reg) {
    if (reg == ZYDIS_REGISTER_NONE)
        return kNoRegister;
    if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
        return kRip;
    if (ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_GPR8) {
        const auto wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
        return std::uint8_t(ZydisRegisterGetId(wide));
    }
    return std::uint8_t(ZydisRegisterGetId(reg));
}

bool is_gpr(ZydisRegister reg) {
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8:
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64: return true;
    default: return false;
    }
}

OperandKind kind_of(ZydisRegister reg) {
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8:
        return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH ? OperandKind::GprHigh
                                                                    : OperandKind::Gpr;
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64: return OperandKind::Gpr;
    case ZYDIS_REGCLASS_X87: return OperandKind::X87;
    case ZYDIS_REGCLASS_MMX: return OperandKind::Mmx;
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM: return OperandKind::Vector;
    case ZYDIS_REGCLASS_SEGMENT: return OperandKind::Segment;
    case ZYDIS_REGCLASS_CONTROL: return OperandKind::Control;
    case ZYDIS_REGCLASS_DEBUG: return OperandKind::Debug;
    default: return OperandKind::None;
    }
}

std::string describe(std::span<const std::uint8_t> bytes, CodeSize code_size,
                     const ZydisDecodedInstruction* theirs, const ZydisDecodedOperand* operands) {
    std::string text = fmt::format("{}-bit code", 16 << unsigned(code_size));
    for (std::size_t i = 0; i < bytes.size() && i < 15; ++i)
        text += fmt::format(" {:02x}", bytes[i]);
    if (theirs == nullptr)
        return text;
    ZydisFormatter formatter;
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    char line[160];
    ZydisFormatterFormatInstruction(&formatter, theirs, operands, theirs->operand_count_visible,
                                    line, sizeof line, 0, nullptr);
    return text + ": " + line;
}

Difference differ(const char* field, std::uint64_t ours, std::uint64_t theirs) {
    return {field, fmt::format("ours {:#x}, Zydis {:#x}", ours, theirs)};
}

Difference compare_memory(const Pair& pair, const ZydisDecodedOperand& operand) {
    const Instruction& in = pair.ours;
    const auto& mem = operand.mem;
    if (in.memory_base != number_of(mem.base))
        return differ("base", in.memory_base, number_of(mem.base));
    if (in.memory_index != number_of(mem.index))
        return differ("index", in.memory_index, number_of(mem.index));
    if (mem.index != ZYDIS_REGISTER_NONE && in.memory_scale != (mem.scale == 0 ? 1 : mem.scale))
        return differ("scale", in.memory_scale, mem.scale);
    if (in.op != Op::Lea && mem.segment != ZYDIS_REGISTER_NONE &&
        in.memory_segment != number_of(mem.segment))
        return differ("segment", in.memory_segment, number_of(mem.segment));
    const auto mask = in.address_size == 8 ? ~0ull : (1ull << in.address_size * 8) - 1;
    if ((std::uint64_t(in.displacement) & mask) != (std::uint64_t(mem.disp.value) & mask))
        return differ("displacement", std::uint64_t(in.displacement),
                      std::uint64_t(mem.disp.value));
    if (in.memory_access != Access::Address && in.memory_size != kVariableSize &&
        in.memory_size != operand.size / 8 && operand.size != 0)
        return differ("memory size", in.memory_size, operand.size / 8);
    return {};
}

/// Read 1, write 2; ZYDIS's conditional ones count as both.
unsigned access_of(const ZydisDecodedOperand& operand) {
    unsigned access = 0;
    if ((operand.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0)
        access |= 1;
    if ((operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0)
        access |= 2;
    if ((operand.actions & ZYDIS_OPERAND_ACTION_CONDWRITE) != 0)
        access |= 1;
    return access;
}

Difference compare_operand(const Pair& pair, const Operand& ours,
                           const ZydisDecodedOperand& theirs) {
    if (theirs.type == ZYDIS_OPERAND_TYPE_MEMORY) {
        if (ours.kind != OperandKind::Memory)
            return differ("operand kind", unsigned(ours.kind), unsigned(OperandKind::Memory));
        if (ours.access != Access::Address && unsigned(ours.access) != access_of(theirs))
            return differ("memory access", unsigned(ours.access), access_of(theirs));
        return compare_memory(pair, theirs);
    }
    if (theirs.type == ZYDIS_OPERAND_TYPE_REGISTER) {
        if (ours.kind != kind_of(theirs.reg.value))
            return differ("operand kind", unsigned(ours.kind), unsigned(kind_of(theirs.reg.value)));
        const auto number = ours.kind == OperandKind::GprHigh ? theirs.reg.value - ZYDIS_REGISTER_AH
                                                              : number_of(theirs.reg.value);
        if (ours.reg != number)
            return differ("operand register", ours.reg, unsigned(number));
        const auto width = ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, theirs.reg.value);
        if ((ours.kind == OperandKind::Gpr || ours.kind == OperandKind::Vector) &&
            ours.size * 8 != width)
            return differ("operand size", ours.size, width / 8);
        return {};
    }
    return {};
}

Difference compare_immediate(const Pair& pair, const ZydisDecodedOperand& theirs) {
    const Instruction& in = pair.ours;
    std::uint64_t ours = in.immediate;
    auto value = theirs.imm.value.u;
    if (&theirs == &pair.operands[1] && in.op == Op::Enter)
        ours = in.immediate2;
    if (!theirs.imm.is_relative && theirs.size < 64 && theirs.size != 0) {
        const auto mask = (1ull << theirs.size) - 1;
        ours &= mask;
        value &= mask;
    }
    return ours == value ? Difference{} : differ("immediate", ours, value);
}

/// Zydis shows one operand of most x87 instructions, we list two: only memory is compared.
Difference compare_x87(const Pair& pair) {
    for (unsigned i = 0; i < pair.theirs.operand_count_visible; ++i)
        if (pair.operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            return compare_memory(pair, pair.operands[i]);
    return {};
}

Difference compare_operands(const Pair& pair) {
    if (pair.ours.type == InstructionClass::X87)
        return compare_x87(pair);
    if (pair.ours.op == Op::Nop) // hint NOPs touch none of their operands
        return {};
    for (unsigned i = 0; i < pair.theirs.operand_count_visible && i < 4; ++i) {
        const auto& theirs = pair.operands[i];
        const Operand& ours = pair.ours.operands[i];
        if (theirs.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            if (ours.kind != OperandKind::Immediate && ours.kind != OperandKind::Immediate2 &&
                ours.kind != OperandKind::Relative)
                return differ("operand kind", unsigned(ours.kind),
                              unsigned(OperandKind::Immediate));
            if (auto found = compare_immediate(pair, theirs); !found.field.empty())
                return found;
            continue;
        }
        if (theirs.type == ZYDIS_OPERAND_TYPE_POINTER) {
            if (pair.ours.immediate != theirs.ptr.offset ||
                pair.ours.immediate2 != theirs.ptr.segment)
                return differ("far pointer", pair.ours.immediate, theirs.ptr.offset);
            continue;
        }
        if (auto found = compare_operand(pair, ours, theirs); !found.field.empty())
            return found;
    }
    return {};
}

Difference compare_registers(const Pair& pair) {
    if (pair.ours.op == Op::Nop)
        return {};
    unsigned read = 0;
    unsigned written = 0;
    for (unsigned i = 0; i < pair.theirs.operand_count; ++i) {
        const auto& operand = pair.operands[i];
        if (operand.type == ZYDIS_OPERAND_TYPE_MEMORY) {
            for (const auto reg : {operand.mem.base, operand.mem.index})
                if (is_gpr(reg))
                    read |= 1u << (number_of(reg) & 15u);
        }
        if (operand.type != ZYDIS_OPERAND_TYPE_REGISTER || !is_gpr(operand.reg.value))
            continue;
        const unsigned bit = 1u << (number_of(operand.reg.value) & 15u);
        const unsigned access = access_of(operand);
        if ((access & 1) != 0 || ((access & 2) != 0 && operand.size < 32))
            read |= bit;
        if ((access & 2) != 0)
            written |= bit;
    }
    if ((pair.ours.registers_read & read) != read)
        return differ("registers read", pair.ours.registers_read, read);
    if (pair.ours.registers_written != written)
        return differ("registers written", pair.ours.registers_written, written);
    return {};
}

Difference compare_flags(const Pair& pair) {
    constexpr unsigned kCompared = 0x0ed5; // all but TF, IOPL, NT
    if (pair.theirs.cpu_flags == nullptr)
        return {};
    const auto& flags = *pair.theirs.cpu_flags;
    const unsigned read = flags.tested & kCompared;
    const unsigned written =
        (flags.modified | flags.set_0 | flags.set_1 | flags.undefined) & kCompared;
    if ((pair.ours.flags_read & kCompared) != read)
        return differ("flags read", pair.ours.flags_read, read);
    if ((pair.ours.flags_written & kCompared) != written)
        return differ("flags written", pair.ours.flags_written, written);
    if ((pair.ours.flags_undefined & kCompared) != (flags.undefined & kCompared))
        return differ("flags undefined", pair.ours.flags_undefined, flags.undefined);
    return {};
}

Difference compare_shape(const Pair& pair) {
    const Instruction& in = pair.ours;
    const auto& raw = pair.theirs.raw;
    if (in.length != pair.theirs.length)
        return differ("length", in.length, pair.theirs.length);
    if (in.address_size * 8 != pair.theirs.address_width)
        return differ("address size", in.address_size, pair.theirs.address_width / 8);
    if (in.opcode != pair.theirs.opcode)
        return differ("opcode", in.opcode, pair.theirs.opcode);
    if (in.has_modrm() != ((pair.theirs.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0) ||
        in.modrm_offset != raw.modrm.offset)
        return differ("modrm offset", in.modrm_offset, raw.modrm.offset);
    if (in.displacement_size != raw.disp.size / 8)
        return differ("displacement size", in.displacement_size, raw.disp.size / 8);
    if (raw.disp.size != 0 && in.displacement_offset() != raw.disp.offset)
        return differ("displacement offset", in.displacement_offset(), raw.disp.offset);
    if (in.immediate_size != (raw.imm[0].size + raw.imm[1].size) / 8)
        return differ("immediate size", in.immediate_size,
                      unsigned(raw.imm[0].size + raw.imm[1].size) / 8);
    const bool integer = in.type == InstructionClass::Alu || in.type == InstructionClass::Branch ||
                         in.type == InstructionClass::String || in.type == InstructionClass::Io;
    if (integer && in.operand_size * 8 != pair.theirs.operand_width)
        return differ("operand size", in.operand_size, pair.theirs.operand_width / 8);
    return {};
}

/// Operations whose name does not begin Zydis's mnemonic, and what does.
std::string_view mnemonic_start(Op op) {
    switch (op) {
    case Op::ImulWide: return "imul";
    case Op::Jcc:
    case Op::Jcxz: return "j";
    case Op::Set: return "set";
    case Op::Cbw: return "c"; // CBW, CWDE, CDQE; CWD, CDQ, CQO
    case Op::Cwd: return "c";
    case Op::JmpFar: return "jmp";
    case Op::CallFar: return "call";
    case Op::RetFar: return "ret";
    case Op::PushSegment: return "push";
    case Op::PopSegment: return "pop";
    case Op::MovFromSegment:
    case Op::MovToSegment:
    case Op::MovFromControl:
    case Op::MovToControl:
    case Op::MovFromDebug:
    case Op::MovToDebug: return "mov";
    case Op::LoadFarPointer: return "l";
    case Op::X87: return "f";
    case Op::Wait: return "fwait";
    case Op::FnstswAx: return "fnstsw";
    case Op::Emms:
    case Op::Ldmxcsr:
    case Op::Stmxcsr:
    case Op::MaskMov:
    case Op::VmaskMov:
    case Op::Gather:
    case Op::Pcmpestr:
    case Op::Pcmpistr:
    case Op::Nop:
    case Op::Simd: return ""; // several, with and without v
    default: return op_name(op);
    }
}

/// The rest of the mnemonic is a size, a condition or a hint: short.
Difference compare_name(const Pair& pair) {
    const std::string_view theirs = ZydisMnemonicGetString(pair.theirs.mnemonic);
    const auto start = mnemonic_start(pair.ours.op);
    if (!start.empty() && start.size() > 1 &&
        (!theirs.starts_with(start) || theirs.size() > start.size() + 3))
        return {"operation", fmt::format("ours {}", op_name(pair.ours.op))};
    if (start.size() == 1 && theirs.front() != start.front())
        return {"operation", fmt::format("ours {}", op_name(pair.ours.op))};
    return {};
}

/// SDM Vol. 2 §2.4: the exception class says whether memory must be aligned and MXCSR matters.
Difference compare_attributes(const Pair& pair) {
    const Instruction& in = pair.ours;
    const bool has_mmx = in.has(attribute::kX87State);
    if (in.has_memory() && in.memory_size >= 16 && in.memory_access != Access::Address) {
        bool aligned = false;
        switch (pair.theirs.meta.exception_class) {
        case ZYDIS_EXCEPTION_CLASS_NONE: return {};
        case ZYDIS_EXCEPTION_CLASS_SSE1:
        case ZYDIS_EXCEPTION_CLASS_SSE2:
        case ZYDIS_EXCEPTION_CLASS_SSE4:
        case ZYDIS_EXCEPTION_CLASS_AVX1: aligned = true; break;
        default: break;
        }
        if (aligned != in.has(attribute::kAligned))
            return differ("alignment", in.has(attribute::kAligned), aligned);
    }
    switch (pair.theirs.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE3:
    case ZYDIS_EXCEPTION_CLASS_AVX2:
    case ZYDIS_EXCEPTION_CLASS_AVX3:
    case ZYDIS_EXCEPTION_CLASS_AVX11:
        return in.has(attribute::kMxcsr) ? Difference{} : differ("MXCSR", 0, 1);
    case ZYDIS_EXCEPTION_CLASS_NONE: return {};
    default: return in.has(attribute::kMxcsr) && !has_mmx ? differ("MXCSR", 1, 0) : Difference{};
    }
}

Difference compare_defined(const Pair& pair) {
    for (const auto check : {compare_shape, compare_name, compare_operands, compare_flags,
                             compare_registers, compare_attributes})
        if (auto found = check(pair); !found.field.empty())
            return found;
    return {};
}

const char* name_of(DecodeStatus status) {
    constexpr const char* kNames[] = {"ok", "need more bytes", "undefined", "too long"};
    return kNames[unsigned(status)];
}

DecodeStatus status_of(ZyanStatus status) {
    if (ZYAN_SUCCESS(status))
        return DecodeStatus::Ok;
    if (status == ZYDIS_STATUS_NO_MORE_DATA)
        return DecodeStatus::NeedMoreBytes;
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG)
        return DecodeStatus::TooLong;
    return DecodeStatus::Undefined;
}

} // namespace

Difference compare_with_zydis(std::span<const std::uint8_t> bytes, CodeSize code_size) {
    ZydisDecodedInstruction theirs;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    const auto result = ZydisDecoderDecodeFull(&decoder_for(code_size), bytes.data(), bytes.size(),
                                               &theirs, operands);
    Instruction ours;
    const auto our_status = decode(bytes, code_size, ours);
    const auto their_status = status_of(result);
    const bool both = our_status == DecodeStatus::Ok && their_status == DecodeStatus::Ok;
    Difference found;
    if (both)
        found = compare_defined({ours, theirs, operands, code_size});
    else if (our_status != their_status)
        found = {"status",
                 fmt::format("ours {}, Zydis {}", name_of(our_status), name_of(their_status))};
    if (found.field.empty())
        return {};
    const bool decoded = their_status == DecodeStatus::Ok;
    const Disagreement disagreement{bytes,
                                    code_size,
                                    found.field,
                                    our_status,
                                    their_status,
                                    our_status == DecodeStatus::Ok ? &ours : nullptr,
                                    decoded ? &theirs : nullptr};
    if (is_allowed(disagreement))
        return {};
    found.detail += "; " + describe(bytes, code_size, decoded ? &theirs : nullptr, operands);
    return found;
}

} // namespace doppel::cpu::x86
