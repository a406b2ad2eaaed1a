// SPDX-License-Identifier: Apache-2.0
/// Shifts, rotates, bit tests, bit scans, BMI, CRC32.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/interpreter/host_alu.hpp"
#include "cpu/x86/interpreter/with_size.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

template <typename Host> DOPPEL_HOT bool shift(Execution& x) {
    std::uint64_t count;
    if (!read_operand(x, x.in.operands[1], count))
        return false;
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    const auto compute = [&](std::uint64_t old) {
        return with_size<1>(x.in.operands[0].size, [&]<typename T>() {
            return Host::run(static_cast<T>(old), static_cast<std::uint8_t>(count), flags);
        });
    };
    if (!update_operand(x, x.in.operands[0], compute))
        return false;
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

template <typename Host> DOPPEL_HOT bool double_shift(Execution& x) {
    std::uint64_t source, count;
    if (!read_operand(x, x.in.operands[1], source) || !read_operand(x, x.in.operands[2], count))
        return false;
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    const auto compute = [&](std::uint64_t old) {
        return with_size<2>(x.in.operands[0].size, [&]<typename T>() {
            return Host::run(static_cast<T>(old), static_cast<T>(source),
                             static_cast<std::uint8_t>(count), flags);
        });
    };
    if (!update_operand(x, x.in.operands[0], compute))
        return false;
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

/// A register as bit number of a memory operand reaches beyond it: the byte distance, signed.
DOPPEL_HOT std::uint64_t bit_string_distance(const Execution& x, std::uint64_t bit) {
    const Operand& index = x.in.operands[1];
    if (index.kind != OperandKind::Gpr || !is_memory(x.in.operands[0]))
        return 0;
    const unsigned size = index.size;
    const unsigned bits = size == 8 ? 6 : size == 4 ? 5 : 4;
    const auto words = static_cast<std::int64_t>(sign_extend(bit, size)) >> bits;
    return static_cast<std::uint64_t>(words) * size;
}

template <typename Host, bool kWrites> DOPPEL_HOT bool bit_test(Execution& x) {
    const Operand& target = x.in.operands[0];
    std::uint64_t bit;
    if (!read_operand(x, x.in.operands[1], bit))
        return false;
    // The operand seems to lie elsewhere: the displacement says so in a copy of the instruction.
    Instruction moved = x.in;
    moved.displacement += static_cast<std::int64_t>(bit_string_distance(x, bit));
    Execution there{x.cx, moved, x.bytes, x.vectors, x.next};
    const host::Flags before = host::flags_in(x.cx.state.rflags);
    host::Flags flags = before;
    const auto compute = [&](std::uint64_t old) {
        flags = before;
        return with_size<2>(target.size, [&]<typename T>() {
            return Host::run(static_cast<T>(old), static_cast<T>(bit & (target.size * 8u - 1)),
                             flags);
        });
    };
    if constexpr (kWrites) {
        if (!update_operand(there, target, compute))
            return false;
    } else {
        std::uint64_t value;
        if (!read_operand(there, target, value))
            return false;
        compute(value);
    }
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

/// operand 0 = f(operand 1); the destination's old value goes in, for those that may keep it.
template <typename Host, unsigned kMinimum> DOPPEL_HOT bool scan(Execution& x) {
    const Operand& target = x.in.operands[0];
    std::uint64_t source;
    if (!read_operand(x, x.in.operands[1], source))
        return false;
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    const std::uint64_t old = gpr(x, target.reg, 8);
    const std::uint64_t result = with_size<kMinimum>(target.size, [&]<typename T>() {
        return Host::run(static_cast<T>(old), static_cast<T>(source), flags);
    });
    write_register(x, target, result);
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

/// BSF and BSR of zero leave the destination alone, its upper half included.
template <typename Host> DOPPEL_HOT bool bit_scan(Execution& x) {
    const std::uint64_t old = gpr(x, x.in.operands[0].reg, 8);
    if (!scan<Host, 2>(x))
        return false;
    if ((x.cx.state.rflags & FLAG_ZF) != 0)
        set_gpr(x, x.in.operands[0].reg, 8, old);
    return true;
}

/// operand 0 = operand 1 (op) operand 2.
template <typename Host> DOPPEL_HOT bool ternary(Execution& x) {
    std::uint64_t first, second;
    if (!read_operand(x, x.in.operands[1], first) || !read_operand(x, x.in.operands[2], second))
        return false;
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    const std::uint64_t result = with_size<4>(x.in.operands[0].size, [&]<typename T>() {
        return Host::run(static_cast<T>(first), static_cast<T>(second), flags);
    });
    write_register(x, x.in.operands[0], result);
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

} // namespace

bool op_rol(Execution& x) { return shift<host::Rol>(x); }
bool op_ror(Execution& x) { return shift<host::Ror>(x); }
bool op_rcl(Execution& x) { return shift<host::Rcl>(x); }
bool op_rcr(Execution& x) { return shift<host::Rcr>(x); }
bool op_shl(Execution& x) { return shift<host::Shl>(x); }
bool op_shr(Execution& x) { return shift<host::Shr>(x); }
bool op_sar(Execution& x) { return shift<host::Sar>(x); }
bool op_shld(Execution& x) { return double_shift<host::Shld>(x); }
bool op_shrd(Execution& x) { return double_shift<host::Shrd>(x); }

bool op_bt(Execution& x) { return bit_test<host::Bt, false>(x); }
bool op_bts(Execution& x) { return bit_test<host::Bts, true>(x); }
bool op_btr(Execution& x) { return bit_test<host::Btr, true>(x); }
bool op_btc(Execution& x) { return bit_test<host::Btc, true>(x); }

bool op_bsf(Execution& x) { return bit_scan<host::Bsf>(x); }
bool op_bsr(Execution& x) { return bit_scan<host::Bsr>(x); }
bool op_tzcnt(Execution& x) {
    return x.cx.features.has(IsaFeature::Bmi1) ? scan<host::Tzcnt, 2>(x) : op_bsf(x);
}
bool op_lzcnt(Execution& x) {
    return x.cx.features.has(IsaFeature::Lzcnt) ? scan<host::Lzcnt, 2>(x) : op_bsr(x);
}
bool op_popcnt(Execution& x) { return scan<host::Popcnt, 2>(x); }
bool op_blsi(Execution& x) { return scan<host::Blsi, 4>(x); }
bool op_blsmsk(Execution& x) { return scan<host::Blsmsk, 4>(x); }
bool op_blsr(Execution& x) { return scan<host::Blsr, 4>(x); }

bool op_andn(Execution& x) { return ternary<host::Andn>(x); }
bool op_bextr(Execution& x) { return ternary<host::Bextr>(x); }
bool op_bzhi(Execution& x) { return ternary<host::Bzhi>(x); }
bool op_pdep(Execution& x) { return ternary<host::Pdep>(x); }
bool op_pext(Execution& x) { return ternary<host::Pext>(x); }
bool op_shlx(Execution& x) { return ternary<host::Shlx>(x); }
bool op_shrx(Execution& x) { return ternary<host::Shrx>(x); }
bool op_sarx(Execution& x) { return ternary<host::Sarx>(x); }

bool op_rorx(Execution& x) {
    const unsigned size = x.in.operands[0].size;
    std::uint64_t value;
    if (!read_operand(x, x.in.operands[1], value))
        return false;
    const unsigned bits = size * 8;
    const unsigned count = static_cast<unsigned>(x.in.immediate) & (bits - 1);
    if (count != 0)
        value = value >> count | value << (bits - count);
    write_register(x, x.in.operands[0], value);
    return true;
}

bool op_mulx(Execution& x) { // 0:1 = rdx * 2; when both are one register, it gets the high half
    const unsigned size = x.in.operands[0].size;
    std::uint64_t source;
    if (!read_operand(x, x.in.operands[2], source))
        return false;
    const auto product = static_cast<Uint128>(source) * gpr(x, Rdx, size);
    write_register(x, x.in.operands[1], static_cast<std::uint64_t>(product));
    write_register(x, x.in.operands[0], static_cast<std::uint64_t>(product >> (size * 8)));
    return true;
}

bool op_crc32(Execution& x) {
    const Operand& from = x.in.operands[1];
    std::uint64_t source;
    if (!read_operand(x, from, source))
        return false;
    std::uint64_t crc = gpr(x, x.in.operands[0].reg, 4);
    if (from.size == 8)
        asm("crc32q %1, %0" : "+r"(crc) : "r"(source));
    else if (from.size == 4)
        asm("crc32l %k1, %k0" : "+r"(crc) : "r"(source));
    else if (from.size == 2)
        asm("crc32w %w1, %k0" : "+r"(crc) : "r"(source));
    else
        asm("crc32b %b1, %k0" : "+r"(crc) : "q"(source));
    set_gpr(x, x.in.operands[0].reg, 8, crc);
    return true;
}

bool op_bswap(Execution& x) {
    const Operand& operand = x.in.operands[0];
    const std::uint64_t value = read_register(x, operand);
    if (operand.size == 2) // undefined; CPUs give 0
        write_register(x, operand, 0);
    else
        write_register(x, operand, __builtin_bswap64(value) >> (64 - operand.size * 8));
    return true;
}

} // namespace doppel::cpu::x86::interpreter
