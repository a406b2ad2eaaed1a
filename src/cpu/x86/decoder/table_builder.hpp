// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Reads the rows (language: row.hpp) and lays them out as tables, all at compile time.

#include <span>
#include <string_view>

#include "cpu/x86/decoder/row.hpp"
#include "cpu/x86/decoder/sizes.hpp"
#include "cpu/x86/decoder/table.hpp"

namespace doppel::cpu::x86::decoder {

/// Not constexpr on purpose: reached during compilation it stops it.
void bad_row(std::string_view what);

/// Splits off the first word of `text`.
consteval std::string_view next_word(std::string_view& text) {
    while (!text.empty() && text.front() == ' ')
        text.remove_prefix(1);
    std::size_t length = 0;
    while (length < text.size() && text[length] != ' ')
        ++length;
    const auto word = text.substr(0, length);
    text.remove_prefix(length);
    return word;
}

enum class WordKind : std::uint8_t { Type, Feature, Branch, Rule, Attribute, Check };
struct Word {
    std::string_view name;
    WordKind kind;
    unsigned value;
};

consteval Word word(std::string_view name, InstructionClass value) {
    return {name, WordKind::Type, unsigned(value)};
}
consteval Word word(std::string_view name, IsaFeature value) {
    return {name, WordKind::Feature, unsigned(value)};
}
consteval Word word(std::string_view name, BranchKind value) {
    return {name, WordKind::Branch, unsigned(value)};
}
consteval Word word(std::string_view name, SizeRule value) {
    return {name, WordKind::Rule, unsigned(value)};
}
consteval Word word(std::string_view name, std::uint16_t value) {
    return {name, WordKind::Attribute, value};
}

/// Words of the traits column that are plain names.
inline constexpr Word kWords[] = {
    word("sse", InstructionClass::Sse),
    word("avx", InstructionClass::Avx),
    word("mmx", InstructionClass::Mmx),
    word("x87", InstructionClass::X87),
    word("sys", InstructionClass::System),
    word("string", InstructionClass::String),
    word("io", InstructionClass::Io),
    word("favx", IsaFeature::Avx),
    word("sse2", IsaFeature::Sse2),
    word("fsse", IsaFeature::Sse),
    word("sse3", IsaFeature::Sse3),
    word("ssse3", IsaFeature::Ssse3),
    word("sse41", IsaFeature::Sse41),
    word("sse42", IsaFeature::Sse42),
    word("avx2", IsaFeature::Avx2),
    word("fma", IsaFeature::Fma),
    word("f16c", IsaFeature::F16c),
    word("aes", IsaFeature::Aes),
    word("favxaes", IsaFeature::Aes),
    word("pclmul", IsaFeature::Pclmulqdq),
    word("favxpclmul", IsaFeature::Pclmulqdq),
    word("gfni", IsaFeature::Gfni),
    word("vaes", IsaFeature::Vaes),
    word("vpclmul", IsaFeature::Vpclmulqdq),
    word("sha", IsaFeature::Sha),
    word("bmi1", IsaFeature::Bmi1),
    word("bmi2", IsaFeature::Bmi2),
    word("lzcnt", IsaFeature::Lzcnt),
    word("popcnt", IsaFeature::Popcnt),
    word("movbe", IsaFeature::Movbe),
    word("adx", IsaFeature::Adx),
    word("cmov", IsaFeature::Cmov),
    word("cx8", IsaFeature::Cx8),
    word("cx16", IsaFeature::Cx16),
    word("lahf", IsaFeature::LahfLm),
    word("prefetchw", IsaFeature::Prefetchw),
    word("femms", IsaFeature::Femms),
    word("syscall", IsaFeature::Syscall),
    word("sep", IsaFeature::Sep),
    word("rdtscp", IsaFeature::Rdtscp),
    word("longmode", IsaFeature::LongMode),
    word("msr", IsaFeature::Msr),
    word("tsc", IsaFeature::Tsc),
    word("vmx", IsaFeature::Vmx),
    word("svm", IsaFeature::Svm),
    word("monitor", IsaFeature::Monitor),
    word("smap", IsaFeature::Smap),
    word("xsave", IsaFeature::Xsave),
    word("xsaveopt", IsaFeature::Xsaveopt),
    word("xsavec", IsaFeature::Xsavec),
    word("xsaves", IsaFeature::Xsaves),
    word("fxsr", IsaFeature::Fxsr),
    word("clflush", IsaFeature::Clflush),
    word("clflushopt", IsaFeature::Clflushopt),
    word("clwb", IsaFeature::Clwb),
    word("fsgsbase", IsaFeature::Fsgsbase),
    word("rdrand", IsaFeature::Rdrand),
    word("rdseed", IsaFeature::Rdseed),
    word("rdpid", IsaFeature::Rdpid),
    word("invpcid", IsaFeature::Invpcid),
    word("jmp", BranchKind::Jump),
    word("jcc", BranchKind::Conditional),
    word("call", BranchKind::Call),
    word("ijmp", BranchKind::IndirectJump),
    word("icall", BranchKind::IndirectCall),
    word("ret", BranchKind::Return),
    word("far", BranchKind::Other),
    word("byte", SizeRule::Byte),
    word("o64", SizeRule::Stack64),
    word("f64", SizeRule::Force64),
    word("nat", SizeRule::Natural),
    word("nopfx", SizeRule::NoPrefix),
    word("z32", SizeRule::NoW),
    word("priv", attribute::kPrivileged),
    word("prot", attribute::kProtectedOnly),
    word("al", attribute::kAligned),
    word("fp", attribute::kMxcsr),
    word("x87state", attribute::kX87State),
    word("vsib", attribute::kVsib),
    word("masked", attribute::kMaskedMemory),
    word("fcond", attribute::kFlagsConditional),
    word("ends", attribute::kEndsBlock),
    word("lock", attribute::kLockable),
    word("iopl", attribute::kIoplSensitive),
    word("nowait", attribute::kX87NoWait),
    Word{"unusual", WordKind::Check, kUnusual},
    Word{"regform", WordKind::Check, kRegisterForm | kHasModrm},
};

consteval std::uint16_t flag_mask(std::string_view letters) {
    std::uint16_t mask = 0;
    for (const char letter : letters) {
        constexpr std::string_view kNames = "cpazstido*";
        constexpr std::uint16_t kBits[] = {0x001, 0x004, 0x010, 0x040, 0x080,
                                           0x100, 0x200, 0x400, 0x800, 0x7fd5};
        const auto place = kNames.find(letter);
        if (place == std::string_view::npos)
            bad_row(letters);
        mask |= kBits[place];
    }
    return mask;
}

consteval std::uint16_t register_mask(std::string_view letters) {
    std::uint16_t mask = 0;
    for (const char letter : letters) {
        constexpr std::string_view kNames = "acdbSBstr*";
        constexpr std::uint16_t kBits[] = {1, 2, 4, 8, 16, 32, 64, 128, 0x800, 0xff};
        const auto place = kNames.find(letter);
        if (place == std::string_view::npos)
            bad_row(letters);
        mask |= kBits[place];
    }
    return mask;
}

consteval void apply_word(const Word& word, Entry& entry, SizeRule& rule) {
    switch (word.kind) {
    case WordKind::Type: entry.type = InstructionClass(word.value); break;
    case WordKind::Feature: entry.feature = IsaFeature(word.value); break;
    case WordKind::Branch:
        entry.branch = BranchKind(word.value);
        entry.type = InstructionClass::Branch;
        break;
    case WordKind::Rule: rule = SizeRule(word.value); break;
    case WordKind::Attribute: entry.attributes |= std::uint16_t(word.value); break;
    case WordKind::Check: entry.checks |= std::uint8_t(word.value); break;
    }
}

consteval bool apply_mask(std::string_view name, Entry& entry) {
    const auto colon = name.find(':');
    if (colon == std::string_view::npos)
        return false;
    const auto what = name.substr(0, colon);
    const auto letters = name.substr(colon + 1);
    if (what == "r")
        entry.flags_read |= flag_mask(letters);
    else if (what == "w")
        entry.flags_written |= flag_mask(letters);
    else if (what == "u")
        entry.flags_undefined |= flag_mask(letters);
    else if (what == "ir" || what == "ix")
        entry.registers_read |= register_mask(letters);
    else if (what != "iw")
        bad_row(name);
    if (what == "iw" || what == "ix")
        entry.registers_written |= register_mask(letters);
    return true;
}

/// What stands in a row's encoding: each mask has a bit per value of the Choice that is allowed.
struct Constraints {
    std::array<std::uint8_t, kChoiceWays.size()> masks{3, 0xf, 3, 0xff, 0xff, 3, 3, 3};
    bool prefixes_named = false;

    consteval void set(Choice choice, unsigned mask) {
        masks[std::size_t(choice)] = std::uint8_t(mask);
    }
    consteval void add_prefix(unsigned value) {
        auto& mask = masks[std::size_t(Choice::Prefix)];
        mask = std::uint8_t((prefixes_named ? mask : 0u) | 1u << value);
        prefixes_named = true;
    }
    consteval bool parse(std::string_view name) {
        constexpr std::string_view kPrefixes[] = {"np", "66", "f3", "f2"};
        for (unsigned i = 0; i < 4; ++i)
            if (name == kPrefixes[i]) {
                add_prefix(i);
                return true;
            }
        struct Named {
            std::string_view name;
            Choice choice;
            unsigned mask;
        };
        constexpr Named kNamed[] = {
            {"mem", Choice::Mod, 1},    {"reg", Choice::Mod, 2}, {"no64", Choice::Mode64, 1},
            {"m64", Choice::Mode64, 2}, {"W0", Choice::W, 1},    {"W1", Choice::W, 2},
            {"L0", Choice::L, 1},       {"L1", Choice::L, 2},    {"B0", Choice::B, 1},
        };
        for (const Named& named : kNamed)
            if (name == named.name) {
                set(named.choice, named.mask);
                return true;
            }
        if (name.size() == 2 && name[0] == '/')
            return set(Choice::Reg, 1u << (name[1] - '0')), true;
        if (name.size() == 3 && name[0] == 'r' && name[1] == 'm')
            return set(Choice::Rm, 1u << (name[2] - '0')), true;
        return false;
    }
};

/// The words that stand for more than one thing. False: it is none of them.
consteval bool apply_group(std::string_view name, Entry& entry, unsigned opcode) {
    if (name == "arith" || name == "logic") { // logic: CF and OF are cleared, AF is undefined
        entry.flags_written |= flag_mask("oszapc");
        entry.flags_undefined |= flag_mask(name == "logic" ? "a" : "");
    } else if (name == "cond") {
        constexpr std::uint16_t kReads[] = {0x800, 0x001, 0x040, 0x041, 0x080, 0x004, 0x880, 0x8c0};
        entry.flags_read |= kReads[opcode >> 1 & 7];
    } else if (name == "align10") { // MOVUPS and MOVAPS share a row
        if (opcode >= 0x28)
            entry.attributes |= attribute::kAligned;
    } else {
        return name == "un" || name == "ii"; // others look for these
    }
    return true;
}

consteval const Word& find_word(std::string_view name) {
    for (const Word& word : kWords)
        if (name == word.name)
            return word;
    bad_row(name);
    return kWords[0];
}

consteval void parse_traits(std::string_view text, Entry& entry, Constraints& constraints,
                            SizeRule& rule, unsigned opcode) {
    while (true) {
        const auto name = next_word(text);
        if (name.empty())
            return;
        const bool done =
            constraints.parse(name) || apply_mask(name, entry) || apply_group(name, entry, opcode);
        if (!done)
            apply_word(find_word(name), entry, rule);
    }
}

consteval SizeCode parse_size(std::string_view name) {
    struct Named {
        std::string_view name;
        SizeCode code;
    };
    constexpr Named kNamed[] = {
        {"", SizeCode::None},   {"b", SizeCode::B},         {"w", SizeCode::W},
        {"d", SizeCode::D},     {"q", SizeCode::Q},         {"dq", SizeCode::Dq},
        {"qq", SizeCode::Qq},   {"x", SizeCode::X},         {"h", SizeCode::H},
        {"f", SizeCode::F},     {"e", SizeCode::E},         {"v", SizeCode::V},
        {"y", SizeCode::Y},     {"z", SizeCode::Z},         {"p", SizeCode::P},
        {"a", SizeCode::A},     {"s", SizeCode::S},         {"t", SizeCode::T},
        {"env", SizeCode::Env}, {"fsave", SizeCode::Fsave}, {"fx", SizeCode::Fx},
        {"var", SizeCode::Var}, {"n", SizeCode::V},
    };
    for (const Named& named : kNamed)
        if (name == named.name)
            return named.code;
    bad_row(name);
    return SizeCode::None;
}

/// Operands that are not written as letter + size.
struct FixedOperand {
    std::string_view name;
    OperandKind kind;
    std::uint8_t reg;
    SizeCode size;
    Lane lane = Lane::Zero;
    ImmediateCode immediate = ImmediateCode::None;
};
inline constexpr FixedOperand kFixedOperands[] = {
    {"AL", OperandKind::Gpr, 0, SizeCode::B},
    {"AX", OperandKind::Gpr, 0, SizeCode::W},
    {"rAX", OperandKind::Gpr, 0, SizeCode::V},
    {"Az", OperandKind::Gpr, 0, SizeCode::Z},
    {"CL", OperandKind::Gpr, 1, SizeCode::B},
    {"DX", OperandKind::Gpr, 2, SizeCode::W},
    {"ES", OperandKind::Segment, 0, SizeCode::W},
    {"CS", OperandKind::Segment, 1, SizeCode::W},
    {"SS", OperandKind::Segment, 2, SizeCode::W},
    {"DS", OperandKind::Segment, 3, SizeCode::W},
    {"FS", OperandKind::Segment, 4, SizeCode::W},
    {"GS", OperandKind::Segment, 5, SizeCode::W},
    {"Sw", OperandKind::Segment, 0, SizeCode::W, Lane::Reg3},
    {"Cn", OperandKind::Control, 0, SizeCode::V, Lane::Reg},
    {"Dn", OperandKind::Debug, 0, SizeCode::V, Lane::Reg},
    {"ST0", OperandKind::X87, 0, SizeCode::T},
    {"STi", OperandKind::X87, 0, SizeCode::T, Lane::Rm3},
    {"XMM0", OperandKind::Vector, 0, SizeCode::Dq},
    {"I1", OperandKind::Immediate, 0, SizeCode::B, Lane::Zero, ImmediateCode::Constant1},
    {"Ib", OperandKind::Immediate, 0, SizeCode::B, Lane::Zero, ImmediateCode::Unsigned8},
    {"sIb", OperandKind::Immediate, 0, SizeCode::V, Lane::Zero, ImmediateCode::Signed8},
    {"Iw", OperandKind::Immediate, 0, SizeCode::W, Lane::Zero, ImmediateCode::Unsigned16},
    {"Iz", OperandKind::Immediate, 0, SizeCode::V, Lane::Zero, ImmediateCode::SignedZ},
    {"Iv", OperandKind::Immediate, 0, SizeCode::V, Lane::Zero, ImmediateCode::V},
    {"Jb", OperandKind::Relative, 0, SizeCode::V, Lane::Zero, ImmediateCode::Signed8},
    {"Jz", OperandKind::Relative, 0, SizeCode::V, Lane::Zero, ImmediateCode::SignedZ},
    {"Ap", OperandKind::FarPointer, 0, SizeCode::P, Lane::Zero, ImmediateCode::Far},
    {"Lx", OperandKind::Vector, 0, SizeCode::X, Lane::Is4, ImmediateCode::Is4},
};

struct LetterOperand {
    char letter;
    OperandKind kind;
    Lane lane;
    bool memory; // the operand may be (M, O: is) in memory
};
inline constexpr LetterOperand kLetterOperands[] = {
    {'E', OperandKind::Gpr, Lane::Rm, true},       {'G', OperandKind::Gpr, Lane::Reg, false},
    {'R', OperandKind::Gpr, Lane::Rm, false},      {'M', OperandKind::Memory, Lane::Zero, true},
    {'O', OperandKind::Memory, Lane::Zero, true},  {'Z', OperandKind::Gpr, Lane::OpcodeLow, false},
    {'B', OperandKind::Gpr, Lane::Vvvv, false},    {'V', OperandKind::Vector, Lane::Reg, false},
    {'W', OperandKind::Vector, Lane::Rm, true},    {'U', OperandKind::Vector, Lane::Rm, false},
    {'H', OperandKind::Vector, Lane::Vvvv, false}, {'P', OperandKind::Mmx, Lane::Reg3, false},
    {'Q', OperandKind::Mmx, Lane::Rm3, true},      {'N', OperandKind::Mmx, Lane::Rm3, false},
};

consteval Access take_access(std::string_view& name) {
    const char last = name.back();
    const Access access = last == '='   ? Access::Write
                          : last == '+' ? Access::ReadWrite
                          : last == '*' ? Access::Address
                                        : Access::Read;
    if (access != Access::Read)
        name.remove_suffix(1);
    return access;
}

consteval void set_operand(Entry& entry, OperandKind kind, Access access, unsigned reg,
                           SizeCode size, Lane lane) {
    if (entry.operand_count == entry.operands.size())
        bad_row("more than four operands");
    auto& operand = entry.operands[entry.operand_count++];
    operand.value = Operand{kind, access, std::uint8_t(reg), std::uint8_t(size)};
    operand.shift = std::uint8_t(unsigned(lane) * 8);
    if (kind == OperandKind::Gpr && access != Access::Address) {
        const bool part = size == SizeCode::B || size == SizeCode::W; // the rest is kept: a read
        operand.shift |= access != Access::Write || part ? kReadsGpr : 0;
        operand.shift |= access != Access::Read ? kWritesGpr : 0;
    }
    if (lane == Lane::Reg || lane == Lane::Reg3 || lane == Lane::Rm || lane == Lane::Rm3)
        entry.checks |= kHasModrm;
    if (lane == Lane::Vvvv)
        entry.checks |= kUsesVvvv;
    if (kind == OperandKind::Gpr && size == SizeCode::B && lane != Lane::Zero)
        entry.checks |= kByteRegister;
}

consteval SizeCode register_size(OperandKind kind, SizeCode written) {
    if (kind == OperandKind::Vector)
        return written == SizeCode::X || written == SizeCode::Qq ? written : SizeCode::Dq;
    return kind == OperandKind::Mmx ? SizeCode::Q : written;
}

consteval void parse_letter_operand(std::string_view name, Access access, Entry& entry,
                                    SizeRule& rule) {
    for (const LetterOperand& known : kLetterOperands) {
        if (known.letter != name.front())
            continue;
        const auto sizes = name.substr(1);
        const bool split = known.letter == 'E' && sizes.size() == 2; // register size, memory size
        const SizeCode size = parse_size(split ? sizes.substr(0, 1) : sizes);
        if (known.memory) {
            entry.memory_operand = entry.operand_count;
            entry.memory_size = split ? parse_size(sizes.substr(1)) : size;
            entry.memory_access = access;
        }
        if (known.letter == 'O')
            entry.immediate = ImmediateCode::Moffs;
        else if (known.memory)
            entry.checks |= kHasModrm;
        if (size == SizeCode::B && (known.kind == OperandKind::Gpr || known.letter == 'O') &&
            entry.operand_count == 0)
            rule = SizeRule::Byte;
        set_operand(entry, known.kind, access, 0, register_size(known.kind, size), known.lane);
        return;
    }
    bad_row(name);
}

consteval void parse_operand(std::string_view name, Entry& entry, SizeRule& rule) {
    if (name == "Enter") {
        set_operand(entry, OperandKind::Immediate, Access::Read, 0, SizeCode::W, Lane::Zero);
        set_operand(entry, OperandKind::Immediate2, Access::Read, 0, SizeCode::B, Lane::Zero);
        entry.immediate = ImmediateCode::Enter;
        return;
    }
    const Access access = take_access(name);
    for (const FixedOperand& fixed : kFixedOperands) {
        if (name != fixed.name)
            continue;
        if (name == "AL" && entry.operand_count == 0)
            rule = SizeRule::Byte;
        set_operand(entry, fixed.kind, access, fixed.reg, fixed.size, fixed.lane);
        if (fixed.immediate != ImmediateCode::None)
            entry.immediate = fixed.immediate;
        return;
    }
    parse_letter_operand(name, access, entry, rule);
}

/// Attributes that follow from the operands and the class.
consteval void derive_attributes(Entry& entry, bool unaligned) {
    bool gpr = entry.registers_read != 0 || entry.registers_written != 0;
    for (std::size_t i = 0; i < entry.operand_count; ++i) {
        const auto kind = entry.operands[i].value.kind;
        gpr = gpr || kind == OperandKind::Gpr;
        if (kind == OperandKind::Mmx)
            entry.attributes |= attribute::kX87State;
        if (kind == OperandKind::Vector)
            entry.attributes |= attribute::kVectorState;
    }
    switch (entry.type) {
    case InstructionClass::X87:
        entry.feature = entry.feature == IsaFeature::None ? IsaFeature::Fpu : entry.feature;
        entry.attributes |= attribute::kX87State;
        break;
    case InstructionClass::Mmx:
        entry.feature = entry.feature == IsaFeature::None ? IsaFeature::Mmx : entry.feature;
        break;
    case InstructionClass::Sse:
        if ((entry.memory_size == SizeCode::X || entry.memory_size == SizeCode::Dq) && !unaligned)
            entry.attributes |= attribute::kAligned;
        entry.attributes |= attribute::kVectorState;
        break;
    case InstructionClass::Avx: entry.attributes |= attribute::kVectorState; break;
    case InstructionClass::String: entry.checks |= kUnusual; return;
    default: return;
    }
    if (!gpr)
        return;
    entry.attributes |= attribute::kGprOperand;
    if (entry.memory_access != Access::None &&
        entry.operands[entry.memory_operand].value.kind == OperandKind::Gpr)
        entry.checks |= kMemoryReplacesGpr;
}

consteval bool has_word(std::string_view text, std::string_view wanted) {
    while (true) {
        const auto name = next_word(text);
        if (name.empty() || name == wanted)
            return !name.empty();
    }
}

struct ParsedRow {
    Entry entry;
    Constraints constraints;
};

/// Operand letters that name a register only or memory only decide mod.
consteval void constrain_mod(std::string_view operand, Constraints& constraints) {
    const char letter = operand.front();
    if (letter == 'M')
        constraints.set(Choice::Mod, 1);
    if (letter == 'U' || letter == 'N')
        constraints.set(Choice::Mod, 2);
}

/// What the decoder wants to know without asking.
consteval void finish_entry(Entry& entry) {
    const bool modrm = (entry.checks & kHasModrm) != 0;
    entry.modrm_mask = modrm ? 0xff : 0;
    entry.modrm_forced = modrm && (entry.checks & kRegisterForm) == 0 ? 0 : 0xc0;
    if (entry.immediate >= ImmediateCode::Constant1)
        entry.checks |= kOddImmediate;
    entry.memory_operands = entry.operands;
    if (entry.memory_access != Access::None)
        entry.memory_operands[entry.memory_operand] = {Operand{OperandKind::Memory,
                                                               entry.memory_access, kNoRegister,
                                                               std::uint8_t(entry.memory_size)},
                                                       std::uint8_t(unsigned(Lane::Zero) * 8)};
}

consteval ParsedRow parse_row(std::string_view constraints, unsigned opcode, Op op,
                              std::string_view operands, std::string_view traits,
                              std::string_view more_traits) {
    ParsedRow row;
    SizeRule rule = SizeRule::Normal;
    row.entry.op = op;
    while (true) {
        const auto name = next_word(constraints);
        if (name.empty())
            break;
        if (!row.constraints.parse(name))
            bad_row(name);
    }
    while (true) {
        const auto name = next_word(operands);
        if (name.empty())
            break;
        constrain_mod(name, row.constraints);
        parse_operand(name, row.entry, rule);
    }
    parse_traits(traits, row.entry, row.constraints, rule, opcode);
    parse_traits(more_traits, row.entry, row.constraints, rule, opcode);
    const auto& masks = row.constraints.masks;
    if (masks[std::size_t(Choice::Mod)] != 3 || masks[std::size_t(Choice::Reg)] != 0xff ||
        masks[std::size_t(Choice::Rm)] != 0xff)
        row.entry.checks |= kHasModrm;
    const bool unaligned = has_word(traits, "un") || (has_word(traits, "align10") && opcode < 0x28);
    derive_attributes(row.entry, unaligned);
    row.entry.operand_sizes = operand_sizes(rule);
    finish_entry(row.entry);
    return row;
}

} // namespace doppel::cpu::x86::decoder
