// SPDX-License-Identifier: Apache-2.0
#include "tests/oracle/generator.hpp"

#include <cstring>

#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/decoder/decoder.hpp"
#include "tests/oracle/operand.hpp"
#include "tests/oracle/values.hpp"

namespace doppel::oracle {

using namespace cpu::x86;

namespace {

/// System instructions that are the same in every process: those that always fault there.
bool is_testable_system(const Instruction& in) {
    if (in.has(attribute::kPrivileged))
        return in.op != Op::Clac && in.op != Op::Stac && in.op != Op::Monitor &&
               in.op != Op::Mwait && in.feature != IsaFeature::Xsaves;
    return in.op == Op::Cli || in.op == Op::Sti || in.op == Op::Rdfsbase || in.op == Op::Rdgsbase;
}

bool is_testable_branch(const Instruction& in, Mode mode) {
    switch (in.op) {
    case Op::Int3:
    case Op::Into: return true;
    case Op::Int: return in.immediate != 0x80 && in.immediate != 1;
    case Op::Jmp:
    case Op::Call:
    case Op::Ret:
    case Op::Jcc:
    case Op::Loop:
    case Op::Jcxz: return mode != Mode::Bits64 || (in.prefixes & prefix::kOperandSize) == 0;
    case Op::Loope:
    case Op::Loopne: // AMD's CPUs let F2 and F3 choose between the two
        return (in.prefixes & (prefix::kRep | prefix::kRepne | prefix::kOperandSize)) == 0;
    default: return false;
    }
}

bool is_testable_rest(const Instruction& in) {
    switch (in.op) {
    case Op::MovToSegment: // the host's descriptors are not ours
    case Op::PopSegment:
    case Op::LoadFarPointer:
    case Op::Fxsave: // pointers and reserved bytes
    case Op::Fxrstor: return false;
    case Op::MaskMov: return in.memory_segment == Ds && in.address_size > 2;
    case Op::Nop: // 3DNow's PREFETCH with a register: #UD on AMD. F3 REX.B 90: XCHG on AMD
        return in.opcode != 0x0d;
    case Op::Xchg: return !(in.opcode == 0x90 && in.rep());
    case Op::Movsx: // MOVSXD to 16 bits reads 32 bits on AMD, 16 on Intel
        return !(in.map == OpcodeMap::Primary && in.operand_size == 2);
    default: return true;
    }
}

/// Where the memory operand shall be: mostly harmless, now and then at an edge.
std::uint64_t pick_target(Random& random, unsigned size) {
    constexpr std::uint64_t kMiddle = area::kData + area::kPage;
    switch (random.below(24)) {
    case 0: return kMiddle - 1 - random.below(size != 0 ? size : 1);            // two pages
    case 1: return area::kData + 2 * area::kPage - 1 - random.below(size + 1u); // into nothing
    case 2: return area::kReadOnly + random.below(area::kPage - 64);
    case 3: return area::kData - 1 - random.below(size + 1u); // from nothing
    case 4: // not for operands that CPUs access in pieces: each in its own order
        return size <= 32 ? interesting_integer(random) : area::kData;
    case 5:
    case 6:
    case 7:
    case 8: return area::kData + random.below(2 * area::kPage - 128); // any alignment
    default: return area::kData + random.below(2 * area::kPage / 64 - 2) * 64;
    }
}

class Builder {
public:
    Builder(Case& made, const Instruction& in, Random& random)
        : case_{made}, in_{in}, random_{random} {}

    void build() {
        for (auto& gpr : case_.gpr)
            gpr = interesting_integer(random_);
        case_.gpr[Rsp] = stack() + 0x800 + random_.below(16) * 8;
        case_.rflags = 0x202 | (random_.next() & (kArithmeticFlags | FLAG_DF));
        if (random_.one_in(64))
            case_.rflags |= FLAG_AC;
        case_.vectors = interesting_vectors(random_);
        case_.memory = static_cast<std::uint32_t>(random_.below(32));
        aim_memory();
        aim_implicit();
        aim_branch();
        if (case_.mode != Mode::Bits64)
            for (auto& gpr : case_.gpr)
                gpr &= 0xffff'ffff; // the upper halves do not survive a change of mode
    }

private:
    void set_displacement(std::uint64_t value) {
        std::memcpy(&case_.code[in_.displacement_offset()], &value, in_.displacement_size);
    }
    std::uint64_t base_of(unsigned segment) const { return segment_base(case_.mode, segment); }
    /// What offsets into the stack and code pages start with.
    std::uint64_t stack() const { return area::kStack - base_of(Ss); }
    std::uint64_t code() const { return area::kCode - base_of(Cs); }
    /// Registers, or the displacement where there are none, so that the operand is at the target.
    void aim_memory() {
        if (!in_.has_memory() || in_.has(attribute::kVsib)) {
            if (in_.has(attribute::kVsib))
                aim_gather();
            return;
        }
        const unsigned size = in_.memory_size == kVariableSize ? 64 : in_.memory_size;
        std::uint64_t target = pick_target(random_, size);
        if (case_.mode == Mode::Bits16 && in_.memory_segment == Ss)
            target = area::kStack + random_.below(area::kPage + 4) - 2;
        target -= base_of(in_.memory_segment);
        target -= static_cast<std::uint64_t>(in_.displacement);
        if (in_.memory_index != kNoRegister && in_.memory_index != in_.memory_base) {
            std::uint64_t& index = case_.gpr[in_.memory_index];
            if (in_.memory_index != Rsp)
                index = random_.below(64) - 32;
            target -= index * in_.memory_scale;
        }
        if (in_.memory_base <= R15 && in_.memory_base != Rsp)
            case_.gpr[in_.memory_base] = target;
        else if (in_.displacement_size >= 2)
            aim_displacement(target + static_cast<std::uint64_t>(in_.displacement));
    }
    void aim_displacement(std::uint64_t target) {
        if (in_.memory_base == kRip)
            target -= area::kCode + case_.code_offset + in_.length;
        set_displacement(target);
    }
    void aim_gather() {
        if (in_.memory_base <= R15)
            case_.gpr[in_.memory_base] =
                area::kData + 0x800 - static_cast<std::uint64_t>(in_.displacement);
        else
            set_displacement(area::kData + 0x800);
        auto& index = case_.vectors.ymm[in_.memory_index];
        const unsigned bytes = (in_.opcode & 1) != 0 ? 8 : 4;
        for (unsigned at = 0; at < 32; at += bytes) {
            const auto value = static_cast<std::int64_t>(random_.below(0x180)) - 0xc0;
            std::memcpy(index.data() + at, &value, bytes);
        }
        if (random_.one_in(8))
            index[random_.below(32)] = random_.byte();
    }
    void aim_implicit() {
        const auto data = [&] { return pick_target(random_, in_.operand_size) - base_of(Ds); };
        if (in_.type == InstructionClass::String || in_.type == InstructionClass::Io) {
            case_.gpr[Rsi] = data();
            case_.gpr[Rdi] = data();
            if (!random_.one_in(8))
                case_.gpr[Rcx] = random_.below(20);
            else if ((case_.gpr[Rcx] & 0xffff) > 0x1000)
                case_.gpr[Rcx] &= 0xfff;
        }
        switch (in_.op) {
        case Op::MaskMov: // which byte faults, and what has changed by then, is every CPU's own
            case_.gpr[Rdi] = area::kData - base_of(Ds) + random_.below(area::kPage);
            case_.rflags &= ~FLAG_AC;
            break;
        case Op::Xlat: case_.gpr[Rbx] = data(); break;
        case Op::Leave:
        case Op::Enter: case_.gpr[Rbp] = stack() + 0x400 + random_.below(64) * 8; break;
        case Op::Popf:
            poke(case_.gpr[Rsp] + base_of(Ss), random_.next() & kComparedFlags);
            break; // never TF
        case Op::Ret:
            poke(case_.gpr[Rsp] + base_of(Ss), code() + 0x900 + random_.below(256));
            break;
        case Op::Loop:
        case Op::Loope:
        case Op::Loopne: case_.gpr[Rcx] = interesting_integer(random_); break;
        default: break;
        }
        if (in_.branch == BranchKind::IndirectCall || in_.branch == BranchKind::IndirectJump)
            aim_indirect();
    }
    void poke(std::uint64_t at, std::uint64_t value) {
        case_.poke_at[0] = at;
        case_.poke[0] = value;
    }
    void aim_indirect() {
        const std::uint64_t target = code() + 0x900 + random_.below(256);
        if (in_.operands[0].kind == OperandKind::Gpr) {
            case_.gpr[in_.operands[0].reg] = target;
            return;
        }
        const std::uint64_t offset = area::kData + 64 * random_.below(100);
        if (in_.memory_base <= R15 && in_.memory_base != Rsp && in_.memory_index == kNoRegister &&
            in_.memory_segment == Ds) {
            case_.gpr[in_.memory_base] =
                offset - base_of(in_.memory_segment) - static_cast<std::uint64_t>(in_.displacement);
            poke(offset, target);
        }
    }
    void aim_branch() {
        if (in_.operands[0].kind != OperandKind::Relative)
            return;
        const std::uint64_t distance = 0x20 + random_.below(0x40);
        std::memcpy(&case_.code[in_.immediate_offset()], &distance, in_.immediate_size);
    }

    Case& case_;
    const Instruction& in_;
    Random& random_;
};

} // namespace

CodeSize code_size(Mode mode) {
    switch (mode) {
    case Mode::Bits16: return CodeSize::Bits16;
    case Mode::Bits32: return CodeSize::Bits32;
    default: return CodeSize::Bits64;
    }
}

bool is_testable(const Instruction& in, Mode mode) {
    switch (in.type) {
    case InstructionClass::System: return is_testable_system(in);
    case InstructionClass::Branch: return is_testable_branch(in, mode);
    default: return is_testable_rest(in);
    }
}

namespace {
/// In the first half of the first page (branches go to the second half); now and then across the
/// end of the first page or into the unmapped one behind the second.
std::uint16_t place_code(Random& random) {
    switch (random.below(64)) {
    case 0: return static_cast<std::uint16_t>(area::kPage - 1 - random.below(12));
    case 1: return static_cast<std::uint16_t>(2 * area::kPage - 1 - random.below(12));
    default: return static_cast<std::uint16_t>(0x100 + random.below(0x700));
    }
}
} // namespace

std::optional<Case> make_case(std::span<const std::uint8_t> code, Mode mode, Random& random) {
    Case made;
    made.mode = mode;
    made.code_offset = place_code(random);
    Instruction in;
    std::memcpy(made.code.data(), code.data(), std::min<std::size_t>(code.size(), 15));
    const auto decoded = [&] {
        return decode({made.code.data(), 15}, code_size(mode), in) == DecodeStatus::Ok &&
               is_testable(in, mode);
    };
    if (!decoded())
        return std::nullopt;
    Builder{made, in, random}.build();
    if (!decoded() || takes_bus_lock(made, in)) // with its new displacement
        return std::nullopt;
    made.code_length = in.length;
    return made;
}

std::optional<Case> random_case(Mode mode, Random& random) {
    constexpr std::uint8_t kPrefixes[] = {0x66, 0xf2, 0xf3, 0x67, 0x2e, 0x64, 0x65, 0xf0, 0x36};
    std::array<std::uint8_t, 24> bytes;
    for (auto& byte : bytes)
        byte = random.byte();
    std::size_t at = 0;
    while (random.one_in(3) && at < 3)
        bytes[at++] = kPrefixes[random.below(std::size(kPrefixes))];
    switch (random.below(6)) {
    case 0: break; // whatever comes
    case 1:
        if (mode == Mode::Bits64)
            bytes[at++] = static_cast<std::uint8_t>(0x40 | random.below(16));
        break;
    case 2:
        if (mode == Mode::Bits64 && random.one_in(2))
            bytes[at++] = static_cast<std::uint8_t>(0x40 | random.below(16));
        bytes[at++] = 0x0f;
        break;
    case 3:
        bytes[at++] = 0x0f;
        bytes[at++] = random.one_in(2) ? 0x38 : 0x3a;
        break;
    case 4:
        bytes[at++] = 0xc4;
        bytes[at] = static_cast<std::uint8_t>((bytes[at] & 0xe0) | (1 + random.below(3)));
        break;
    default: bytes[at++] = 0xc5; break;
    }
    return make_case(bytes, mode, random);
}

// --- all encodings ---

namespace {

constexpr std::uint8_t kForms[][2] = {
    // ModRM without reg, and the byte behind it
    {0xc0, 0}, {0xc9, 0}, {0x03, 0}, {0x46, 0x10}, {0x84, 0x5e}, {0x05, 0},
};

/// A number's digits, from the innermost choice outwards.
struct Choices {
    explicit Choices(std::uint64_t index) : rest{index} {}
    std::uint64_t rest;
    std::uint64_t take(std::uint64_t ways) {
        const std::uint64_t digit = rest % ways;
        rest /= ways;
        return digit;
    }
    std::uint64_t form = take(std::size(kForms));
    std::uint64_t reg = take(8);
    std::uint64_t wide = take(2);
    std::uint64_t length = take(2); // VEX.L
    std::uint64_t prefix = take(4);
    std::uint64_t map = take(7); // 4 legacy, 3 VEX
    std::uint64_t opcode = take(256);
};

class Bytes {
public:
    explicit Bytes(std::array<std::uint8_t, 24>& to) : to_{to} {}
    void put(std::uint64_t byte) { to_[at_++] = static_cast<std::uint8_t>(byte); }

private:
    std::array<std::uint8_t, 24>& to_;
    std::size_t at_ = 0;
};

void put_legacy(Bytes& to, const Choices& choices) {
    constexpr std::uint8_t kPrefixes[] = {0, 0x66, 0xf3, 0xf2};
    if (choices.prefix != 0)
        to.put(kPrefixes[choices.prefix]);
    if (choices.wide != 0)
        to.put(0x48 | (choices.reg & 5)); // sometimes R and B, too
    if (choices.map != 0)
        to.put(0x0f);
    if (choices.map >= 2)
        to.put(choices.map == 2 ? 0x38 : 0x3a);
}

void put_vex(Bytes& to, const Choices& choices, std::uint64_t vvvv) {
    to.put(0xc4);
    to.put(0xe0 | (choices.map - 3));
    to.put(choices.wide << 7 | (~vvvv & 7) << 3 | 0x40 | choices.length << 2 | choices.prefix);
}

} // namespace

std::span<const std::uint8_t> Encodings::next() {
    while (advance()) {
        const std::uint64_t index = index_++;
        const Choices choices{index};
        const bool legacy = choices.map < 4;
        // No second copies: L is VEX's, and W there is none in legacy 16- and 32-bit code.
        if (legacy && (choices.length != 0 || (choices.wide != 0 && mode_ != Mode::Bits64)))
            continue;
        bytes_ = {};
        Bytes to{bytes_};
        if (legacy)
            put_legacy(to, choices);
        else
            put_vex(to, choices, index * 7);
        to.put(choices.opcode);
        to.put(kForms[choices.form][0] | choices.reg << 3);
        to.put(kForms[choices.form][1]);
        for (unsigned i = 0; i < 8; ++i)
            to.put(0x10 + i);
        return bytes_;
    }
    return {};
}

bool Encodings::advance() { return index_ < std::uint64_t{6} * 8 * 2 * 2 * 4 * 7 * 256; }

} // namespace doppel::oracle
