// SPDX-License-Identifier: Apache-2.0
/// Decimal adjustments, SALC and ARPL: 16- and 32-bit code only. What is
/// undefined comes out as on AMD's Zen 5, which is what one would expect: the flags of the sums.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/interpreter/host_alu.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

/// SF, ZF and PF of a byte; the others cleared.
DOPPEL_HOT void set_byte_flags(Execution& x, std::uint64_t value) {
    host::Flags flags = 0;
    host::Or::run(static_cast<std::uint8_t>(value), std::uint8_t{0}, flags);
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
}

/// al or ax +- distance with all its flags, then CF and AF as the instruction has them.
template <typename T>
DOPPEL_HOT T adjusted(Execution& x, unsigned distance, bool subtract, bool carry, bool adjust) {
    const auto old = static_cast<T>(gpr(x, Rax, sizeof(T)));
    const auto by = static_cast<T>(distance);
    host::Flags flags = 0;
    const T value = subtract ? host::Sub::run(old, by, flags) : host::Add::run(old, by, flags);
    CpuState& state = x.cx.state;
    state.rflags = host::flags_out(state.rflags, flags);
    set_flag(state, FLAG_CF, carry);
    set_flag(state, FLAG_AF, adjust);
    return value;
}

DOPPEL_HOT bool low_nibble_off(const Execution& x) {
    return (gpr(x, Rax, 1) & 0xf) > 9 || (x.cx.state.rflags & FLAG_AF) != 0;
}

DOPPEL_HOT bool decimal_adjust(Execution& x, bool subtract) {
    const auto old = static_cast<unsigned>(gpr(x, Rax, 1));
    const bool adjust = low_nibble_off(x);
    const bool high = old > 0x99 || (x.cx.state.rflags & FLAG_CF) != 0;
    const bool carry = high || (subtract && adjust && old < 6);
    const unsigned distance = (adjust ? 6u : 0u) + (high ? 0x60u : 0u);
    set_gpr(x, Rax, 1, adjusted<std::uint8_t>(x, distance, subtract, carry, adjust));
    return true;
}

DOPPEL_HOT bool ascii_adjust(Execution& x, bool subtract) {
    const bool adjust = low_nibble_off(x);
    const unsigned distance = adjust ? 0x106 : 0;
    set_gpr(x, Rax, 2, adjusted<std::uint16_t>(x, distance, subtract, adjust, adjust) & 0xff0fu);
    return true;
}

} // namespace

bool op_daa(Execution& x) { return decimal_adjust(x, false); }
bool op_das(Execution& x) { return decimal_adjust(x, true); }
bool op_aaa(Execution& x) { return ascii_adjust(x, false); }
bool op_aas(Execution& x) { return ascii_adjust(x, true); }

bool op_aam(Execution& x) {
    const std::uint64_t base = x.in.immediate & 0xff;
    if (base == 0)
        return x.cx.raise(Vector::DE);
    const std::uint64_t al = gpr(x, Rax, 1);
    set_gpr(x, Rax, 2, (al / base) << 8 | al % base);
    set_byte_flags(x, al % base);
    return true;
}
bool op_aad(Execution& x) {
    const auto product = static_cast<unsigned>((gpr(x, Rax, 2) >> 8) * (x.in.immediate & 0xff));
    host::Flags flags = 0;
    const std::uint8_t sum = host::Add::run(static_cast<std::uint8_t>(gpr(x, Rax, 1)),
                                            static_cast<std::uint8_t>(product), flags);
    set_gpr(x, Rax, 2, sum);
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}
bool op_salc(Execution& x) {
    set_gpr(x, Rax, 1, (x.cx.state.rflags & FLAG_CF) != 0 ? 0xff : 0);
    return true;
}

bool op_arpl(Execution& x) {
    std::uint64_t selector;
    const std::uint64_t rpl = read_register(x, x.in.operands[1]) & 3;
    if (!read_operand(x, x.in.operands[0], selector))
        return false;
    const bool raised = (selector & 3) < rpl;
    if (raised && !write_operand(x, x.in.operands[0], (selector & ~std::uint64_t{3}) | rpl))
        return false;
    set_flag(x.cx.state, FLAG_ZF, raised);
    return true;
}

} // namespace doppel::cpu::x86::interpreter
