// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Arithmetic by the host's own instructions, flags included: whatever the manuals leave undefined
/// comes out as on this CPU. Type T is the operand's width.
///
/// Flags travel in a register as LAHF and SETO have them (AH = SF ZF AF PF CF, AL = OF), because
/// that costs a nanosecond and PUSHF/POPF five times as much.
#include <cstdint>

#include "cpu/x86/cpu_state.hpp"

#define DOPPEL_ALU [[gnu::always_inline]] static inline
/// AL = 1 + 0x7f overflows; SAHF leaves OF alone.
#define DOPPEL_FLAGS_IN "addb $0x7f, %%al\n\tsahf\n\t"
#define DOPPEL_FLAGS_OUT "\n\tlahf\n\tseto %%al"

namespace doppel::cpu::x86::interpreter::host {

using Flags = std::uint32_t; // AX

[[gnu::always_inline]] inline Flags flags_in(std::uint64_t rflags) {
    return static_cast<Flags>((rflags & 0xff) << 8 | (rflags >> 11 & 1));
}
[[gnu::always_inline]] inline std::uint64_t flags_out(std::uint64_t rflags, Flags flags) {
    return (rflags & ~kArithmeticFlags) | (flags >> 8 & kArithmeticFlags & 0xff) |
           std::uint64_t{flags & 1} << 11;
}

// struct name { T run(T destination, T source, Flags&) } for a two-operand instruction.
#define DOPPEL_BINARY(name, mnemonic)                                                              \
    struct name {                                                                                  \
        template <typename T> DOPPEL_ALU T run(T destination, T source, Flags& flags) {            \
            asm(DOPPEL_FLAGS_IN mnemonic " %[s], %[d]" DOPPEL_FLAGS_OUT                            \
                : "+a"(flags), [d] "+r"(destination)                                               \
                : [s] "r"(source)                                                                  \
                : "cc");                                                                           \
            return destination;                                                                    \
        }                                                                                          \
    };
DOPPEL_BINARY(Add, "add")
DOPPEL_BINARY(Or, "or")
DOPPEL_BINARY(Adc, "adc")
DOPPEL_BINARY(Sbb, "sbb")
DOPPEL_BINARY(And, "and")
DOPPEL_BINARY(Sub, "sub")
DOPPEL_BINARY(Xor, "xor")
DOPPEL_BINARY(Imul, "imul")
DOPPEL_BINARY(Bt, "bt")
DOPPEL_BINARY(Bts, "bts")
DOPPEL_BINARY(Btr, "btr")
DOPPEL_BINARY(Btc, "btc")
DOPPEL_BINARY(Bsf, "bsf")
DOPPEL_BINARY(Bsr, "bsr")
DOPPEL_BINARY(Tzcnt, "tzcnt")
DOPPEL_BINARY(Lzcnt, "lzcnt")
DOPPEL_BINARY(Popcnt, "popcnt")
DOPPEL_BINARY(Adcx, "adcx")
DOPPEL_BINARY(Adox, "adox")
DOPPEL_BINARY(Blsi, "blsi")
DOPPEL_BINARY(Blsmsk, "blsmsk")
DOPPEL_BINARY(Blsr, "blsr")
#undef DOPPEL_BINARY

// The same with the count in CL.
#define DOPPEL_SHIFT(name, mnemonic)                                                               \
    struct name {                                                                                  \
        template <typename T> DOPPEL_ALU T run(T destination, std::uint8_t count, Flags& flags) {  \
            asm(DOPPEL_FLAGS_IN mnemonic " %%cl, %[d]" DOPPEL_FLAGS_OUT                            \
                : "+a"(flags), [d] "+r"(destination)                                               \
                : "c"(count)                                                                       \
                : "cc");                                                                           \
            return destination;                                                                    \
        }                                                                                          \
    };
DOPPEL_SHIFT(Rol, "rol")
DOPPEL_SHIFT(Ror, "ror")
DOPPEL_SHIFT(Rcl, "rcl")
DOPPEL_SHIFT(Rcr, "rcr")
DOPPEL_SHIFT(Shl, "shl")
DOPPEL_SHIFT(Shr, "shr")
DOPPEL_SHIFT(Sar, "sar")
#undef DOPPEL_SHIFT

#define DOPPEL_DOUBLE_SHIFT(name, mnemonic)                                                        \
    struct name {                                                                                  \
        template <typename T>                                                                      \
        DOPPEL_ALU T run(T destination, T source, std::uint8_t count, Flags& flags) {              \
            asm(DOPPEL_FLAGS_IN mnemonic " %%cl, %[s], %[d]" DOPPEL_FLAGS_OUT                      \
                : "+a"(flags), [d] "+r"(destination)                                               \
                : [s] "r"(source), "c"(count)                                                      \
                : "cc");                                                                           \
            return destination;                                                                    \
        }                                                                                          \
    };
DOPPEL_DOUBLE_SHIFT(Shld, "shld")
DOPPEL_DOUBLE_SHIFT(Shrd, "shrd")
#undef DOPPEL_DOUBLE_SHIFT

// One operand.
#define DOPPEL_UNARY(name, mnemonic)                                                               \
    struct name {                                                                                  \
        template <typename T> DOPPEL_ALU T run(T destination, Flags& flags) {                      \
            asm(DOPPEL_FLAGS_IN mnemonic " %[d]" DOPPEL_FLAGS_OUT                                  \
                : "+a"(flags), [d] "+r"(destination)                                               \
                :                                                                                  \
                : "cc");                                                                           \
            return destination;                                                                    \
        }                                                                                          \
    };
DOPPEL_UNARY(Inc, "inc")
DOPPEL_UNARY(Dec, "dec")
DOPPEL_UNARY(Neg, "neg")
#undef DOPPEL_UNARY

// VEX-coded with three operands: result = source (op) control, in the order of the manual's
// operands 2 and 3.
#define DOPPEL_TERNARY(name, mnemonic)                                                             \
    struct name {                                                                                  \
        template <typename T> DOPPEL_ALU T run(T first, T second, Flags& flags) {                  \
            T result;                                                                              \
            asm(DOPPEL_FLAGS_IN mnemonic " %[b], %[a], %[d]" DOPPEL_FLAGS_OUT                      \
                : "+a"(flags), [d] "=&r"(result)                                                   \
                : [a] "r"(first), [b] "r"(second)                                                  \
                : "cc");                                                                           \
            return result;                                                                         \
        }                                                                                          \
    };
DOPPEL_TERNARY(Andn, "andn")
DOPPEL_TERNARY(Bextr, "bextr")
DOPPEL_TERNARY(Bzhi, "bzhi")
DOPPEL_TERNARY(Pdep, "pdep")
DOPPEL_TERNARY(Pext, "pext")
DOPPEL_TERNARY(Shlx, "shlx")
DOPPEL_TERNARY(Shrx, "shrx")
DOPPEL_TERNARY(Sarx, "sarx")
#undef DOPPEL_TERNARY

// On rdx:rax; `low` and `high` are the full registers. A division that would fault must not get
// here.
#define DOPPEL_WIDE(name, mnemonic)                                                                \
    struct name {                                                                                  \
        template <typename T>                                                                      \
        DOPPEL_ALU void run(std::uint64_t& low, std::uint64_t& high, T source, Flags& flags) {     \
            asm(DOPPEL_FLAGS_IN "mov %[low], %%rax\n\t" mnemonic " %[s]\n\t"                       \
                                "mov %%rax, %[low]" DOPPEL_FLAGS_OUT                               \
                : "+a"(flags), [low] "+r"(low), "+d"(high)                                         \
                : [s] "r"(source)                                                                  \
                : "cc");                                                                           \
        }                                                                                          \
    };
DOPPEL_WIDE(Mul, "mul")
DOPPEL_WIDE(ImulWide, "imul")
DOPPEL_WIDE(Div, "div")
DOPPEL_WIDE(Idiv, "idiv")
#undef DOPPEL_WIDE

} // namespace doppel::cpu::x86::interpreter::host
