// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/decoder/decoder.hpp"

#include "cpu/x86/decoder/decoding.hpp"

namespace doppel::cpu::x86 {
namespace decoder {
namespace {

/// Immediates of a shape of their own.
template <bool kLongMode> void read_unusual_immediate(Decoding<kLongMode>& d, Instruction& out) {
    const std::uint8_t* at = d.code + d.position;
    unsigned size = 0;
    switch (d.entry->immediate) {
    case ImmediateCode::Constant1: out.immediate = 1; break;
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
        out.displacement = std::int64_t(load<std::uint64_t>(at) & ~0ull >> (64 - 8 * size));
        out.displacement_size = size & 0xfu;
        out.memory_access = d.entry->memory_access;
        out.memory_size = d.sizes->memory[unsigned(d.entry->memory_size)];
        out.operands[d.entry->memory_operand].reg = kNoRegister;
        d.position += size;
        return;
    }
    out.immediate_size = size & 0xfu;
    d.position += size;
}

/// Follows the choices from the opcode to its entry. False: undefined.
template <bool kLongMode> DOPPEL_DECODER_INLINE bool find_entry(Decoding<kLongMode>& d) {
    d.opcode_offset = d.position;
    d.opcode = d.code[d.position++];
    d.modrm = d.code[d.position];
    Node node = kTables.maps[d.vex()][d.map][d.opcode];
    if ((node & kBranch) != 0) {
        const std::uint64_t properties = // in the order of Choice
            std::uint64_t(d.long_mode()) | std::uint64_t(d.choice) << 8 |
            std::uint64_t(d.mod() == 3) << 16 | std::uint64_t(d.reg()) << 24 |
            std::uint64_t(d.rm()) << 32 | std::uint64_t(d.rex >> 3 & 1u) << 40 |
            std::uint64_t(d.vector) << 48 | std::uint64_t(d.rex & 1u) << 56;
        constexpr unsigned kModrmChoices =
            1u << unsigned(Choice::Mod) | 1u << unsigned(Choice::Reg) | 1u << unsigned(Choice::Rm);
        do {
            const unsigned choice = node >> 12 & 7u;
            d.modrm_seen = d.modrm_seen || (kModrmChoices >> choice & 1u) != 0;
            node = kTables.nodes[(node & 0xfffu) * 2ull + (properties >> choice * 8 & 7u)];
        } while ((node & kBranch) != 0);
    }
    d.entry = keep(&kTables.entries[node]);
    return node != 0;
}

template <bool kLongMode> DOPPEL_DECODER_INLINE void find_sizes(Decoding<kLongMode>& d) {
    const unsigned packed = d.entry->operand_sizes[kLongMode ? 2 : unsigned(d.mode)];
    d.operand_size_log2 = packed >> d.size_shift & 3u;
    d.sizes = keep(&kSizes[d.operand_size_log2 * 2 + d.vector]);
    const unsigned other = d.prefixes >> 1 & 1u; // prefix::kAddressSize
    d.address_size = kLongMode                                       ? 8u >> other
                     : unsigned(d.mode == CodeSize::Bits32) == other ? 2u
                                                                     : 4u;
}

DOPPEL_DECODER_INLINE std::uint64_t read_value(const std::uint8_t* at, const ValueShape& shape) {
    return ((load<std::uint64_t>(at) & shape.mask) ^ shape.sign) - shape.sign;
}

/// ModRM with 16-bit addresses; SDM Vol. 2 table 2-1.
template <bool kLongMode> DOPPEL_DECODER_INLINE void read_address16(Decoding<kLongMode>& d) {
    const bool direct = d.mod() == 0 && d.rm() == 6;
    const unsigned base = direct ? kNoRegister : kBases16[d.rm()];
    d.address = address_word(segment_of(base), base, kIndexes16[d.rm()], 1);
    d.displacement_size = direct ? 2u : d.mod();
}

/// SDM Vol. 2 table 2-3.
template <bool kLongMode> DOPPEL_DECODER_INLINE void read_sib(Decoding<kLongMode>& d) {
    const unsigned sib = d.code[d.position++];
    const unsigned index = (sib >> 3 & 7u) | (d.rex << 2 & 8u);
    const bool no_base = (sib & 7u) == 5 && d.mod() == 0;
    const unsigned base = no_base ? kNoRegister : (sib & 7u) | (d.rex << 3 & 8u);
    d.address =
        address_word(segment_of(base), base, index == 4 ? kNoRegister : index, 1u << (sib >> 6));
    d.displacement_size += no_base ? 4u : 0u;
}

template <bool kLongMode>
DOPPEL_DECODER_INLINE void read_modrm(Decoding<kLongMode>& d, std::uint8_t* words) {
    d.modrm_offset = d.position & d.entry->modrm_mask;
    d.position += d.entry->modrm_mask & 1u;
    d.register_modrm = d.modrm | d.entry->modrm_forced;
    const unsigned row = kLongMode ? 1u + (d.rex & 1u) : 0u;
    const std::uint64_t found = kAddresses[row][d.register_modrm];
    d.address = found & kAddressMask;
    d.displacement_size = unsigned(found >> 56) & 7u;
    if (!kLongMode && d.address_size == 2 && d.memory())
        read_address16(d);
    else if ((found & kHasSib) != 0)
        read_sib(d);
    if (d.segment != kNoRegister) [[unlikely]]
        d.address = (d.address & ~address_word(0xff, 0, 0, 0)) | address_word(d.segment, 0, 0, 0);
    // The register numbers 0xff and kRip give bits that do not exist.
    d.address_registers = 1u << (d.address >> 32 & 0x1fu) | 1u << (d.address >> 40 & 0x1fu);
    const unsigned in_memory = 0u - unsigned(d.memory()); // a mask
    const unsigned size = d.sizes->memory[unsigned(d.entry->memory_size)] & in_memory;
    store(words + 24, size | (unsigned(d.entry->memory_access) & in_memory) << 16 | d.address |
                          std::uint64_t(d.modrm & d.entry->modrm_mask) << 56);
    store(words + 48, read_value(d.code + d.position, kDisplacements[d.displacement_size]));
    d.position += d.displacement_size;
}

template <bool kLongMode>
DOPPEL_DECODER_INLINE void read_immediate(Decoding<kLongMode>& d, std::uint8_t* words) {
    const ValueShape& shape = kImmediates[unsigned(d.entry->immediate) * 4u + d.operand_size_log2];
    d.immediate = read_value(d.code + d.position, shape);
    store(words + 56, d.immediate);
    d.immediate_size = unsigned(shape.size);
    d.position += d.immediate_size;
}

/// What the operands' templates come to.
struct Operands {
    std::uint64_t packed[4] = {}; // bytes of Operand
    unsigned read = 0;            // sets of general registers
    unsigned written = 0;

    DOPPEL_DECODER_INLINE void add(unsigned place, const OperandTemplate* operands,
                                   std::uint64_t lanes, const SizeColumn& sizes) {
        const auto shape =
            load<std::uint32_t>(reinterpret_cast<const std::uint8_t*>(&operands[place]));
        const unsigned lane = shape >> 24; // the shift takes its low six bits only
        const unsigned number = unsigned(lanes >> (lane & 0x3fu)) & 0xfu;
        const unsigned reg = (shape >> 8 & 0xffu) + number;
        const std::uint64_t size = sizes.operand[shape >> 16 & 0xffu];
        packed[place] = ((shape & 0xffffu) + (number << 8)) | size << 16;
        read |= (lane >> 6 & 1u) << (reg & 0x1fu);
        written |= (lane >> 7) << (reg & 0x1fu);
    }
};

template <bool kLongMode>
DOPPEL_DECODER_INLINE Operands find_operands(const Decoding<kLongMode>& d) {
    const Entry& entry = *d.entry;
    std::uint64_t lanes = kModrmLanes[d.register_modrm] | std::uint64_t(d.opcode & 7u) << 24;
    if (kLongMode)
        lanes |= (d.rex & 4u) << 1 | std::uint64_t(d.rex & 1u) * (8u << 8 | 8u << 24);
    if (d.vex()) { // the top bits of vvvv and is4 are ignored outside 64-bit code
        constexpr unsigned kMask = kLongMode ? 0xf : 7;
        lanes |= std::uint64_t(d.vvvv & kMask) << 16 | (d.immediate >> 4 & kMask) << 32;
    }
    const OperandTemplate* const operands =
        entry.operands.data() + (plain(d.register_modrm < 0xc0) << 2); // or memory_operands
    Operands found;
    found.add(0, operands, lanes, *d.sizes);
    found.add(1, operands, lanes, *d.sizes);
    if (entry.operand_count > 2) {
        found.add(2, operands, lanes, *d.sizes);
        found.add(3, operands, lanes, *d.sizes);
    }
    return found;
}
static_assert(offsetof(Entry, memory_operands) ==
              offsetof(Entry, operands) + 4 * sizeof(OperandTemplate));

/// Puts the rest together in registers: a store for eight bytes. The order of the fields is checked
/// by check_layout().
template <bool kLongMode>
DOPPEL_DECODER_INLINE void compose(const Decoding<kLongMode>& d, std::uint8_t* words) {
    const Entry& entry = *d.entry;
    const auto* head = reinterpret_cast<const std::uint8_t*>(&entry);
    const Operands operands = find_operands(d);
    store(words + 32, (d.modrm_offset | d.opcode_offset << 4 | d.displacement_size << 8 |
                       d.immediate_size << 12) |
                          operands.packed[0] << 16 | operands.packed[1] << 40);
    store(words + 40, operands.packed[2] | operands.packed[3] << 24);
    // A register that is written in part keeps the rest: it is read too.
    const unsigned written = operands.written | entry.registers_written;
    const unsigned partly = d.operand_size_log2 < 2 ? written : 0u;
    const unsigned read = operands.read | entry.registers_read | partly | d.address_registers;
    store(words + 16, (read & 0xffffu) | written << 16 |
                          std::uint64_t(d.prefixes | d.rex << 8 | 1u << d.operand_size_log2 << 16 |
                                        d.address_size << 24)
                              << 32);
    const unsigned gpr = kMemoryReplacesGpr & entry.checks & (0u - unsigned(d.memory()));
    store(words, load<std::uint64_t>(head) ^
                     std::uint64_t(gpr) << (16 + 9 - kMemoryReplacesGprShift)); // kGprOperand
    store(words + 8, (load<std::uint64_t>(head + 8) & 0xff'ffff'ffff) |
                         std::uint64_t(d.map | d.encoding << 4) << 40 |
                         std::uint64_t(d.opcode) << 48 | std::uint64_t(d.position) << 56);
}

consteval bool check_layout() {
    return offsetof(Instruction, flags_undefined) == 8 && offsetof(Instruction, branch) == 12 &&
           offsetof(Entry, branch) == 12 && offsetof(Entry, flags_undefined) == 8 &&
           offsetof(Instruction, opcode) == 14 && offsetof(Instruction, length) == 15 &&
           offsetof(Instruction, registers_read) == 16 && offsetof(Instruction, prefixes) == 20 &&
           offsetof(Instruction, address_size) == 23 && offsetof(Instruction, memory_size) == 24 &&
           offsetof(Instruction, memory_base) == 28 && offsetof(Instruction, modrm) == 31 &&
           offsetof(Instruction, operands) == 34 && offsetof(Instruction, immediate2) == 46 &&
           offsetof(Instruction, displacement) == 48 && offsetof(Instruction, immediate) == 56;
}
static_assert(check_layout());

/// Without REX the byte registers 4..7 are ah, ch, dh, bh.
void find_high_bytes(const Entry& entry, Instruction& out) {
    std::uint16_t read = entry.registers_read;
    std::uint16_t written = entry.registers_written;
    for (unsigned i = 0; i < 2; ++i) { // no instruction has byte registers behind
        Operand& operand = out.operands[i];
        if (operand.kind != OperandKind::Gpr)
            continue;
        if (operand.size == 1 && operand.reg >= 4 && operand.reg < 8) {
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
template <bool kLongMode> bool finish_gather(const Decoding<kLongMode>& d, Instruction& out) {
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
template <bool kLongMode> bool finish_unusual(const Decoding<kLongMode>& d, Instruction& out) {
    switch (out.op) {
    case Op::MovFromSegment: return d.reg() < 6;
    case Op::MovToSegment: return d.reg() < 6 && d.reg() != 1;
    case Op::MovFromControl:
        return (0x11du >> out.operands[1].reg & 1u) != 0; // CR0, CR2, CR3, CR4, CR8
    case Op::MovToControl: return (0x11du >> out.operands[0].reg & 1u) != 0;
    case Op::MovFromDebug:
    case Op::MovToDebug: return (d.rex & 4u) == 0;
    case Op::MaskMov:
        out.memory_access = Access::Write;
        out.memory_base = 7;
        out.memory_size = out.operands[0].size;
        out.attributes &= std::uint16_t(~attribute::kGprOperand); // rdi is the memory operand's
        return true;
    case Op::Gather: return finish_gather(d, out);
    case Op::Movs:
    case Op::Cmps:
    case Op::Scas:
    case Op::Lods:
    case Op::Stos:
    case Op::Ins:
    case Op::Outs: finish_string(out); return true;
    default: finish_shift(out); return true;
    }
}

/// Rules that few instructions meet. False: undefined.
template <bool kLongMode>
[[gnu::noinline]] bool finish_rare(Decoding<kLongMode>& d, Instruction& out) {
    const Entry& entry = *d.entry;
    if ((entry.checks & kOddImmediate) != 0)
        read_unusual_immediate(d, out);
    out.length = std::uint8_t(d.position);
    if ((entry.checks & kByteRegister) != 0 && (d.prefixes & prefix::kRex) == 0)
        find_high_bytes(entry, out);
    if ((d.prefixes & prefix::kLock) != 0 &&
        (!out.has(attribute::kLockable) || out.memory_access != Access::ReadWrite))
        return false;
    if (d.vvvv != 0 && (entry.checks & kUsesVvvv) == 0)
        return false;
    return (entry.checks & kUnusual) == 0 || finish_unusual(d, out);
}

/// Everything behind the opcode, once the entry is known. False: undefined.
template <bool kLongMode>
DOPPEL_DECODER_INLINE bool decode_operands(Decoding<kLongMode>& d, Instruction& out) {
    const Entry& entry = *d.entry;
    auto* const words = reinterpret_cast<std::uint8_t*>(&out);
    find_sizes(d);
    read_modrm(d, words);
    read_immediate(d, words);
    compose(d, words);
    const bool rare = (entry.checks & (kUnusual | kByteRegister | kOddImmediate)) != 0 ||
                      ((d.prefixes & prefix::kLock) | d.vvvv) != 0;
    return !rare || aside(d, [&out](auto& copy) { return finish_rare(copy, out); });
}

/// What has come out; `short_enough`: as far as the opcode.
template <bool kLongMode>
DOPPEL_DECODER_INLINE DecodeStatus status_of(const Decoding<kLongMode>& d, std::size_t available,
                                             bool defined, bool short_enough = true) {
    if (defined && d.position <= (available < kMaxLength ? available : kMaxLength)) [[likely]]
        return DecodeStatus::Ok;
    if (d.position > available && available < kMaxLength)
        return DecodeStatus::NeedMoreBytes;
    return short_enough && d.position <= kMaxLength ? DecodeStatus::Undefined
                                                    : DecodeStatus::TooLong;
}

/// Any instruction.
template <bool kLongMode>
[[gnu::noinline]] DecodeStatus decode_any(const std::uint8_t* code, std::size_t available,
                                          CodeSize mode, Instruction& out) {
    Decoding<kLongMode> d{.code = code, .mode = mode};
    const bool short_enough = read_prefixes(d);
    if (!short_enough)
        return status_of(d, available, false, false);
    bool defined = false;
    if (read_escapes_or_vex(d) && find_entry(d))
        defined = decode_operands(d, out);
    else
        d.position += d.modrm_seen;
    return status_of(d, available, defined);
}

/// Decodes at `code`, where kReach bytes can be read, `available` of which are the instruction's.
/// Nine instructions of ten have no prefix but REX: what prefixes would change is a constant here.
template <bool kLongMode>
DOPPEL_DECODER_INLINE DecodeStatus decode_at(const std::uint8_t* code, std::size_t available,
                                             CodeSize mode, Instruction& out) {
    if (kLongMode)
        mode = CodeSize::Bits64;
    Decoding<kLongMode> d{.code = code, .mode = mode};
    if (!read_rex(d)) [[unlikely]]
        return decode_any<kLongMode>(code, available, mode, out);
    bool defined = false;
    read_escapes(d);
    if (find_entry(d))
        defined = decode_operands(d, out);
    else
        d.position += d.modrm_seen;
    return status_of(d, available, defined);
}

/// `code` with zeros behind it. Written out, as memcpy and memset are not to be called.
DOPPEL_DECODER_INLINE void copy_padded(std::uint8_t (&copy)[kReach], const std::uint8_t* code,
                                       std::size_t size) {
    for (std::size_t at = 0; at < kReach; at += 8)
        store(copy + at, 0);
    if (size >= 8) { // the last eight bytes overlap those before them
        for (std::size_t at = 0; at + 8 < size; at += 8)
            store(copy + at, load<std::uint64_t>(code + at));
        store(copy + size - 8, load<std::uint64_t>(code + size - 8));
        return;
    }
    for (std::size_t at = 0; at < size; ++at) {
        copy[at] = code[at];
        __asm__ volatile("" ::: "memory"); // or the compiler sees a memcpy
    }
}

/// Few bytes before the end of what was fetched: works on a copy that is long enough.
[[gnu::noinline]] DecodeStatus decode_copy(const std::uint8_t* code, std::size_t available,
                                           CodeSize mode, Instruction& out) {
    std::uint8_t copy[kReach];
    copy_padded(copy, code, available);
    if (mode == CodeSize::Bits64)
        return decode_at<true>(copy, available, mode, out);
    return decode_at<false>(copy, available, mode, out);
}

} // namespace
} // namespace decoder

DecodeStatus decode(std::span<const std::uint8_t> bytes, CodeSize code_size, Instruction& out) {
    if (bytes.size() < decoder::kReach)
        return decoder::decode_copy(bytes.data(), bytes.size(), code_size, out);
    if (code_size == CodeSize::Bits64)
        return decoder::decode_at<true>(bytes.data(), bytes.size(), code_size, out);
    return decoder::decode_at<false>(bytes.data(), bytes.size(), code_size, out);
}

} // namespace doppel::cpu::x86
