// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Assembler for the host's x86-64 instructions that translated code is made of: writes bytes
/// through the writable view of code memory and computes with addresses of the executable view.
/// Intel SDM (June 2025) Vol. 2 chapter 2 (encoding). Owner thread only.
/// When the buffer is full (less than 8 bytes are left) nothing more is written and full() says so;
/// the caller starts again with an empty one. What lies behind the last instruction may be
/// overwritten: bytes are stored eight at a time, as most of a translation's time is spent here.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace doppel::cpu::translator {

enum HostReg : std::uint8_t {
    kRax,
    kRcx,
    kRdx,
    kRbx,
    kRsp,
    kRbp,
    kRsi,
    kRdi,
    kR8,
    kR9,
    kR10,
    kR11,
    kR12,
    kR13,
    kR14,
    kR15,
    kNoReg = 0xff
};

/// Condition codes as in the opcodes of Jcc, SETcc, CMOVcc.
enum class Condition : std::uint8_t {
    Overflow = 0,
    NotOverflow = 1,
    Below = 2,
    AboveEqual = 3,
    Equal = 4,
    NotEqual = 5,
    BelowEqual = 6,
    Above = 7,
    Sign = 8,
    NotSign = 9
};

/// A host memory operand.
struct Mem {
    HostReg base = kNoReg;
    HostReg index = kNoReg;
    std::uint8_t scale = 1;
    std::int32_t displacement = 0;

    constexpr Mem operator+(std::int32_t bytes) const {
        return {base, index, scale, displacement + bytes};
    }
};

/// An instruction, or a piece of one, of up to 8 bytes.
struct Encoded {
    std::uint64_t value = 0;
    unsigned count = 0;

    constexpr void add(unsigned byte) {
        value |= std::uint64_t{byte & 0xff} << (8 * count);
        ++count;
    }
    constexpr void add32(std::int32_t number) {
        value |= std::uint64_t{static_cast<std::uint32_t>(number)} << (8 * count);
        count += 4;
    }
    constexpr void add_rex(bool wide, unsigned bits) {
        if (wide || bits != 0)
            add(0x40u | (wide ? 8u : 0u) | bits);
    }
    /// ModRM, SIB and displacement: up to 6 bytes, the last of the instruction. Above `count` the
    /// value is anything.
    [[gnu::always_inline]] constexpr void add_modrm(std::uint8_t reg_field, const Mem& mem) {
        const unsigned reg = (reg_field & 7u) << 3;
        const unsigned index = mem.index == kNoReg ? 4 : mem.index & 7u;
        if (mem.base == kNoReg) { // [index * scale + disp32] or [disp32]
            add(reg | 4);
            add(scale_bits(mem.scale) | index << 3 | 5);
            add32(mem.displacement);
            return;
        }
        const unsigned base = mem.base & 7u;
        const bool none = mem.displacement == 0 && base != kRbp;
        const bool small = fits_8(mem.displacement);
        const unsigned mod = none ? 0 : small ? 0x40 : 0x80;
        std::uint64_t code = mod | reg | base;
        unsigned length = 1;
        if (mem.index != kNoReg || base == kRsp) {
            code = mod | reg | 4 | (scale_bits(mem.scale) | index << 3 | base) << 8;
            length = 2;
        }
        code |= std::uint64_t{static_cast<std::uint32_t>(mem.displacement)} << (8 * length);
        value |= code << (8 * count);
        count += length + (none ? 0 : small ? 1 : 4);
    }

    static constexpr bool fits_8(std::int32_t value) { return value >= -128 && value <= 127; }
    static constexpr unsigned scale_bits(std::uint8_t scale) {
        return scale == 8 ? 0xc0 : scale == 4 ? 0x80 : scale == 2 ? 0x40 : 0;
    }
};

/// The eight operations of opcodes 00..3F and group 1.
enum class Alu : std::uint8_t { Add, Or, Adc, Sbb, And, Sub, Xor, Cmp };

class Assembler {
public:
    /// `write` .. `write + size` is the same memory as the executable view at `exec`.
    Assembler(std::uint8_t* write, std::uint8_t* exec, std::size_t size)
        : at_{write}, start_{write}, end_{write + size}, to_exec_{exec - write} {}

    std::uint8_t* here() const { return at_ + to_exec_; } // executable address
    std::size_t used() const { return static_cast<std::size_t>(at_ - start_); }
    bool full() const { return full_; }
    std::uint8_t* writable(std::uint8_t* exec) const { return exec - to_exec_; }
    /// Elsewhere in the same two views; there is as much room as there was at the beginning.
    void go_on_at(std::uint8_t* exec) {
        const std::ptrdiff_t room = end_ - start_;
        at_ = start_ = writable(exec);
        end_ = start_ + room;
    }

    /// The low `count` bytes of `bytes`, up to 8.
    void put(std::uint64_t bytes, std::size_t count) {
        if (end_ - at_ < static_cast<std::ptrdiff_t>(sizeof bytes)) {
            full_ = true;
            return;
        }
        std::memcpy(at_, &bytes, sizeof bytes);
        at_ += count;
    }
    void put(const Encoded& code) { put(code.value, code.count); }
    /// An instruction of so many bytes, up to 15; 16 can be read.
    void copy(const std::uint8_t* instruction, std::size_t count) {
        std::uint64_t words[2];
        std::memcpy(words, instruction, sizeof words);
        put(words[0], count < 8 ? count : 8);
        if (count > 8)
            put(words[1], count - 8);
    }
    /// Not an instruction; its size is a multiple of eight.
    template <typename T> void data(const T& object) {
        static_assert(sizeof object % 8 == 0);
        for (std::size_t i = 0; i < sizeof object; i += 8) {
            std::uint64_t word = 0;
            std::memcpy(&word, reinterpret_cast<const std::byte*>(&object) + i, sizeof word);
            put(word, sizeof word);
        }
    }
    void byte(std::uint8_t value) { put(value, 1); }
    void u16(std::uint16_t value) { put(value, 2); }
    void u32(std::uint32_t value) { put(value, 4); }
    void u64(std::uint64_t value) { put(value, 8); }
    void align(std::size_t bytes);       // with NOPs
    void align_link(std::size_t before); // so that the rel32 `before` bytes on is inside 8 bytes
    /// The same, but the padding comes before the last `instruction` bytes: a compare stays beside
    /// its branch, and the host makes one operation of both. They must not be relative to rip.
    void align_link_before(std::size_t instruction, std::size_t before);

    /// The last two instructions, of so many bytes, change places. Not for ones relative to rip.
    void swap_last(std::size_t first, std::size_t second);

    // --- pieces of an instruction ---
    /// ModRM, SIB and displacement of a memory operand; REX has been emitted.
    void modrm(std::uint8_t reg_field, const Mem& mem);
    static constexpr std::uint8_t rex_bits(std::uint8_t reg_field, const Mem& mem) {
        return static_cast<std::uint8_t>((reg_field & 8) >> 1 | (is_high(mem.index) ? 2 : 0) |
                                         (is_high(mem.base) ? 1 : 0));
    }

    // --- moves; 64 bits unless the name says otherwise ---
    [[gnu::always_inline]] void mov(HostReg to, HostReg from) { rr(true, 0x89, from, to); }
    [[gnu::always_inline]] void mov32(HostReg to, HostReg from) { rr(false, 0x89, from, to); }
    [[gnu::always_inline]] void load(HostReg to, const Mem& from) { rm(true, 0x8b, to, from); }
    [[gnu::always_inline]] void load32(HostReg to, const Mem& from) { rm(false, 0x8b, to, from); }
    void load16_zero_extended(HostReg to, const Mem& from) { rm0f(false, 0xb7, to, from); }
    void zero_extend16(HostReg to, HostReg from);
    [[gnu::always_inline]] void store(const Mem& to, HostReg from) { rm(true, 0x89, from, to); }
    [[gnu::always_inline]] void store32(const Mem& to, HostReg from) { rm(false, 0x89, from, to); }
    void xchg(const Mem& with, HostReg reg) { rm(true, 0x87, reg, with); } // locks the bus
    void store16(const Mem& to, HostReg from);
    /// A 64-bit store, sign-extended.
    void store_imm32(const Mem& to, std::int32_t value) {
        rm(true, 0xc7, kRax, to);
        u32(static_cast<std::uint32_t>(value));
    }
    [[gnu::always_inline]] void store32_imm(const Mem& to, std::uint32_t value) {
        const Encoded code = encode_rm(false, 0xc7, kRax, to);
        if (__builtin_constant_p(code.count) && code.count <= 4) { // in one store
            const std::uint64_t head = code.value & ((std::uint64_t{1} << 8 * code.count) - 1);
            put(head | std::uint64_t{value} << 8 * code.count, code.count + 4);
            return;
        }
        put(code);
        u32(value);
    }
    void store8_imm(const Mem& to, std::uint8_t value) {
        rm(false, 0xc6, kRax, to);
        byte(value);
    }
    void mov_imm(HostReg to, std::uint64_t value); // shortest of the three forms
    [[gnu::always_inline]] void lea(HostReg to, const Mem& address) { rm(true, 0x8d, to, address); }
    [[gnu::always_inline]] void lea32(HostReg to, const Mem& address) {
        rm(false, 0x8d, to, address);
    }

    // --- arithmetic ---
    [[gnu::always_inline]] void alu(Alu op, HostReg to, HostReg from) {
        rr(true, static_cast<std::uint8_t>(static_cast<unsigned>(op) * 8 + 1), from, to);
    }
    [[gnu::always_inline]] void alu(Alu op, HostReg to, const Mem& from) {
        rm(true, static_cast<std::uint8_t>(static_cast<unsigned>(op) * 8 + 3), to, from);
    }
    [[gnu::always_inline]] void alu32(Alu op, HostReg to, const Mem& from) {
        rm(false, static_cast<std::uint8_t>(static_cast<unsigned>(op) * 8 + 3), to, from);
    }
    [[gnu::always_inline]] void alu_mem_reg(Alu op, const Mem& to, HostReg from) {
        rm(true, static_cast<std::uint8_t>(static_cast<unsigned>(op) * 8 + 1), from, to);
    }
    void alu_imm(Alu op, HostReg to, std::int32_t value, bool wide = true);
    void alu_imm8_al(Alu op, std::uint8_t value); // op al, imm8
    void rorx(HostReg to, HostReg from, std::uint8_t count);
    void bextr(HostReg to, HostReg from, HostReg control);
    void imul(HostReg to, HostReg from, std::int32_t value) {
        rr(true, 0x69, to, from);
        u32(static_cast<std::uint32_t>(value));
    }
    void complement(HostReg reg) { rr(true, 0xf7, kRdx, reg); } // F7 /2
    void test_imm32(HostReg reg, std::uint32_t value) {         // of the low 32 bits
        rr(false, 0xf7, kRax, reg);
        u32(value);
    }
    void test_imm(HostReg reg, std::int32_t value) { // of all 64
        rr(true, 0xf7, kRax, reg);
        u32(static_cast<std::uint32_t>(value));
    }
    void test_mem32_imm32(const Mem& mem, std::uint32_t value) {
        rm(false, 0xf7, kRax, mem);
        u32(value);
    }
    void sar(HostReg reg, std::uint8_t count) { rr(true, 0xc1, kRdi, reg), byte(count); } // C1 /7
    void shr(HostReg reg, std::uint8_t count) { rr(true, 0xc1, kRbp, reg), byte(count); } // C1 /5
    void shl(HostReg reg, std::uint8_t count) { rr(true, 0xc1, kRsp, reg), byte(count); } // C1 /4
    /// op qword [mem], value sign-extended
    void alu_mem_imm32(Alu op, const Mem& to, std::int32_t value) {
        rm(true, 0x81, static_cast<HostReg>(op), to);
        u32(static_cast<std::uint32_t>(value));
    }
    /// op qword [mem], value
    void alu_mem_imm8(Alu op, const Mem& to, std::int8_t value) {
        rm(true, 0x83, static_cast<HostReg>(op), to);
        byte(static_cast<std::uint8_t>(value));
    }
    void cmp_mem32_imm8(const Mem& mem, std::uint8_t value) {
        rm(false, 0x83, kRdi, mem);
        byte(value);
    }
    void movsxd(HostReg to, HostReg from) { rr(true, 0x63, to, from); }
    void movsxd(HostReg to, const Mem& from) { rm(true, 0x63, to, from); }
    void lahf() { byte(0x9f); }
    void sahf() { byte(0x9e); }
    void stc() { byte(0xf9); }
    void seto_al() { put(0xc0900f, 3); }
    void xchg_al_high(HostReg high_of); // xchg <reg>l, <reg>h of rax, rcx, rdx, rbx

    // --- stack and control flow; targets are executable addresses ---
    void push(HostReg reg);
    void pop(HostReg reg);
    void pop(const Mem& to);
    void push(const Mem& from) { rm(false, 0xff, kRsi, from); } // FF /6
    void ret() { byte(0xc3); }
    void jump(const std::uint8_t* target);
    void jump(const Mem& target);
    void jump(HostReg target);
    void call(const std::uint8_t* target);
    std::uint8_t* call_later();
    void jump_if(Condition condition, const std::uint8_t* target);
    /// Forward jumps: returns the place to hand to bind() later.
    std::uint8_t* jump_if_later(Condition condition);
    std::uint8_t* jump_later();
    void bind(std::uint8_t* place); // rel32 at `place` leads here
    std::uint8_t* short_jump_later();
    std::uint8_t* short_jump_if_later(Condition condition);
    void bind_short(std::uint8_t* place);
    void jrcxz_over(std::uint8_t bytes) { byte(0xe3), byte(bytes); }

    /// What is known when this is compiled is encoded then: half of what is emitted.
    [[gnu::always_inline]] void rr(bool wide, std::uint8_t opcode, HostReg reg_field,
                                   HostReg rm_field) {
        const Encoded code = encode_rr(wide, opcode, reg_field, rm_field);
        if (__builtin_constant_p(code.value) && __builtin_constant_p(code.count))
            put(code);
        else
            any_rr(wide, opcode, reg_field, rm_field);
    }
    [[gnu::always_inline]] void rm(bool wide, std::uint8_t opcode, HostReg reg_field,
                                   const Mem& mem) {
        const Encoded code = encode_rm(wide, opcode, reg_field, mem);
        if (__builtin_constant_p(code.value) && __builtin_constant_p(code.count))
            put(code);
        else
            any_rm(wide, opcode, reg_field, mem);
    }
    void rm0f(bool wide, std::uint8_t opcode, HostReg reg_field, const Mem& mem);

private:
    [[gnu::always_inline]] static constexpr Encoded encode_rr(bool wide, std::uint8_t opcode,
                                                              HostReg reg_field, HostReg rm_field) {
        Encoded code;
        code.add_rex(wide, (reg_field & 8u) >> 1 | (rm_field & 8u) >> 3);
        code.add(opcode);
        code.add(0xc0u | (reg_field & 7u) << 3 | (rm_field & 7u));
        return code;
    }
    [[gnu::always_inline]] static constexpr Encoded encode_rm(bool wide, std::uint8_t opcode,
                                                              HostReg reg_field, const Mem& mem) {
        Encoded code;
        code.add_rex(wide, rex_bits(reg_field, mem));
        code.add(opcode);
        code.add_modrm(reg_field, mem);
        return code;
    }
    void any_rr(bool wide, std::uint8_t opcode, HostReg reg_field, HostReg rm_field);
    void any_rm(bool wide, std::uint8_t opcode, HostReg reg_field, const Mem& mem);
    std::size_t link_padding(std::size_t before) const;
    static constexpr bool is_high(HostReg reg) { return reg != kNoReg && (reg & 8) != 0; }
    void rel32(const std::uint8_t* target);
    void rex(bool wide, std::uint8_t bits);

    std::uint8_t* at_;
    std::uint8_t* start_;
    std::uint8_t* end_;
    std::ptrdiff_t to_exec_;
    bool full_ = false;
};

} // namespace doppel::cpu::translator
