// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/rewrite.hpp"

#include <array>
#include <cstring>

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

bool is_vector_class(const Instruction& in) {
    return in.type == InstructionClass::X87 || in.type == InstructionClass::Mmx ||
           in.type == InstructionClass::Sse || in.type == InstructionClass::Avx;
}

/// Of vector instructions with a general register: it is in ModRM.rm.
bool general_is_rm(const Instruction& in) {
    if (in.map == OpcodeMap::Map0F)
        return in.opcode == 0x6e || in.opcode == 0x7e || in.opcode == 0x2a || in.opcode == 0xc4;
    if (in.map == OpcodeMap::Map0F3A)
        return (in.opcode >= 0x14 && in.opcode <= 0x17) || in.opcode == 0x20 || in.opcode == 0x22;
    return false;
}

/// Register numbers of the three fields, with the extension bits of REX or VEX, mapped.
struct Fields {
    std::uint8_t reg = 0;
    std::uint8_t rm = 0;
    std::uint8_t vvvv = 0;
    bool high = false; // one of them is ah, ch, dh, bh: no REX allowed
};

class Rewriter {
public:
    Rewriter(Assembler& to, const Instruction& in, const std::uint8_t* bytes, const Rewrite& with)
        : a_{to}, in_{in}, bytes_{bytes}, with_{with} {}

    bool run() {
        find_fields();
        if (in_.is_vex())
            emit_vex();
        else if (!emit_legacy())
            return false;
        emit_tail();
        return true;
    }

private:
    bool memory_form() const {
        return with_.mem_is_register == kNoReg &&
               (is_offset_move(in_) ||
                (in_.has_modrm() && (in_.modrm_mod() != 3 || with_.register_is_mem)));
    }
    /// INC and DEC of one byte: in 64-bit code the opcode is REX.
    bool is_short_count() const {
        return in_.map == OpcodeMap::Primary && (in_.opcode & 0xf0) == 0x40;
    }
    bool has_rex() const { return (in_.prefixes & prefix::kRex) != 0; }
    bool plus_register() const {
        if (in_.has_modrm())
            return false;
        if (in_.map == OpcodeMap::Map0F)
            return in_.opcode >= 0xc8 && in_.opcode <= 0xcf;
        return in_.map == OpcodeMap::Primary &&
               ((in_.opcode >= 0x90 && in_.opcode <= 0x97) ||
                (in_.opcode >= 0xb0 && in_.opcode <= 0xbf) || is_short_count());
    }
    std::uint8_t map(std::uint8_t number, bool byte_register) {
        if (byte_register && !in_.is_vex() && !has_rex() && number >= 4) {
            if (with_.high_as_low)
                return static_cast<std::uint8_t>(number - 4);
            fields_.high = true;
            return number;
        }
        return with_.gpr[number];
    }
    void find_fields() {
        const unsigned rex = with_.code32 ? 0 : in_.rex; // a VEX prefix may have bits to ignore
        const auto r = static_cast<std::uint8_t>((rex & 4) << 1);
        const auto b = static_cast<std::uint8_t>((rex & 1) << 3);
        const bool vector = is_vector_class(in_);
        // PCMPxSTRx have theirs implicitly.
        const bool general =
            in_.has(attribute::kGprOperand) && in_.op != Op::Pcmpestr && in_.op != Op::Pcmpistr;
        const bool bytes = in_.operand_size == 1 && !vector;
        if (plus_register()) {
            const auto number = static_cast<std::uint8_t>((in_.opcode & 7) | b);
            fields_.rm = map(number, in_.opcode < 0xb8 && in_.opcode >= 0xb0);
            return;
        }
        if (!in_.has_modrm())
            return;
        const auto reg = static_cast<std::uint8_t>(in_.modrm_reg() | r);
        fields_.reg = reg;
        if (is_group(in_))
            fields_.reg = in_.modrm_reg();
        else if (vector ? general && !general_is_rm(in_) : true)
            fields_.reg = map(reg, bytes);
        if (with_.mem_is_register != kNoReg) {
            fields_.rm = with_.mem_is_register;
        } else if (!memory_form()) {
            fields_.rm = static_cast<std::uint8_t>(in_.modrm_rm() | b);
            const bool byte_source = in_.op == Op::Movzx || in_.op == Op::Movsx
                                         ? in_.map == OpcodeMap::Map0F && (in_.opcode & 1) == 0
                                         : in_.op == Op::Crc32 && in_.opcode == 0xf0;
            if (vector ? general && general_is_rm(in_) : true)
                fields_.rm = map(fields_.rm, bytes || byte_source);
        }
    }

    std::uint8_t extension_bits() const {
        auto bits = static_cast<std::uint8_t>((fields_.reg & 8) >> 1);
        if (memory_form())
            bits |= Assembler::rex_bits(0, with_.mem);
        else
            bits |= static_cast<std::uint8_t>((fields_.rm & 8) >> 3);
        return bits;
    }

    bool emit_legacy() {
        const std::uint8_t bits = extension_bits();
        std::uint8_t rex = static_cast<std::uint8_t>((in_.rex & 8) | bits);
        if (rex != 0 || has_rex())
            rex |= 0x40;
        if (fields_.high && rex != 0)
            return false;
        constexpr unsigned kRare =
            prefix::kLock | prefix::kOperandSize | prefix::kRep | prefix::kRepne;
        if ((in_.prefixes & kRare) != 0)
            add_prefixes();
        if (rex != 0)
            head_.add(rex);
        if (in_.map != OpcodeMap::Primary)
            head_.add(0x0f);
        if (in_.map == OpcodeMap::Map0F38)
            head_.add(0x38);
        if (in_.map == OpcodeMap::Map0F3A)
            head_.add(0x3a);
        add_legacy_opcode();
        return true;
    }

    void add_prefixes() {
        if (in_.lock())
            head_.add(0xf0);
        if ((in_.prefixes & prefix::kOperandSize) != 0)
            head_.add(0x66);
        if (in_.rep())
            head_.add(0xf3);
        if (in_.repne())
            head_.add(0xf2);
    }

    void add_legacy_opcode() {
        if (is_short_count()) {
            head_.add(0xff);
            head_.add(0xc0u | (in_.opcode & 8u) | (fields_.rm & 7u));
        } else if (plus_register()) {
            head_.add((in_.opcode & ~7u) | (fields_.rm & 7u));
        } else if (is_offset_move(in_)) { // a0..a3 becomes 8a, 8b, 88, 89
            head_.add(0x88u | ((in_.opcode & 3u) ^ 2u));
        } else if (with_.code32 && in_.map == OpcodeMap::Primary && in_.opcode == 0x82) {
            head_.add(0x80); // the same, and undefined in 64-bit code
        } else {
            head_.add(in_.opcode);
        }
    }

    void emit_vex() {
        // The byte with vvvv, L and pp stands right before the opcode in both forms.
        const std::uint8_t last = bytes_[in_.opcode_offset - 1];
        const auto original = static_cast<std::uint8_t>(~last >> 3 & (with_.code32 ? 7 : 15));
        const bool general = !is_vector_class(in_);
        const std::uint8_t vvvv =
            general ? static_cast<std::uint8_t>(with_.gpr[original]) : original;
        const std::uint8_t bits = extension_bits();
        head_.add(0xc4);
        head_.add((~bits & 7u) << 5 | static_cast<unsigned>(in_.map));
        head_.add((in_.rex & 8u) << 4 | (~vvvv & 15u) << 3 | (last & 7u));
        head_.add(in_.opcode);
    }

    /// The head and what follows, in as few stores as can be.
    void emit_tail() {
        constexpr unsigned kMostOfModrm = 6;
        if (!memory_form()) {
            if (in_.has_modrm())
                head_.add(0xc0u | (fields_.reg & 7u) << 3 | (fields_.rm & 7u));
            a_.put(head_);
        } else if (head_.count + kMostOfModrm <= sizeof head_.value) {
            head_.add_modrm(fields_.reg, with_.mem);
            a_.put(head_);
        } else {
            a_.put(head_);
            a_.modrm(fields_.reg, with_.mem);
        }
        if (in_.immediate_size == 0)
            return;
        std::uint64_t immediate = 0; // and whatever is behind it: BlockScan::bytes goes on
        std::memcpy(&immediate, bytes_ + in_.immediate_offset(), sizeof immediate);
        a_.put(immediate, in_.immediate_size);
    }

    Assembler& a_;
    const Instruction& in_;
    const std::uint8_t* bytes_;
    const Rewrite& with_;
    Fields fields_;
    Encoded head_; // all before ModRM
};

/// A set of opcodes.
constexpr std::array<std::uint64_t, 4> kPrimaryGroups = [] {
    std::array<std::uint64_t, 4> set{};
    for (const unsigned op :
         {0x80, 0x81, 0x82, 0x83, 0x8f, 0xc0, 0xc1, 0xc6, 0xc7, 0xd0, 0xd1, 0xd2, 0xd3,
          0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xf6, 0xf7, 0xfe, 0xff})
        set[op / 64] |= std::uint64_t{1} << op % 64;
    return set;
}();

} // namespace

bool is_offset_move(const Instruction& in) {
    return in.map == OpcodeMap::Primary && in.opcode >= 0xa0 && in.opcode <= 0xa3;
}

bool is_group(const Instruction& in) {
    const std::uint8_t op = in.opcode;
    switch (in.map) {
    case OpcodeMap::Primary: return (kPrimaryGroups[op / 64] >> (op % 64) & 1) != 0;
    case OpcodeMap::Map0F:
        return (op >= 0x90 && op <= 0x9f) || op == 0xba || op == 0xc7 ||
               (op >= 0x18 && op <= 0x1f) || op == 0x0d || op == 0xae || op <= 0x01 ||
               (op >= 0x71 && op <= 0x73);
    case OpcodeMap::Map0F38: return in.is_vex() && op == 0xf3;
    default: return false;
    }
}

unsigned rm_register(const Instruction& in) {
    return static_cast<unsigned>(in.modrm_rm() | (in.rex & 1) << 3);
}
unsigned reg_register(const Instruction& in) {
    return static_cast<unsigned>(in.modrm_reg() | (in.rex & 4) << 1);
}

bool has_twin(const Instruction& in) {
    const std::uint8_t op = in.opcode;
    return in.map == OpcodeMap::Primary &&
           (((op & 0xc4) == 0 && (op & 7) < 4) || (op >= 0x84 && op <= 0x85) ||
            (op >= 0x88 && op <= 0x8b));
}

Instruction twin(Instruction in) {
    if ((in.opcode & 0xfe) != 0x84) // TEST has one form
        in.opcode ^= 2;
    in.modrm = static_cast<std::uint8_t>(0xc0 | in.modrm_rm() << 3 | in.modrm_reg());
    in.rex = static_cast<std::uint8_t>((in.rex & 0xfa) | (in.rex & 1) << 2 | (in.rex & 4) >> 2);
    return in;
}

bool emit_rewritten(Assembler& to, const Instruction& in, const std::uint8_t* bytes,
                    const Rewrite& with) {
    return Rewriter{to, in, bytes, with}.run();
}

} // namespace doppel::cpu::x86::frontend
