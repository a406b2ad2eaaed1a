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

consteval std::array<PrefixByte, 256> prefix_bytes(bool long_mode) {
    std::array<PrefixByte, 256> table{};
    for (const unsigned byte : {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65})
        table[byte] = PrefixByte::Segment;
    for (unsigned byte = 0x40; byte < 0x50 && long_mode; ++byte)
        table[byte] = PrefixByte::Rex;
    table[0x66] = PrefixByte::Size;
    table[0x67] = PrefixByte::Address;
    table[0xf0] = PrefixByte::Lock;
    table[0xf2] = PrefixByte::Repne;
    table[0xf3] = PrefixByte::Rep;
    return table;
}

/// By "64-bit code", then byte.
constexpr std::array<std::array<PrefixByte, 256>, 2> kPrefixBytes{prefix_bytes(false),
                                                                  prefix_bytes(true)};

/// Choice::Prefix by the low bits of Instruction::prefixes: F2, then F3, then 66.
constexpr std::uint8_t kPrefixChoices[16] = {0, 1, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};

/// What ModRM says with 32- and 64-bit addresses: bytes of displacement, and bit 7: a SIB follows.
constexpr std::uint8_t kHasSib = 0x80;
constexpr auto kModrmShapes = [] {
    std::array<std::uint8_t, 256> table{};
    for (unsigned modrm = 0; modrm < 0xc0; ++modrm) {
        const unsigned mod = modrm >> 6;
        const unsigned rm = modrm & 7;
        const unsigned size = mod == 0 ? (rm == 5 ? 4u : 0u) : mod == 1 ? 1u : 4u;
        table[modrm] = std::uint8_t(size | (rm == 4 ? kHasSib : 0u));
    }
    return table;
}();

/// The low bytes of a word by their number, and the highest of their bits.
constexpr std::uint64_t kLowBytes[9] = {
    0,           0xff,           0xffff,           0xff'ffff,
    0xffff'ffff, 0xff'ffff'ffff, 0xffff'ffff'ffff, 0xff'ffff'ffff'ffff,
    ~0ull};
constexpr std::uint64_t kSignBits[9] = {0,
                                        0x80,
                                        0x8000,
                                        0x80'0000,
                                        0x8000'0000,
                                        0x80'0000'0000,
                                        0x8000'0000'0000,
                                        0x80'0000'0000'0000,
                                        0x8000'0000'0000'0000};

constexpr std::uint8_t kBases16[8] = {3, 3, 5, 5, 6, 7, 5, 3};
constexpr std::uint8_t kIndexes16[8] = {6,           7,           6,           7,
                                        kNoRegister, kNoRegister, kNoRegister, kNoRegister};

template <typename T> DOPPEL_DECODER_INLINE T load(const std::uint8_t* at) {
    T value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
}

/// One decoding in progress. Lives in registers: what is on the usual path is inlined into
/// decode(), and it avoids branches that data would make unpredictable. The same pointer, but the
/// compiler no longer knows how to compute it, and so keeps it.
template <typename T> DOPPEL_DECODER_INLINE const T* keep(const T* pointer) {
    __asm__("" : "+r"(pointer));
    return pointer;
}

template <bool kLongMode> struct Decoding {
    const std::uint8_t* code; // kReach bytes can be read
    CodeSize mode;
    unsigned position = 0;
    std::uint8_t prefixes = 0;
    std::uint8_t segment = kNoRegister; // override
    unsigned rex = 0;                   // WRXB in the low bits
    unsigned choice = 0;                // Choice::Prefix
    unsigned vvvv = 0;                  // upright: 0 if the field is all ones
    unsigned vector = 0;                // VEX.L
    unsigned map = 0;
    Encoding encoding = Encoding::Legacy;
    std::uint8_t opcode = 0;
    std::uint8_t modrm = 0;
    bool modrm_seen = false; // it has been looked at, so it belongs to the instruction
    const Entry* entry = nullptr;

    unsigned opcode_offset = 0;
    unsigned modrm_offset = 0;
    unsigned operand_size_log2 = 0;
    unsigned address_size = 0;
    unsigned memory = 0; // 1: ModRM names memory
    unsigned base = kNoRegister;
    unsigned index = kNoRegister;
    unsigned scale = 1;
    unsigned displacement_size = 0;
    unsigned immediate_size = 0;
    std::uint64_t displacement = 0;
    std::uint64_t immediate = 0;

    DOPPEL_DECODER_INLINE bool long_mode() const { return kLongMode; }
    DOPPEL_DECODER_INLINE unsigned mod() const { return modrm >> 6; }
    DOPPEL_DECODER_INLINE unsigned reg() const { return modrm >> 3 & 7u; }
    DOPPEL_DECODER_INLINE unsigned rm() const { return modrm & 7u; }
    const SizeColumn* size_column = nullptr;

    DOPPEL_DECODER_INLINE const SizeColumn& sizes() const { return *size_column; }
};

/// Calls what is not inlined with a copy, so that `d` itself needs no address and stays in
/// registers.
template <bool kLongMode, typename Call>
DOPPEL_DECODER_INLINE bool aside(Decoding<kLongMode>& d, const Call& call) {
    Decoding<kLongMode> copy = d;
    const bool result = call(copy);
    d = copy;
    return result;
}

template <bool kLongMode>
DOPPEL_DECODER_INLINE void take_segment(Decoding<kLongMode>& d, std::uint8_t byte) {
    if (byte >= 0x64)
        d.segment = std::uint8_t(byte - 0x60);
    else if (!d.long_mode()) // ignored in 64-bit code, SDM Vol. 1 §3.4.2.1
        d.segment = byte >> 3 & 3;
    d.prefixes |= prefix::kSegment;
}

/// All prefixes. A REX counts only if it stands directly before the opcode. False: too long.
template <bool kLongMode> [[gnu::noinline]] bool read_all_prefixes(Decoding<kLongMode>& d) {
    unsigned rex = 0;
    for (d.position = 0;; ++d.position) {
        if (d.position == kMaxLength)
            return false;
        const std::uint8_t byte = d.code[d.position];
        const PrefixByte kind = kPrefixBytes[d.long_mode()][byte];
        if (kind == PrefixByte::None)
            break;
        rex = 0;
        switch (kind) {
        case PrefixByte::Segment: take_segment(d, byte); break;
        case PrefixByte::Size: d.prefixes |= prefix::kOperandSize; break;
        case PrefixByte::Address: d.prefixes |= prefix::kAddressSize; break;
        case PrefixByte::Lock: d.prefixes |= prefix::kLock; break;
        case PrefixByte::Repne: // the last of F2 and F3 counts
            d.prefixes = std::uint8_t((d.prefixes & ~prefix::kRep) | prefix::kRepne);
            break;
        case PrefixByte::Rep:
            d.prefixes = std::uint8_t((d.prefixes & ~prefix::kRepne) | prefix::kRep);
            break;
        default: rex = byte; break;
        }
    }
    d.prefixes |= rex != 0 ? prefix::kRex : 0;
    d.rex = rex & 0xf;
    d.choice = kPrefixChoices[d.prefixes & 0xf];
    return true;
}

/// Prefixes up to the opcode, quick for at most a REX. False: too long.
template <bool kLongMode> DOPPEL_DECODER_INLINE bool read_prefixes(Decoding<kLongMode>& d) {
    const std::uint8_t first = d.code[0];
    const bool rex = kPrefixBytes[d.long_mode()][first] == PrefixByte::Rex;
    d.position = rex;
    if (kPrefixBytes[d.long_mode()][d.code[d.position]] != PrefixByte::None) [[unlikely]]
        return aside(d, [](auto& copy) { return read_all_prefixes(copy); });
    d.rex = rex ? first & 0xfu : 0u;
    d.prefixes = rex ? prefix::kRex : std::uint8_t(0);
    return true;
}

/// VEX; SDM Vol. 2 §2.3.5. False: undefined.
template <bool kLongMode> [[gnu::noinline]] bool read_vex(Decoding<kLongMode>& d) {
    constexpr std::uint8_t kForbidden =
        prefix::kOperandSize | prefix::kRep | prefix::kRepne | prefix::kLock | prefix::kRex;
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
    d.map = map;
    return true;
}

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
        out.displacement = std::int64_t(load<std::uint64_t>(at) & kLowBytes[size]);
        out.displacement_size = size & 0xfu;
        out.memory_access = d.entry->memory_access;
        out.memory_size = d.sizes()[unsigned(d.entry->memory_size)];
        out.operands[d.entry->memory_operand].reg = kNoRegister;
        d.position += size;
        return;
    }
    out.immediate_size = size & 0xfu;
    d.position += size;
}

/// Escapes and VEX. False: undefined.
template <bool kLongMode> DOPPEL_DECODER_INLINE bool read_escapes(Decoding<kLongMode>& d) {
    const std::uint8_t byte = d.code[d.position];
    if (((byte & 0xfe) == 0xc4 || byte == 0x62) && // VEX, EVEX, or LES, LDS, BOUND
        (d.long_mode() || d.code[d.position + 1] >= 0xc0)) [[unlikely]] {
        if (byte != 0x62)
            return aside(d, [](auto& copy) { return read_vex(copy); });
        d.position += 2;
        return false;
    }
    d.map = byte == 0x0f;
    d.position += d.map;
    const std::uint8_t second = d.code[d.position];
    if (d.map != 0 && (second & 0xfd) == 0x38) [[unlikely]] { // 0F 38, 0F 3A
        d.map = second == 0x38 ? 2 : 3;
        ++d.position;
    }
    return true;
}

/// Follows the choices from the opcode to its entry. False: undefined.
template <bool kLongMode> DOPPEL_DECODER_INLINE bool find_entry(Decoding<kLongMode>& d) {
    d.opcode_offset = d.position;
    d.opcode = d.code[d.position++];
    d.modrm = d.code[d.position];
    const auto& maps = d.encoding == Encoding::Legacy ? kTables.legacy : kTables.vex;
    Node node = maps[d.map][d.opcode];
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
    d.entry = keep(&kTables.entries[node]);
    return node != 0;
}

template <bool kLongMode> DOPPEL_DECODER_INLINE void find_sizes(Decoding<kLongMode>& d) {
    const unsigned size_prefix =
        d.encoding == Encoding::Legacy ? unsigned(d.prefixes & prefix::kOperandSize) : 0u;
    const unsigned w = d.long_mode() ? d.rex >> 3 : 0u;
    d.operand_size_log2 =
        kOperandSizeLog2[operand_size_index(d.entry->size_rule, d.mode, w, size_prefix)];
    d.size_column = keep(&kSizes[d.operand_size_log2 * 2 + d.vector]);
    const unsigned other = (d.prefixes & prefix::kAddressSize) != 0;
    d.address_size = kLongMode                                       ? 8u >> other
                     : unsigned(d.mode == CodeSize::Bits32) == other ? 2u
                                                                     : 4u;
}

/// The low `size` bytes at `at`, sign-extended.
DOPPEL_DECODER_INLINE std::uint64_t load_signed(const std::uint8_t* at, unsigned size) {
    const std::uint64_t sign = kSignBits[size];
    return ((load<std::uint64_t>(at) & kLowBytes[size]) ^ sign) - sign;
}

/// ModRM with 16-bit addresses; SDM Vol. 2 table 2-1.
template <bool kLongMode> [[gnu::noinline]] bool read_address16(Decoding<kLongMode>& d) {
    const bool direct = d.mod() == 0 && d.rm() == 6;
    d.base = direct ? kNoRegister : kBases16[d.rm()];
    d.index = kIndexes16[d.rm()];
    d.displacement_size = direct ? 2u : d.mod();
    return true;
}

/// ModRM and SIB with 32- and 64-bit addresses; SDM Vol. 2 tables 2-2 and 2-3. Without memory
/// operand all of it comes to nothing.
template <bool kLongMode> DOPPEL_DECODER_INLINE void read_address(Decoding<kLongMode>& d) {
    const unsigned shape = kModrmShapes[d.memory != 0 ? d.modrm : 0xc0];
    const bool has_sib = (shape & kHasSib) != 0;
    const unsigned sib = d.code[d.position];
    d.position += has_sib;
    const unsigned index = (sib >> 3 & 7u) | (d.rex << 2 & 8u);
    const unsigned base = has_sib ? sib & 7u : d.rm();
    const bool no_base = base == 5 && d.mod() == 0;
    const unsigned instead = !has_sib && d.long_mode() ? kRip : kNoRegister;
    const unsigned found = no_base ? instead : base | (d.rex << 3 & 8u);
    d.base = d.memory != 0 ? found : kNoRegister;
    d.index = has_sib && index != 4 ? index : kNoRegister;
    d.scale = has_sib ? 1u << (sib >> 6) : 1u;
    d.displacement_size = (shape & 7u) | (has_sib && no_base ? 4u : 0u);
}

template <bool kLongMode> DOPPEL_DECODER_INLINE void read_modrm(Decoding<kLongMode>& d) {
    const unsigned present = d.entry->checks & kHasModrm;
    d.modrm_offset = present != 0 ? d.position : 0u;
    d.position += present;
    d.memory = unsigned(d.modrm < 0xc0) & present & ~(unsigned(d.entry->checks) >> 1);
    if (d.address_size == 2) [[unlikely]] {
        if (d.memory != 0)
            aside(d, [](auto& copy) { return read_address16(copy); });
    } else {
        read_address(d);
    }
    d.displacement = load_signed(d.code + d.position, d.displacement_size);
    d.position += d.displacement_size;
}

template <bool kLongMode> DOPPEL_DECODER_INLINE void read_immediate(Decoding<kLongMode>& d) {
    const unsigned code = unsigned(d.entry->immediate);
    const unsigned size = kImmediateSizes[code][d.operand_size_log2];
    const std::uint64_t sign = kSignBits[size] & (kImmediateSigned >> code & 1u ? ~0ull : 0ull);
    d.immediate = ((load<std::uint64_t>(d.code + d.position) & kLowBytes[size]) ^ sign) - sign;
    d.immediate_size = size;
    d.position += size;
}

/// What the operands' templates come to.
struct Operands {
    std::uint64_t packed[4]; // bytes of Operand
    unsigned read;           // sets of general registers
    unsigned written;

    DOPPEL_DECODER_INLINE void add(const OperandTemplate& operand, std::uint64_t lanes,
                                   const SizeColumn& sizes, unsigned place) {
        const auto shape = load<std::uint32_t>(reinterpret_cast<const std::uint8_t*>(&operand));
        const unsigned lane = shape >> 24; // the shift takes its low six bits only
        const unsigned reg = unsigned(lanes >> (lane & 0x3fu) & 0x1fu) + (shape >> 8 & 0xffu);
        const unsigned size = sizes[shape >> 16 & 0xffu];
        packed[place] = (shape & 0xffu) | reg << 8 | (size & 0xffu) << 16;
        read |= (lane >> 6 & 1u) << reg;
        written |= (lane >> 7) << reg;
    }
};

template <bool kLongMode>
DOPPEL_DECODER_INLINE Operands find_operands(const Decoding<kLongMode>& d) {
    const unsigned extension = d.rex << 3 & 8u;
    const unsigned mask = d.long_mode() ? 0xfu : 7u; // the top bits of vvvv and is4 are ignored
    // 16 falls out of the sets of registers below: this one is no operand.
    const unsigned rm = d.memory != 0 ? 16u : d.rm() | extension;
    const std::uint64_t lanes = // in the order of Lane
        std::uint64_t(d.reg() | (d.rex << 1 & 8u)) | std::uint64_t(rm) << 8 |
        std::uint64_t(d.vvvv & mask) << 16 | std::uint64_t((d.opcode & 7u) | extension) << 24 |
        (d.immediate >> 4 & mask) << 32 | std::uint64_t(d.reg()) << 40 |
        std::uint64_t(d.rm()) << 48;
    const SizeColumn& sizes = d.sizes();
    Operands found{};
    found.add(d.entry->operands[0], lanes, sizes, 0);
    found.add(d.entry->operands[1], lanes, sizes, 1);
    if (d.entry->operand_count > 2) {
        found.add(d.entry->operands[2], lanes, sizes, 2);
        found.add(d.entry->operands[3], lanes, sizes, 3);
    }
    return found;
}

/// 0..5: the segment of the memory operand, or of what can be overridden.
template <bool kLongMode>
DOPPEL_DECODER_INLINE unsigned find_segment(const Decoding<kLongMode>& d) {
    const unsigned by_base = (d.base & ~1u) == 4 ? 2u : 3u; // rsp, rbp: ss
    return d.segment == kNoRegister ? by_base : d.segment;
}

struct Words {
    std::uint64_t words[8];
};
static_assert(sizeof(Words) == sizeof(Instruction));

/// Puts the instruction together in registers: eight stores instead of forty. The order of the
/// fields is checked by check_layout().
template <bool kLongMode>
DOPPEL_DECODER_INLINE void compose(const Decoding<kLongMode>& d, Instruction& out) {
    const Entry& entry = *d.entry;
    const auto* head = reinterpret_cast<const std::uint8_t*>(&entry);
    const Operands operands = find_operands(d);
    const unsigned in_memory = 0u - d.memory; // a mask
    const unsigned memory_size = d.sizes()[unsigned(entry.memory_size)] & in_memory;
    // A register that is written in part keeps the rest: it is read too.
    const unsigned written = operands.written | entry.registers_written;
    const unsigned partly = d.operand_size_log2 < 2 ? written : 0u;
    // The register numbers 0xff and kRip shift into bits that do not exist.
    const unsigned read = operands.read | entry.registers_read | partly | 1u << (d.base & 0x1fu) |
                          1u << (d.index & 0x1fu);
    const unsigned gpr = in_memory & kMemoryReplacesGpr & entry.checks;
    const bool rex = (d.prefixes & prefix::kRex) != 0 || d.encoding != Encoding::Legacy;
    Words result;
    result.words[0] = load<std::uint64_t>(head) ^
                      std::uint64_t(gpr) << (16 + 9 - kMemoryReplacesGprShift); // kGprOperand
    result.words[1] = (load<std::uint64_t>(head + 8) & kLowBytes[5]) |
                      std::uint64_t(d.map | unsigned(d.encoding) << 4) << 40 |
                      std::uint64_t(d.opcode) << 48;
    result.words[2] =
        (read & 0xffffu) | std::uint64_t(written & 0xffffu) << 16 |
        std::uint64_t(d.prefixes) << 32 | std::uint64_t(d.rex | (rex ? 0x40u : 0u)) << 40 |
        std::uint64_t(1u << d.operand_size_log2) << 48 | std::uint64_t(d.address_size) << 56;
    result.words[3] = memory_size | (unsigned(entry.memory_access) & in_memory) << 16 |
                      find_segment(d) << 24 | std::uint64_t(d.base) << 32 |
                      std::uint64_t(d.index) << 40 | std::uint64_t(d.scale) << 48 |
                      std::uint64_t(d.modrm_offset != 0 ? d.modrm : 0) << 56;
    result.words[4] = d.modrm_offset | d.opcode_offset << 4 | d.displacement_size << 8 |
                      d.immediate_size << 12 | operands.packed[0] << 16 | operands.packed[1] << 40;
    result.words[5] = operands.packed[2] | operands.packed[3] << 24;
    result.words[6] = d.displacement;
    result.words[7] = d.immediate;
    __builtin_memcpy(static_cast<void*>(&out), &result, sizeof out);
    Operand unused;
    Operand& operand = d.memory != 0 ? out.operands[entry.memory_operand] : unused;
    operand = Operand{OperandKind::Memory, entry.memory_access, kNoRegister,
                      memory_size < 256 ? std::uint8_t(memory_size) : std::uint8_t(0)};
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
    if (entry.immediate >= ImmediateCode::Constant1)
        read_unusual_immediate(d, out);
    if ((entry.checks & kByteRegister) != 0 && (d.prefixes & prefix::kRex) == 0)
        find_high_bytes(entry, out);
    if ((d.prefixes & prefix::kLock) != 0 &&
        (!out.has(attribute::kLockable) || out.memory_access != Access::ReadWrite))
        return false;
    if (d.encoding != Encoding::Legacy && d.vvvv != 0 && (entry.checks & kUsesVvvv) == 0)
        return false;
    return (entry.checks & kUnusual) == 0 || finish_unusual(d, out);
}

/// Everything behind the opcode, once the entry is known. False: undefined.
template <bool kLongMode>
DOPPEL_DECODER_INLINE bool decode_operands(Decoding<kLongMode>& d, Instruction& out) {
    const Entry& entry = *d.entry;
    find_sizes(d);
    read_modrm(d);
    read_immediate(d);
    compose(d, out);
    const bool rare = (entry.checks & (kUnusual | kByteRegister)) != 0 ||
                      entry.immediate >= ImmediateCode::Constant1 ||
                      (d.prefixes & prefix::kLock) != 0 || d.vvvv != 0;
    return !rare || aside(d, [&out](auto& copy) { return finish_rare(copy, out); });
}

/// Decodes at `code`, where kReach bytes can be read, `available` of which are the instruction's.
template <bool kLongMode>
DOPPEL_DECODER_INLINE DecodeStatus decode_at(const std::uint8_t* code, std::size_t available,
                                             CodeSize mode, Instruction& out) {
    Decoding<kLongMode> d{.code = code, .mode = kLongMode ? CodeSize::Bits64 : mode};
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
