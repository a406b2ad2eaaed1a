// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/decoder/decoder.hpp"

#include "cpu/x86/decoder/sizes.hpp"
#include "cpu/x86/decoder/table.hpp"

#define DOPPEL_DECODER_INLINE [[gnu::always_inline]] inline

namespace doppel::cpu::x86 {
namespace decoder {
namespace {

constexpr unsigned kMaxLength = 15;
/// The farthest byte that is looked at, whatever the code: 14 prefixes, two escapes and the opcode,
/// ModRM, SIB, displacement, and an eight-byte load of the immediate.
constexpr std::size_t kReach = 32;

enum class PrefixByte : std::uint8_t { None, Segment, Size, Address, Lock, Repne, Rep, Rex };

constexpr auto kPrefixBytes = [] {
    std::array<PrefixByte, 256> table{};
    for (const unsigned byte : {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65})
        table[byte] = PrefixByte::Segment;
    for (unsigned byte = 0x40; byte < 0x50; ++byte)
        table[byte] = PrefixByte::Rex;
    table[0x66] = PrefixByte::Size;
    table[0x67] = PrefixByte::Address;
    table[0xf0] = PrefixByte::Lock;
    table[0xf2] = PrefixByte::Repne;
    table[0xf3] = PrefixByte::Rep;
    return table;
}();

/// What kinds and accesses of operands mean for the sets of general registers: bit 0 reads, 1 writes.
constexpr auto kRegisterUse = [] {
    std::array<std::uint8_t, 256> table{};
    for (unsigned kind = 0; kind < 32; ++kind)
        for (unsigned access = 0; access < 4; ++access)
            if (OperandKind(kind) == OperandKind::Gpr || OperandKind(kind) == OperandKind::GprHigh)
                table[access << 5 | kind] = std::uint8_t(access);
    return table;
}();

constexpr std::uint8_t kBases16[8] = {3, 3, 5, 5, 6, 7, 5, 3};
constexpr std::uint8_t kIndexes16[8] = {6, 7, 6, 7, kNoRegister, kNoRegister, kNoRegister,
                                        kNoRegister};

template <typename T> DOPPEL_DECODER_INLINE T load(const std::uint8_t* at) {
    T value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
}

/// One decoding in progress. Lives in registers: everything below is inlined into decode().
struct Decoding {
    const std::uint8_t* code; // kReach bytes can be read
    CodeSize mode;
    unsigned position = 0;
    std::uint8_t prefixes = 0;
    std::uint8_t segment = kNoRegister;
    unsigned rex = 0;    // WRXB in the low bits
    unsigned choice = 0; // 0 none, 1 = 66, 2 = F3, 3 = F2
    unsigned vvvv = 0;   // upright: 0 if the field is all ones
    unsigned vector = 0; // VEX.L
    OpcodeMap map = OpcodeMap::Primary;
    Encoding encoding = Encoding::Legacy;
    std::uint8_t opcode = 0;
    std::uint8_t modrm = 0;
    bool modrm_seen = false; // it has been looked at, so it belongs to the instruction
    const Entry* entry = nullptr;

    bool long_mode() const { return mode == CodeSize::Bits64; }
    unsigned mod() const { return modrm >> 6; }
    unsigned reg() const { return modrm >> 3 & 7u; }
    unsigned rm() const { return modrm & 7u; }
};

DOPPEL_DECODER_INLINE void take_segment(Decoding& d, std::uint8_t byte) {
    if (byte >= 0x64)
        d.segment = std::uint8_t(byte - 0x60);
    else if (!d.long_mode()) // ignored in 64-bit code, SDM Vol. 1 §3.4.2.1
        d.segment = byte >> 3 & 3;
    d.prefixes |= prefix::kSegment;
}

/// Prefixes up to the opcode. A REX counts only if it stands directly before the opcode.
DOPPEL_DECODER_INLINE bool read_prefixes(Decoding& d) {
    unsigned rex = 0;
    for (;; ++d.position) {
        if (d.position == kMaxLength)
            return false;
        const std::uint8_t byte = d.code[d.position];
        const PrefixByte kind = kPrefixBytes[byte];
        if (kind == PrefixByte::None)
            break;
        if (kind == PrefixByte::Rex) {
            if (!d.long_mode())
                break;
            rex = byte;
            continue;
        }
        rex = 0;
        switch (kind) {
        case PrefixByte::Segment:
            take_segment(d, byte);
            break;
        case PrefixByte::Size:
            d.prefixes |= prefix::kOperandSize;
            break;
        case PrefixByte::Address:
            d.prefixes |= prefix::kAddressSize;
            break;
        case PrefixByte::Lock:
            d.prefixes |= prefix::kLock;
            break;
        case PrefixByte::Repne: // the last of F2 and F3 counts
            d.prefixes = std::uint8_t((d.prefixes & ~prefix::kRep) | prefix::kRepne);
            break;
        default:
            d.prefixes = std::uint8_t((d.prefixes & ~prefix::kRepne) | prefix::kRep);
            break;
        }
    }
    if (rex != 0)
        d.prefixes |= prefix::kRex;
    d.rex = rex & 0xf;
    return true;
}

/// VEX; SDM Vol. 2 §2.3.5. False: undefined.
DOPPEL_DECODER_INLINE bool read_vex(Decoding& d) {
    constexpr std::uint8_t kForbidden = prefix::kOperandSize | prefix::kRep | prefix::kRepne |
                                        prefix::kLock | prefix::kRex;
    constexpr std::uint8_t kByPp[] = {0, prefix::kOperandSize, prefix::kRep, prefix::kRepne};
    const bool three = d.code[d.position] == 0xc4;
    const std::uint8_t first = d.code[d.position + 1];
    const std::uint8_t last = three ? d.code[d.position + 2] : first;
    const unsigned map = three ? first & 0x1fu : 1u;
    const unsigned inverted = std::uint8_t(~first);
    d.rex = three ? inverted >> 5 : inverted >> 5 & 4u;
    if (three && (last & 0x80) != 0)
        d.rex |= 8u;
    d.vvvv = std::uint8_t(~last) >> 3 & 0xfu;
    if (!d.long_mode()) // R and X are 0 there, or this were LES or LDS; B is ignored
        d.rex &= 8u;
    d.vector = last >> 2 & 1u;
    d.choice = last & 3u;
    d.encoding = three ? Encoding::Vex3 : Encoding::Vex2;
    d.position += three ? 3 : 2;
    if ((d.prefixes & kForbidden) != 0 || map == 0 || map > 3)
        return false;
    d.prefixes |= kByPp[d.choice];
    d.map = OpcodeMap(map);
    return true;
}

/// Escapes and VEX. False: undefined.
DOPPEL_DECODER_INLINE bool read_escapes(Decoding& d) {
    const std::uint8_t byte = d.code[d.position];
    if (byte == 0x0f) {
        const std::uint8_t second = d.code[++d.position];
        d.map = OpcodeMap::Map0F;
        if (second == 0x38 || second == 0x3a) {
            d.map = second == 0x38 ? OpcodeMap::Map0F38 : OpcodeMap::Map0F3A;
            ++d.position;
        }
    } else if ((byte & 0xfe) == 0xc4 || byte == 0x62) { // VEX, EVEX, or LES, LDS, BOUND
        if (d.long_mode() || d.code[d.position + 1] >= 0xc0) {
            if (byte == 0x62) {
                d.position += 2;
                return false;
            }
            return read_vex(d);
        }
    }
    d.choice = (d.prefixes & prefix::kRepne) != 0 ? 3u
               : (d.prefixes & prefix::kRep) != 0 ? 2u
                                                  : unsigned(d.prefixes & prefix::kOperandSize);
    return true;
}

/// Follows the choices from the opcode to its entry. False: undefined.
DOPPEL_DECODER_INLINE bool find_entry(Decoding& d) {
    d.opcode = d.code[d.position++];
    d.modrm = d.code[d.position];
    const auto& maps = d.encoding == Encoding::Legacy ? kTables.legacy : kTables.vex;
    Node node = maps[unsigned(d.map)][d.opcode];
    if ((node & kBranch) != 0) {
        const std::uint64_t properties =
            std::uint64_t(d.long_mode()) | std::uint64_t(d.choice) << 8 |
            std::uint64_t(d.mod() == 3) << 16 | std::uint64_t(d.reg()) << 24 |
            std::uint64_t(d.rm()) << 32 | std::uint64_t(d.rex >> 3) << 40 |
            std::uint64_t(d.vector) << 48 | std::uint64_t(d.rex & 1u) << 56;
        constexpr unsigned kModrmChoices =
            1u << unsigned(Choice::Mod) | 1u << unsigned(Choice::Reg) | 1u << unsigned(Choice::Rm);
        do {
            const unsigned choice = node >> 12 & 7u;
            d.modrm_seen = d.modrm_seen || (kModrmChoices >> choice & 1u) != 0;
            node = kTables.nodes[(node & 0xfffu) * 2 + (properties >> choice * 8 & 7u)];
        } while ((node & kBranch) != 0);
    }
    d.entry = &kTables.entries[node];
    return node != 0;
}

DOPPEL_DECODER_INLINE std::int64_t read_displacement(Decoding& d, unsigned size) {
    const std::uint8_t* at = d.code + d.position;
    d.position += size;
    return size == 1   ? std::int64_t(load<std::int8_t>(at))
           : size == 4 ? std::int64_t(load<std::int32_t>(at))
                       : std::int64_t(load<std::int16_t>(at));
}

/// ModRM with 16-bit addresses; SDM Vol. 2 table 2-1.
DOPPEL_DECODER_INLINE void read_address16(Decoding& d, Instruction& out) {
    const bool direct = d.mod() == 0 && d.rm() == 6;
    out.memory_base = direct ? kNoRegister : kBases16[d.rm()];
    out.memory_index = kIndexes16[d.rm()];
    if (out.memory_base == 5 && d.segment == kNoRegister)
        out.memory_segment = 2;
    const unsigned size = direct ? 2u : d.mod();
    out.displacement_size = size & 0xfu;
    if (size != 0)
        out.displacement = read_displacement(d, size);
}

/// ModRM and SIB with 32- and 64-bit addresses; SDM Vol. 2 tables 2-2 and 2-3.
DOPPEL_DECODER_INLINE void read_address(Decoding& d, Instruction& out) {
    unsigned base = d.rm();
    if (base == 4) {
        const std::uint8_t sib = d.code[d.position++];
        const unsigned index = (sib >> 3 & 7u) | (d.rex << 2 & 8u);
        base = sib & 7u;
        out.memory_index = index == 4 ? kNoRegister : std::uint8_t(index);
        out.memory_scale = std::uint8_t(1u << (sib >> 6));
    }
    const bool no_base = base == 5 && d.mod() == 0;
    unsigned size = d.mod() == 2 ? 4u : d.mod();
    if (no_base) {
        size = 4;
        out.memory_base = d.rm() == 5 && d.long_mode() ? kRip : kNoRegister;
    } else {
        base |= d.rex << 3 & 8u;
        out.memory_base = std::uint8_t(base);
        if ((base & 0xeu) == 4 && d.segment == kNoRegister) // rsp, rbp
            out.memory_segment = 2;
    }
    out.displacement_size = size & 0xfu;
    if (size != 0)
        out.displacement = read_displacement(d, size);
}

DOPPEL_DECODER_INLINE void read_memory(Decoding& d, const SizeColumn& sizes, Instruction& out) {
    const Entry& entry = *d.entry;
    out.memory_access = entry.memory_access;
    out.memory_size = sizes[unsigned(entry.memory_size)];
    if (out.address_size == 2)
        read_address16(d, out);
    else
        read_address(d, out);
    if (out.memory_base < 16)
        out.registers_read |= std::uint16_t(1u << out.memory_base);
    if (out.memory_index < 16)
        out.registers_read |= std::uint16_t(1u << out.memory_index);
}

/// Immediates of a shape of their own.
void read_unusual_immediate(Decoding& d, const SizeColumn& sizes, Instruction& out) {
    const std::uint8_t* at = d.code + d.position;
    unsigned size = 0;
    switch (d.entry->immediate) {
    case ImmediateCode::Constant1:
        out.immediate = 1;
        break;
    case ImmediateCode::Enter:
        out.immediate = load<std::uint16_t>(at);
        out.immediate2 = at[2];
        size = 3;
        break;
    case ImmediateCode::Far:
        size = out.operand_size;
        out.immediate = size == 2 ? load<std::uint16_t>(at) : load<std::uint32_t>(at);
        out.immediate2 = load<std::uint16_t>(at + size);
        size += 2;
        break;
    default: // Moffs: the address takes the displacement's place
        size = out.address_size;
        out.displacement = size == 8   ? load<std::int64_t>(at)
                           : size == 4 ? std::int64_t(load<std::uint32_t>(at))
                                       : std::int64_t(load<std::uint16_t>(at));
        out.displacement_size = size & 0xfu;
        out.memory_access = d.entry->memory_access;
        out.memory_size = sizes[unsigned(d.entry->memory_size)];
        d.position += size;
        return;
    }
    out.immediate_size = size & 0xfu;
    d.position += size;
}

DOPPEL_DECODER_INLINE void read_immediate(Decoding& d, unsigned size_log2, const SizeColumn& sizes,
                                          Instruction& out) {
    const ImmediateCode code = d.entry->immediate;
    if (code == ImmediateCode::None)
        return;
    if (code >= ImmediateCode::Constant1) {
        read_unusual_immediate(d, sizes, out);
        return;
    }
    const unsigned size = kImmediateSizes[unsigned(code)][size_log2];
    const unsigned shift = 64 - 8 * size;
    const std::uint64_t bits = load<std::uint64_t>(d.code + d.position) << shift;
    const bool is_signed = code == ImmediateCode::Signed8 || code == ImmediateCode::SignedZ;
    out.immediate = is_signed ? std::uint64_t(std::int64_t(bits) >> shift) : bits >> shift;
    out.immediate_size = size & 0xfu;
    d.position += size;
}

DOPPEL_DECODER_INLINE void fill_operands(const Decoding& d, bool memory, const SizeColumn& sizes,
                                         Instruction& out) {
    const Entry& entry = *d.entry;
    const unsigned base = d.rex << 3 & 8u;
    const unsigned rm = memory ? 16u : d.rm() | base; // 16: falls out of the register sets below
    const unsigned register_mask = d.long_mode() ? 0xfu : 7u; // the top bits of vvvv, is4 are ignored
    const std::uint64_t is4 = out.immediate >> 4 & register_mask;
    const std::uint64_t lanes = // in the order of Lane
        std::uint64_t(d.reg() | (d.rex << 1 & 8u)) | std::uint64_t(rm) << 8 |
        std::uint64_t(d.vvvv & register_mask) << 16 | std::uint64_t((d.opcode & 7u) | base) << 24 | is4 << 32 |
        std::uint64_t(d.reg()) << 40 | std::uint64_t(d.rm()) << 48;
    unsigned read = 0;
    unsigned written = 0;
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
        const auto shape = load<std::uint32_t>(
            reinterpret_cast<const std::uint8_t*>(&entry.operands[i])); // OperandTemplate
        const auto reg = std::uint8_t((lanes >> (shape >> 24) & 0x1fu) + (shape >> 8 & 0xffu));
        const std::uint16_t size = sizes[shape >> 16 & 0xffu];
        out.operands[i] = entry.operands[i].value;
        out.operands[i].reg = reg;
        out.operands[i].size = std::uint8_t(size);
        const unsigned use = kRegisterUse[shape & 0xffu];
        // A register that is written in part keeps the rest: it is read too.
        read |= ((use & 1u) | (use >> 1 & unsigned(size < 4))) << (reg & 0x1fu);
        written |= (use >> 1) << (reg & 0x1fu);
    }
    out.registers_read |= std::uint16_t(read);
    out.registers_written |= std::uint16_t(written);
}

/// The operand that ModRM puts in memory.
DOPPEL_DECODER_INLINE void place_memory_operand(const Entry& entry, Instruction& out) {
    Operand& operand = out.operands[entry.memory_operand];
    if (operand.kind == OperandKind::Gpr) // only such a memory form uses no general register
        out.attributes &= std::uint16_t(~attribute::kGprOperand);
    operand.kind = OperandKind::Memory;
    operand.reg = kNoRegister;
    operand.size = out.memory_size < 256 ? std::uint8_t(out.memory_size) : std::uint8_t(0);
}

/// Without REX the byte registers 4..7 are ah, ch, dh, bh.
void find_high_bytes(const Entry& entry, Instruction& out) {
    std::uint16_t read = entry.registers_read;
    std::uint16_t written = entry.registers_written;
    for (unsigned i = 0; i < 2; ++i) { // no instruction has byte registers behind
        Operand& operand = out.operands[i];
        if (operand.kind != OperandKind::Gpr)
            continue;
        if (operand.size == 1 && operand.reg >= 4) {
            operand.kind = OperandKind::GprHigh;
            operand.reg = std::uint8_t(operand.reg - 4);
        }
        const auto bit = std::uint16_t(1u << operand.reg);
        if ((unsigned(operand.access) & 1u) != 0 ||
            (operand.access == Access::Write && operand.size < 4))
            read |= bit;
        if ((unsigned(operand.access) & 2u) != 0)
            written |= bit;
    }
    if (out.has_memory()) {
        if (out.memory_base < 16)
            read |= std::uint16_t(1u << out.memory_base);
        if (out.memory_index < 16)
            read |= std::uint16_t(1u << out.memory_index);
    }
    out.registers_read = read;
    out.registers_written = written;
}

void finish_shift(Instruction& out) {
    const auto count = out.immediate & (out.operand_size == 8 ? 0x3fu : 0x1fu);
    if (count == 0) { // nothing changes
        out.flags_written = 0;
        out.flags_undefined = 0;
    } else if (count == 1) { // OF is defined
        out.flags_undefined &= std::uint16_t(~0x800u);
    }
}

void finish_string(Instruction& out) {
    constexpr std::uint16_t kRcx = 2;
    out.memory_size = out.operand_size;
    if ((out.prefixes & (prefix::kRep | prefix::kRepne)) == 0)
        return;
    out.registers_read |= std::uint16_t(kRcx | out.registers_written);
    out.registers_written |= kRcx;
    if (out.flags_written != 0)
        out.attributes |= attribute::kFlagsConditional;
}

/// VSIB; SDM Vol. 2 §2.3.12. False: undefined.
bool finish_gather(const Decoding& d, Instruction& out) {
    if (out.address_size == 2 || d.rm() != 4)
        return false;
    if (out.memory_index < 16 && out.memory_index != out.memory_base)
        out.registers_read &= std::uint16_t(~(1u << out.memory_index));
    const std::uint8_t sib = d.code[out.modrm_offset + 1];
    out.memory_index = std::uint8_t((sib >> 3 & 7u) | (d.rex << 2 & 8u));
    const auto destination = out.operands[0].reg;
    const auto mask = out.operands[2].reg;
    return destination != mask && destination != out.memory_index && mask != out.memory_index;
}

/// Instructions with rules of their own. False: undefined.
bool finish_unusual(const Decoding& d, Instruction& out) {
    switch (out.op) {
    case Op::MovFromSegment:
        return d.reg() < 6;
    case Op::MovToSegment:
        return d.reg() < 6 && d.reg() != 1;
    case Op::MovFromControl:
        return (0x11du >> out.operands[1].reg & 1u) != 0; // CR0, CR2, CR3, CR4, CR8
    case Op::MovToControl:
        return (0x11du >> out.operands[0].reg & 1u) != 0;
    case Op::MovFromDebug:
    case Op::MovToDebug:
        return (d.rex & 4u) == 0;
    case Op::MaskMov:
        out.memory_access = Access::Write;
        out.memory_base = 7;
        out.memory_size = out.operands[0].size;
        out.attributes &= std::uint16_t(~attribute::kGprOperand); // rdi is the memory operand's
        return true;
    case Op::Gather:
        return finish_gather(d, out);
    case Op::Movs:
    case Op::Cmps:
    case Op::Scas:
    case Op::Lods:
    case Op::Stos:
    case Op::Ins:
    case Op::Outs:
        finish_string(out);
        return true;
    default:
        finish_shift(out);
        return true;
    }
}

/// The checks that need the whole instruction. False: undefined.
DOPPEL_DECODER_INLINE bool finish(const Decoding& d, Instruction& out) {
    const Entry& entry = *d.entry;
    if ((entry.checks & kByteRegister) != 0 && (d.prefixes & prefix::kRex) == 0)
        find_high_bytes(entry, out);
    if (out.operand_size < 4)
        out.registers_read |= entry.registers_written;
    if ((d.prefixes & prefix::kLock) != 0 &&
        (!out.has(attribute::kLockable) || out.memory_access != Access::ReadWrite))
        return false;
    if (d.encoding != Encoding::Legacy && d.vvvv != 0 && (entry.checks & kUsesVvvv) == 0)
        return false;
    return (entry.checks & kUnusual) == 0 || finish_unusual(d, out);
}

DOPPEL_DECODER_INLINE void fill_head(const Decoding& d, Instruction& out) {
    const Entry& entry = *d.entry;
    out.op = entry.op;
    out.attributes = entry.attributes;
    out.flags_read = entry.flags_read;
    out.flags_written = entry.flags_written;
    out.flags_undefined = entry.flags_undefined;
    out.type = entry.type;
    out.feature = entry.feature;
    out.branch = entry.branch;
    out.map = d.map;
    out.encoding = d.encoding;
    out.opcode = d.opcode;
    out.registers_read = entry.registers_read;
    out.registers_written = entry.registers_written;
    out.prefixes = d.prefixes;
    out.rex = std::uint8_t(d.rex | ((d.prefixes & prefix::kRex) != 0 ||
                                            d.encoding != Encoding::Legacy
                                        ? 0x40u
                                        : 0u));
    out.memory_size = 0;
    out.memory_access = Access::None;
    out.memory_segment = d.segment == kNoRegister ? std::uint8_t(3) : d.segment;
    out.memory_base = kNoRegister;
    out.memory_index = kNoRegister;
    out.memory_scale = 1;
    out.modrm_offset = 0;
    out.opcode_offset = (d.position - 1) & 0xfu;
    out.displacement_size = 0;
    out.immediate_size = 0;
    out.immediate2 = 0;
    out.displacement = 0;
    out.immediate = 0;
}

/// Operands, once the entry is known. False: undefined.
DOPPEL_DECODER_INLINE bool decode_operands(Decoding& d, Instruction& out) {
    const Entry& entry = *d.entry;
    fill_head(d, out);
    const bool vex = d.encoding != Encoding::Legacy;
    const unsigned size_prefix = vex ? 0u : unsigned(d.prefixes & prefix::kOperandSize);
    const unsigned w = d.long_mode() ? d.rex >> 3 : 0u;
    const unsigned size_log2 =
        kOperandSizeLog2[operand_size_index(entry.size_rule, d.mode, w, size_prefix)];
    const SizeColumn& sizes = kSizes[size_log2 * 2 + d.vector];
    out.operand_size = std::uint8_t(1u << size_log2);
    const bool other_address = (d.prefixes & prefix::kAddressSize) != 0;
    out.address_size = d.long_mode()                                     ? (other_address ? 4 : 8)
                       : (d.mode == CodeSize::Bits32) != other_address ? 4
                                                                         : 2;
    if ((entry.checks & kHasModrm) == 0) {
        out.modrm = 0;
        read_immediate(d, size_log2, sizes, out);
        fill_operands(d, false, sizes, out);
        return finish(d, out);
    }
    out.modrm = d.modrm;
    out.modrm_offset = d.position & 0xfu;
    ++d.position;
    const bool memory = d.mod() != 3 && (entry.checks & kRegisterForm) == 0;
    if (memory)
        read_memory(d, sizes, out);
    read_immediate(d, size_log2, sizes, out);
    fill_operands(d, memory, sizes, out);
    if (memory)
        place_memory_operand(entry, out);
    return finish(d, out);
}

/// Decodes at `code`, where kReach bytes can be read, `available` of which are the instruction's.
DOPPEL_DECODER_INLINE DecodeStatus decode_at(const std::uint8_t* code, std::size_t available,
                                             CodeSize mode, Instruction& out) {
    Decoding d{.code = code, .mode = mode};
    bool defined = false;
    bool short_enough = read_prefixes(d);
    if (short_enough) {
        defined = read_escapes(d) && find_entry(d);
        if (defined)
            defined = decode_operands(d, out);
        else if (d.modrm_seen)
            ++d.position;
        short_enough = d.position <= kMaxLength;
        out.length = std::uint8_t(d.position);
    }
    if (d.position > available && available < kMaxLength)
        return DecodeStatus::NeedMoreBytes;
    if (!short_enough)
        return DecodeStatus::TooLong;
    return defined ? DecodeStatus::Ok : DecodeStatus::Undefined;
}

/// Few bytes before the end of what was fetched: works on a copy that is long enough.
[[gnu::noinline]] DecodeStatus decode_copy(const std::uint8_t* code, std::size_t available,
                                           CodeSize mode, Instruction& out) {
    std::uint8_t copy[kReach];
    for (std::size_t i = 0; i < kReach; ++i) {
        copy[i] = i < available ? code[i] : std::uint8_t(0);
        __asm__ volatile("" ::: "memory"); // keeps the compiler from calling memcpy and memset
    }
    return decode_at(copy, available, mode, out);
}

} // namespace
} // namespace decoder

DecodeStatus decode(std::span<const std::uint8_t> bytes, CodeSize code_size, Instruction& out) {
    if (bytes.size() < decoder::kReach)
        return decoder::decode_copy(bytes.data(), bytes.size(), code_size, out);
    return decoder::decode_at(bytes.data(), bytes.size(), code_size, out);
}

} // namespace doppel::cpu::x86
