// SPDX-License-Identifier: Apache-2.0
/// Decimal adjustments, SALC and ARPL: 16- and 32-bit code only. What is undefined becomes 0.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/interpreter/host_alu.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

/// SF, ZF and PF of a byte; the others cleared, then set as given.
DOPPEL_HOT void set_byte_flags(Execution& x, std::uint64_t value, bool carry, bool adjust) {
    std::uint64_t flags = carry ? FLAG_CF : 0;
    if (adjust)
        flags |= FLAG_AF;
    const unsigned byte = value & 0xff;
    if (byte == 0)
        flags |= FLAG_ZF;
    if ((byte & 0x80) != 0)
        flags |= FLAG_SF;
    const unsigned nibble = (byte ^ byte >> 4) & 0xf;
    if ((0x9669 >> nibble & 1) != 0)
        flags |= FLAG_PF;
    x.cx.state.rflags = (x.cx.state.rflags & ~kArithmeticFlags) | flags;
}

DOPPEL_HOT bool decimal_adjust(Execution& x, bool subtract) {
    const auto old = static_cast<unsigned>(gpr(x, Rax, 1));
    const bool adjust = (old & 0xf) > 9 || (x.cx.state.rflags & FLAG_AF) != 0;
    const bool high = old > 0x99 || (x.cx.state.rflags & FLAG_CF) != 0;
    const unsigned distance = (adjust ? 6u : 0u) + (high ? 0x60u : 0u);
    const unsigned value = subtract ? old - distance : old + distance;
    const bool carry = high || (subtract && adjust && old < 6);
    set_gpr(x, Rax, 1, value);
    set_byte_flags(x, value, carry, adjust);
    return true;
}

DOPPEL_HOT bool ascii_adjust(Execution& x, bool subtract) {
    const std::uint64_t ax = gpr(x, Rax, 2);
    const bool adjust = (ax & 0xf) > 9 || (x.cx.state.rflags & FLAG_AF) != 0;
    const std::uint64_t value = !adjust ? ax : subtract ? ax - 0x106 : ax + 0x106;
    set_gpr(x, Rax, 2, value & 0xff0f);
    set_byte_flags(x, value & 0x0f, adjust, adjust);
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
    set_byte_flags(x, al % base, false, false);
    return true;
}
bool op_aad(Execution& x) {
    const std::uint64_t ax = gpr(x, Rax, 2);
    const std::uint64_t value = ((ax >> 8) * (x.in.immediate & 0xff) + ax) & 0xff;
    set_gpr(x, Rax, 2, value);
    set_byte_flags(x, value, false, false);
    return true;
}
bool op_salc(Execution& x) {
    set_gpr(x, Rax, 1, (x.cx.state.rflags & FLAG_CF) != 0 ? 0xff : 0);
    return true;
}

bool op_arpl(Execution& x) {
    std::uint64_t selector;
    const std::uint64_t rpl = read_register(x, x.in.operands[1]) & 3;
    if (!read_operand(x, x.in.operands[0], selector, Intent::ReadForWrite))
        return false;
    const bool raised = (selector & 3) < rpl;
    if (raised && !write_operand(x, x.in.operands[0], (selector & ~std::uint64_t{3}) | rpl))
        return false;
    set_flag(x.cx.state, FLAG_ZF, raised);
    return true;
}

} // namespace doppel::cpu::x86::interpreter
