// SPDX-License-Identifier: Apache-2.0
/// Integer arithmetic: add to xor, multiply, divide, and the flag instructions.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/interpreter/host_alu.hpp"
#include "cpu/x86/interpreter/with_size.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

/// operand 0 = operand 0 (op) operand 1.
template <typename Host, unsigned kMinimum = 1> DOPPEL_HOT bool binary(Execution& x) {
    std::uint64_t source;
    if (!read_operand(x, x.in.operands[1], source))
        return false;
    host::Flags flags = 0;
    const host::Flags before = host::flags_in(x.cx.state.rflags);
    const auto compute = [&](std::uint64_t old) {
        flags = before;
        return with_size<kMinimum>(x.in.operands[0].size, [&]<typename T>() {
            return Host::run(static_cast<T>(old), static_cast<T>(source), flags);
        });
    };
    if (!update_operand(x, x.in.operands[0], compute))
        return false;
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

/// Only the flags of operand 0 (op) operand 1.
template <typename Host> DOPPEL_HOT bool compare(Execution& x) {
    std::uint64_t first, second;
    if (!read_operand(x, x.in.operands[0], first) || !read_operand(x, x.in.operands[1], second))
        return false;
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    with_size<1>(x.in.operands[0].size, [&]<typename T>() {
        return Host::run(static_cast<T>(first), static_cast<T>(second), flags);
    });
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

template <typename Host> DOPPEL_HOT bool unary(Execution& x) {
    host::Flags flags = 0;
    const host::Flags before = host::flags_in(x.cx.state.rflags);
    const auto compute = [&](std::uint64_t old) {
        flags = before;
        return with_size<1>(x.in.operands[0].size,
                            [&]<typename T>() { return Host::run(static_cast<T>(old), flags); });
    };
    if (!update_operand(x, x.in.operands[0], compute))
        return false;
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

/// rdx:rax (ax for bytes) by operand 0.
template <typename Host> DOPPEL_HOT void wide(Execution& x, std::uint64_t source) {
    CpuState& state = x.cx.state;
    const unsigned size = x.in.operands[0].size;
    std::uint64_t low = gpr(x, Rax, 8), high = gpr(x, Rdx, 8);
    host::Flags flags = host::flags_in(state.rflags);
    with_size<1>(size, [&]<typename T>() {
        Host::run(low, high, static_cast<T>(source), flags);
        return T{0};
    });
    set_gpr(x, Rax, size == 1 ? 2 : size, low);
    if (size != 1)
        set_gpr(x, Rdx, size, high);
    state.rflags = host::flags_out(state.rflags, flags);
}

/// The dividend in rdx:rax, or ax for bytes, zero-extended.
DOPPEL_HOT Uint128 dividend(const Execution& x, unsigned size) {
    if (size == 1)
        return gpr(x, Rax, 2);
    return Uint128{gpr(x, Rdx, size)} << (size * 8) | gpr(x, Rax, size);
}

} // namespace

bool op_add(Execution& x) { return binary<host::Add>(x); }
bool op_or(Execution& x) { return binary<host::Or>(x); }
bool op_adc(Execution& x) { return binary<host::Adc>(x); }
bool op_sbb(Execution& x) { return binary<host::Sbb>(x); }
bool op_and(Execution& x) { return binary<host::And>(x); }
bool op_sub(Execution& x) { return binary<host::Sub>(x); }
bool op_xor(Execution& x) { return binary<host::Xor>(x); }
bool op_cmp(Execution& x) { return compare<host::Sub>(x); }
bool op_test(Execution& x) { return compare<host::And>(x); }
bool op_inc(Execution& x) { return unary<host::Inc>(x); }
bool op_dec(Execution& x) { return unary<host::Dec>(x); }
bool op_neg(Execution& x) { return unary<host::Neg>(x); }
bool op_not(Execution& x) {
    return update_operand(x, x.in.operands[0], [](std::uint64_t old) { return ~old; });
}
bool op_adcx(Execution& x) { return binary<host::Adcx, 4>(x); }
bool op_adox(Execution& x) { return binary<host::Adox, 4>(x); }

bool op_imul(Execution& x) { // 0 *= 1, or 0 = 1 * 2
    const bool three = x.in.operands[2].kind != OperandKind::None;
    std::uint64_t first, second;
    if (!read_operand(x, x.in.operands[three ? 1 : 0], first) ||
        !read_operand(x, x.in.operands[three ? 2 : 1], second))
        return false;
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    const std::uint64_t product = with_size<2>(x.in.operands[0].size, [&]<typename T>() {
        return host::Imul::run(static_cast<T>(first), static_cast<T>(second), flags);
    });
    write_register(x, x.in.operands[0], product);
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

bool op_mul(Execution& x) {
    std::uint64_t source;
    if (!read_operand(x, x.in.operands[0], source))
        return false;
    wide<host::Mul>(x, source);
    return true;
}
bool op_imul_wide(Execution& x) {
    std::uint64_t source;
    if (!read_operand(x, x.in.operands[0], source))
        return false;
    wide<host::ImulWide>(x, source);
    return true;
}

bool op_div(Execution& x) {
    const unsigned size = x.in.operands[0].size;
    std::uint64_t divisor;
    if (!read_operand(x, x.in.operands[0], divisor))
        return false;
    if ((dividend(x, size) >> (size * 8)) >= divisor) // also for divisor 0
        return x.cx.raise(Vector::DE);
    wide<host::Div>(x, divisor);
    return true;
}

bool op_idiv(Execution& x) {
    const unsigned size = x.in.operands[0].size;
    std::uint64_t divisor;
    if (!read_operand(x, x.in.operands[0], divisor))
        return false;
    const Uint128 limit = Uint128{1} << (size * 8 - 1); // the quotient is in [-limit, limit)
    const unsigned shift = 128 - size * 16;
    const auto number = static_cast<Int128>(dividend(x, size) << shift) >> shift;
    const auto by = static_cast<std::int64_t>(sign_extend(divisor, size));
    const Uint128 magnitude =
        number < 0 ? -static_cast<Uint128>(number) : static_cast<Uint128>(number);
    const Uint128 by_magnitude = by < 0 ? -static_cast<Uint128>(static_cast<Int128>(by))
                                        : static_cast<Uint128>(static_cast<Int128>(by));
    // The largest quotient magnitude is limit - 1, or limit when the signs differ.
    const Uint128 allowed = (number < 0) != (by < 0) ? limit : limit - 1;
    // magnitude / by > allowed, without 128-bit division or overflow
    const bool too_large = by == 0 || magnitude >= (allowed + 1) * by_magnitude;
    if (too_large)
        return x.cx.raise(Vector::DE);
    wide<host::Idiv>(x, divisor);
    return true;
}

// --- single flags ---

bool op_clc(Execution& x) {
    x.cx.state.rflags &= ~FLAG_CF;
    return true;
}
bool op_stc(Execution& x) {
    x.cx.state.rflags |= FLAG_CF;
    return true;
}
bool op_cmc(Execution& x) {
    x.cx.state.rflags ^= FLAG_CF;
    return true;
}
bool op_cld(Execution& x) {
    x.cx.state.rflags &= ~FLAG_DF;
    return true;
}
bool op_std(Execution& x) {
    x.cx.state.rflags |= FLAG_DF;
    return true;
}
bool op_lahf(Execution& x) {
    const std::uint64_t flags = (x.cx.state.rflags & 0xd5) | 2;
    std::uint64_t& rax = x.cx.state.gpr.data()[Rax];
    rax = (rax & ~std::uint64_t{0xff00}) | flags << 8;
    return true;
}
bool op_sahf(Execution& x) {
    const std::uint64_t ah = gpr(x, Rax, 2) >> 8;
    x.cx.state.rflags = (x.cx.state.rflags & ~std::uint64_t{0xd5}) | (ah & 0xd5);
    return true;
}

} // namespace doppel::cpu::x86::interpreter
