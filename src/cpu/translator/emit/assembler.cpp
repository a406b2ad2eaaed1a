// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/emit/assembler.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace doppel::cpu::translator {

namespace {

/// One NOP of so many bytes; Intel SDM (June 2025) Vol. 2, NOP.
constexpr std::uint64_t kNops[8] = {0,        0x90,     0x9066,     0x1f0f,
                                    0x401f0f, 0x441f0f, 0x441f0f66, 0x801f0f};

} // namespace

void Assembler::align(std::size_t bytes) {
    for (std::size_t left = -reinterpret_cast<std::uintptr_t>(here()) & (bytes - 1); left != 0;) {
        const std::size_t one = std::min(left, std::size(kNops) - 1);
        put(kNops[one], one);
        left -= one;
    }
}

std::size_t Assembler::link_padding(std::size_t before) const {
    const std::size_t at = (reinterpret_cast<std::uintptr_t>(here()) + before) & 7;
    return at > 4 ? 8 - at : 0;
}

void Assembler::align_link(std::size_t before) {
    const std::size_t padding = link_padding(before);
    if (padding != 0)
        put(kNops[padding], padding);
}

void Assembler::align_link_before(std::size_t instruction, std::size_t before) {
    const std::size_t padding = link_padding(before);
    if (padding == 0 || full_ || static_cast<std::size_t>(end_ - at_) < padding)
        return align_link(before);
    std::uint8_t* const begin = at_ - instruction;
    std::memmove(begin + padding, begin, instruction);
    std::memcpy(begin, &kNops[padding], padding);
    at_ += padding;
}

void Assembler::swap_last(std::size_t first, std::size_t second) {
    if (!full_)
        std::rotate(at_ - first - second, at_ - second, at_);
}

void Assembler::rex(bool wide, std::uint8_t bits) {
    if (wide || bits != 0)
        byte(static_cast<std::uint8_t>(0x40 | (wide ? 8 : 0) | bits));
}

void Assembler::modrm(std::uint8_t reg_field, const Mem& mem) {
    Encoded bytes;
    bytes.add_modrm(reg_field, mem);
    put(bytes);
}

void Assembler::any_rr(bool wide, std::uint8_t opcode, HostReg reg_field, HostReg rm_field) {
    put(encode_rr(wide, opcode, reg_field, rm_field));
}

void Assembler::any_rm(bool wide, std::uint8_t opcode, HostReg reg_field, const Mem& mem) {
    put(encode_rm(wide, opcode, reg_field, mem));
}

void Assembler::rm0f(bool wide, std::uint8_t opcode, HostReg reg_field, const Mem& mem) {
    Encoded bytes;
    bytes.add_rex(wide, rex_bits(reg_field, mem));
    bytes.add(0x0f);
    bytes.add(opcode);
    put(bytes);
    modrm(reg_field, mem);
}

void Assembler::store16(const Mem& to, HostReg from) {
    byte(0x66);
    rm(false, 0x89, from, to);
}

void Assembler::mov_imm(HostReg to, std::uint64_t value) {
    if (value <= 0xffff'ffff) {
        rex(false, (to & 8) >> 3);
        byte(static_cast<std::uint8_t>(0xb8 | (to & 7)));
        u32(static_cast<std::uint32_t>(value));
    } else if (static_cast<std::uint64_t>(static_cast<std::int32_t>(value)) == value) {
        rr(true, 0xc7, kRax, to);
        u32(static_cast<std::uint32_t>(value));
    } else {
        rex(true, (to & 8) >> 3);
        byte(static_cast<std::uint8_t>(0xb8 | (to & 7)));
        u64(value);
    }
}

void Assembler::alu_imm(Alu op, HostReg to, std::int32_t value, bool wide) {
    rr(wide, Encoded::fits_8(value) ? 0x83 : 0x81, static_cast<HostReg>(op), to);
    if (Encoded::fits_8(value))
        byte(static_cast<std::uint8_t>(value));
    else
        u32(static_cast<std::uint32_t>(value));
}

void Assembler::alu_imm8_al(Alu op, std::uint8_t value) {
    byte(static_cast<std::uint8_t>(static_cast<unsigned>(op) * 8 + 4));
    byte(value);
}

void Assembler::rorx(HostReg to, HostReg from, std::uint8_t count) {
    Encoded bytes;
    bytes.add(0xc4);
    bytes.add((to & 8 ? 0u : 0x80u) | 0x40 | (from & 8 ? 0u : 0x20u) | 3);
    bytes.add(0xfb); // W, vvvv = 1111, L0, F2
    bytes.add(0xf0);
    bytes.add(0xc0u | (to & 7u) << 3 | (from & 7u));
    bytes.add(count);
    put(bytes);
}

void Assembler::bextr(HostReg to, HostReg from, HostReg control) {
    Encoded bytes;
    bytes.add(0xc4);
    bytes.add((to & 8 ? 0u : 0x80u) | 0x40 | (from & 8 ? 0u : 0x20u) | 2);
    bytes.add(0x80u | (~control & 15u) << 3); // W
    bytes.add(0xf7);
    bytes.add(0xc0u | (to & 7u) << 3 | (from & 7u));
    put(bytes);
}

void Assembler::xchg_al_high(HostReg high_of) {
    byte(0x86);
    byte(static_cast<std::uint8_t>(0xc0 | high_of << 3 | (high_of + 4)));
}

void Assembler::push(HostReg reg) {
    rex(false, (reg & 8) >> 3);
    byte(static_cast<std::uint8_t>(0x50 | (reg & 7)));
}

void Assembler::pop(HostReg reg) {
    rex(false, (reg & 8) >> 3);
    byte(static_cast<std::uint8_t>(0x58 | (reg & 7)));
}

void Assembler::pop(const Mem& to) { rm(false, 0x8f, kRax, to); }

void Assembler::rel32(const std::uint8_t* target) {
    u32(static_cast<std::uint32_t>(target - (here() + 4)));
}

void Assembler::jump(const std::uint8_t* target) {
    Encoded bytes;
    bytes.add(0xe9);
    bytes.add32(static_cast<std::int32_t>(target - (here() + 5)));
    put(bytes);
}

void Assembler::jump(const Mem& target) { rm(false, 0xff, kRsp, target); } // FF /4

void Assembler::jump(HostReg target) { rr(false, 0xff, kRsp, target); }

void Assembler::call(const std::uint8_t* target) {
    byte(0xe8);
    rel32(target);
}

std::uint8_t* Assembler::call_later() {
    call(here());
    return here() - 4;
}

void Assembler::zero_extend16(HostReg to, HostReg from) {
    rex(false, static_cast<std::uint8_t>((to & 8) >> 1 | (from & 8) >> 3));
    byte(0x0f);
    byte(0xb7);
    byte(static_cast<std::uint8_t>(0xc0 | (to & 7) << 3 | (from & 7)));
}

void Assembler::jump_if(Condition condition, const std::uint8_t* target) {
    Encoded bytes;
    bytes.add(0x0f);
    bytes.add(0x80u | static_cast<unsigned>(condition));
    bytes.add32(static_cast<std::int32_t>(target - (here() + 6)));
    put(bytes);
}

std::uint8_t* Assembler::jump_if_later(Condition condition) {
    jump_if(condition, here());
    return here() - 4;
}

std::uint8_t* Assembler::jump_later() {
    jump(here());
    return here() - 4;
}

void Assembler::bind(std::uint8_t* place) {
    if (full_)
        return;
    const auto distance = static_cast<std::uint32_t>(here() - (place + 4));
    std::memcpy(writable(place), &distance, sizeof distance);
}

std::uint8_t* Assembler::short_jump_later() {
    byte(0xeb);
    byte(0);
    return here() - 1;
}

std::uint8_t* Assembler::short_jump_if_later(Condition condition) {
    byte(static_cast<std::uint8_t>(0x70 | static_cast<unsigned>(condition)));
    byte(0);
    return here() - 1;
}

void Assembler::bind_short(std::uint8_t* place) {
    if (!full_)
        *writable(place) = static_cast<std::uint8_t>(here() - (place + 1));
}

} // namespace doppel::cpu::translator
