// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/native/rewrite.hpp"

#include <cstring>

namespace doppel::cpu::x86::native {
namespace {

constexpr std::uint8_t kRexW = 8, kRexR = 4, kRexB = 1;
constexpr unsigned kRmRbx = 3;

/// Is the general register operand in modrm.reg (MOVMSK, PMOVMSKB, PEXTRW, CVT to integer)?
bool gpr_is_reg(const Instruction& in) {
    if (in.map != OpcodeMap::Map0F)
        return false;
    switch (in.opcode) {
    case 0x2c:
    case 0x2d:
    case 0x50:
    case 0xc5:
    case 0xd7: return true;
    default: return false;
    }
}

/// Does REX.W or VEX.W choose the width of an integer operand? It then counts in 64-bit code only.
bool w_is_integer_width(const Instruction& in) {
    if (in.map == OpcodeMap::Map0F3A)
        return in.opcode == 0x16 || in.opcode == 0x22 || // PEXTRD, PINSRD
               in.op == Op::Pcmpestr;
    if (in.map != OpcodeMap::Map0F)
        return false;
    switch (in.opcode) {
    case 0x2a: // CVTSI2SS and back
    case 0x2c:
    case 0x2d:
    case 0x6e: // MOVD
    case 0x7e: return true;
    default: return false;
    }
}

class Writer {
public:
    void byte(unsigned value) { bytes_[length_++] = static_cast<std::uint8_t>(value); }
    HostCode finish() const {
        HostCode code;
        std::memcpy(code.words.data(), bytes_.data(), sizeof code.words);
        code.length = length_;
        return code;
    }

private:
    std::array<std::uint8_t, 16> bytes_{};
    std::size_t length_ = 0;
};

/// ModRM and the extension bits that go with it.
struct Fields {
    unsigned modrm = 0;
    std::uint8_t rex = 0; // W R B, upright
};

Fields host_fields(const Instruction& in, bool code64) {
    Fields fields{.modrm = in.modrm, .rex = static_cast<std::uint8_t>(in.rex & 0xf)};
    const bool has_gpr = gpr_operand(in) != nullptr;
    if (!code64) // there are only eight registers of each kind
        fields.rex &= w_is_integer_width(in) ? std::uint8_t{0} : kRexW;
    if (in.has_memory()) {
        fields.modrm = (in.modrm & 0x38u) | kRmRbx;
        fields.rex &= kRexW | kRexR;
    } else {
        fields.rex &= kRexW | kRexR | kRexB;
    }
    if (!has_gpr)
        return fields;
    if (gpr_is_reg(in)) {
        fields.modrm &= ~0x38u;
        fields.rex &= static_cast<std::uint8_t>(~kRexR);
    } else {
        fields.modrm &= ~0x07u;
        fields.rex &= static_cast<std::uint8_t>(~kRexB);
    }
    return fields;
}

void write_legacy_prefixes(Writer& to, const Instruction& in, const Fields& fields) {
    if (in.type == InstructionClass::X87) {
        const bool environment = in.op == Op::Fldenv || in.op == Op::Fnstenv ||
                                 in.op == Op::Frstor || in.op == Op::Fnsave;
        if (environment && in.operand_size == 2)
            to.byte(0x66);
    } else {
        if ((in.prefixes & prefix::kOperandSize) != 0)
            to.byte(0x66);
        if (in.rep())
            to.byte(0xf3);
        if (in.repne())
            to.byte(0xf2);
        if (fields.rex != 0)
            to.byte(0x40u | fields.rex);
    }
    if (in.map != OpcodeMap::Primary)
        to.byte(0x0f);
    if (in.map == OpcodeMap::Map0F38)
        to.byte(0x38);
    if (in.map == OpcodeMap::Map0F3A)
        to.byte(0x3a);
}

void write_vex(Writer& to, const Instruction& in, const std::uint8_t* bytes, const Fields& fields,
               bool code64) {
    unsigned last = bytes[in.opcode_offset - 1] & 0x7fu; // vvvv L pp
    if (!code64)
        last |= 0x40; // vvvv counts in three bits there
    if ((fields.rex & kRexW) != 0)
        last |= 0x80;
    const unsigned inverted = ~((fields.rex & kRexR) << 5 | (fields.rex & kRexB) << 5) & 0xe0u;
    to.byte(0xc4);
    to.byte(inverted | static_cast<unsigned>(in.map));
    to.byte(last);
}

} // namespace

const Operand* gpr_operand(const Instruction& in) {
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::Gpr)
            return &operand;
    return nullptr;
}

HostCode rewrite(const Instruction& in, const std::uint8_t* bytes, bool code64) {
    const Fields fields = host_fields(in, code64);
    Writer to;
    if (in.is_vex())
        write_vex(to, in, bytes, fields, code64);
    else
        write_legacy_prefixes(to, in, fields);
    to.byte(in.opcode);
    if (in.has_modrm())
        to.byte(fields.modrm);
    const bool register_in_immediate =
        in.is_vex() && in.map == OpcodeMap::Map0F3A && in.opcode >= 0x4a && in.opcode <= 0x4c;
    for (unsigned i = 0; i < in.immediate_size; ++i) {
        const unsigned value = bytes[in.immediate_offset() + i];
        to.byte(register_in_immediate && !code64 ? value & 0x7fu : value);
    }
    return to.finish();
}

} // namespace doppel::cpu::x86::native
