// SPDX-License-Identifier: Apache-2.0
/// String instructions, with and without REP, and port I/O.
///
/// Each iteration is complete in itself: a fault leaves the registers as after the iterations
/// before, so the instruction can be restarted. After kBatch iterations the engine gets a chance to
/// look at its events; rip then still is that of the instruction.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/interpreter/host_alu.hpp"
#include "cpu/x86/interpreter/with_size.hpp"
#include "cpu/x86/system/exceptions.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

constexpr std::uint64_t kBatch = 4096;

DOPPEL_HOT std::uint64_t index(const Execution& x, Gpr number) {
    return gpr(x, number, x.in.address_size);
}
DOPPEL_HOT bool downwards(const Execution& x) { return (x.cx.state.rflags & FLAG_DF) != 0; }
DOPPEL_HOT void advance(Execution& x, Gpr number, std::uint64_t elements = 1) {
    const std::uint64_t bytes = elements * x.in.operand_size;
    const bool down = downwards(x);
    const std::uint64_t value = index(x, number);
    set_gpr(x, number, x.in.address_size, down ? value - bytes : value + bytes);
}
DOPPEL_HOT bool repeats(const Execution& x) {
    return (x.in.prefixes & (prefix::kRep | prefix::kRepne)) != 0;
}

/// Runs `one` as often as rcx says, or once without REP; `one` does the iteration and moves the
/// indexes. `stop` ends the repetition after an iteration (REPE, REPNE). `many` does as many
/// iterations as it can at once, at most its argument, and returns their number, or 0.
template <typename One, typename Stop, typename Many>
DOPPEL_HOT bool repeat(Execution& x, One&& one, Stop&& stop, Many&& many) {
    if (!repeats(x))
        return one();
    const unsigned size = x.in.address_size;
    std::uint64_t count = gpr(x, Rcx, size);
    std::uint64_t budget = x.cx.stepping ? 1 : kBatch;
    while (count != 0 && budget != 0) {
        const std::uint64_t limit = count < budget ? count : budget;
        std::uint64_t done = x.cx.stepping ? 0 : many(limit);
        if (done == 0) {
            if (!one())
                return false;
            done = 1;
        }
        count -= done;
        budget -= done;
        set_gpr(x, Rcx, size, count);
        if (stop())
            return true;
    }
    if (count != 0) {
        x.next = x.cx.state.rip;
        x.unfinished = true;
    }
    return true;
}

constexpr auto kNever = [] { return false; };
constexpr auto kOneByOne = [](std::uint64_t) { return std::uint64_t{0}; };

/// Elements from the one at `linear` on that lie wholly in its page.
DOPPEL_HOT std::uint64_t elements_in_page(std::uint64_t linear, unsigned size, bool down) {
    const std::uint64_t offset = linear & 0xfff;
    if (!down)
        return (0x1000 - offset) / size;
    return offset + size > 0x1000 ? 0 : offset / size + 1;
}

/// Host address of the first of `count` elements (cut to the page) in a flat segment, or nullptr.
DOPPEL_HOT std::byte* run_of(Execution& x, SegmentIndex segment, Gpr number, std::uint64_t& count,
                             AccessType access) {
    if (x.in.address_size == 2)
        return nullptr;
    const std::uint64_t offset = index(x, number);
    const unsigned size = x.in.operand_size;
    const bool down = downwards(x);
    const std::uint64_t fits = elements_in_page(flat_address(x.cx, segment, offset), size, down);
    if (fits == 0)
        return nullptr;
    count = count < fits ? count : fits;
    const std::uint64_t below = down ? (count - 1) * size : 0;
    std::byte* const lowest =
        quick_pointer(x.cx, segment, offset - below, static_cast<unsigned>(count * size), access);
    return lowest == nullptr ? nullptr : lowest + below;
}

/// One after the other, as they may overlap.
template <typename T>
DOPPEL_HOT void move_down(std::byte* to, const std::byte* from, std::uint64_t count) {
    for (; count != 0; --count, to -= sizeof(T), from -= sizeof(T)) {
        T element;
        __builtin_memcpy(&element, from, sizeof element);
        __builtin_memcpy(to, &element, sizeof element);
    }
}

/// The host's own REP MOVS overlaps in the same way.
template <typename T>
DOPPEL_HOT void move_up(std::byte* to, const std::byte* from, std::uint64_t count) {
    if constexpr (sizeof(T) == 1)
        asm volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count)::"memory");
    else if constexpr (sizeof(T) == 2)
        asm volatile("rep movsw" : "+S"(from), "+D"(to), "+c"(count)::"memory");
    else if constexpr (sizeof(T) == 4)
        asm volatile("rep movsl" : "+S"(from), "+D"(to), "+c"(count)::"memory");
    else
        asm volatile("rep movsq" : "+S"(from), "+D"(to), "+c"(count)::"memory");
}

template <typename T>
DOPPEL_HOT void fill_up(std::byte* to, std::uint64_t value, std::uint64_t count) {
    if constexpr (sizeof(T) == 1)
        asm volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    else if constexpr (sizeof(T) == 2)
        asm volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    else if constexpr (sizeof(T) == 4)
        asm volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    else
        asm volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
}

/// Flags of first - second.
DOPPEL_HOT void compare_flags(Execution& x, std::uint64_t first, std::uint64_t second) {
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    with_size<1>(x.in.operand_size, [&]<typename T>() {
        return host::Sub::run(static_cast<T>(first), static_cast<T>(second), flags);
    });
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
}
/// REPE ends on a difference, REPNE on equality.
DOPPEL_HOT bool compare_ends(const Execution& x) {
    const bool equal = (x.cx.state.rflags & FLAG_ZF) != 0;
    return x.in.repne() ? equal : !equal;
}

} // namespace

bool op_movs(Execution& x) {
    const unsigned size = x.in.operand_size;
    const auto one = [&] {
        std::uint64_t value;
        if (!load(x, memory_segment(x), index(x, Rsi), size, value) ||
            !store(x, Es, index(x, Rdi), size, value))
            return false;
        advance(x, Rsi);
        advance(x, Rdi);
        return true;
    };
    const auto many = [&](std::uint64_t count) -> std::uint64_t {
        const std::byte* from = run_of(x, memory_segment(x), Rsi, count, AccessType::Read);
        if (from == nullptr)
            return 0;
        std::byte* to = run_of(x, Es, Rdi, count, AccessType::Write);
        if (to == nullptr)
            return 0;
        with_size<1>(size, [&]<typename T>() {
            downwards(x) ? move_down<T>(to, from, count) : move_up<T>(to, from, count);
            return count;
        });
        advance(x, Rsi, count);
        advance(x, Rdi, count);
        return count;
    };
    return repeat(x, one, kNever, many);
}

bool op_stos(Execution& x) {
    const unsigned size = x.in.operand_size;
    const auto one = [&] {
        if (!store(x, Es, index(x, Rdi), size, gpr(x, Rax, size)))
            return false;
        advance(x, Rdi);
        return true;
    };
    const auto many = [&](std::uint64_t count) -> std::uint64_t {
        std::byte* to = run_of(x, Es, Rdi, count, AccessType::Write);
        if (to == nullptr || downwards(x))
            return 0;
        with_size<1>(size, [&]<typename T>() {
            fill_up<T>(to, gpr(x, Rax, 8), count);
            return count;
        });
        advance(x, Rdi, count);
        return count;
    };
    return repeat(x, one, kNever, many);
}

bool op_lods(Execution& x) {
    const auto one = [&] {
        std::uint64_t value;
        if (!load(x, memory_segment(x), index(x, Rsi), x.in.operand_size, value))
            return false;
        set_gpr(x, Rax, x.in.operand_size, value);
        advance(x, Rsi);
        return true;
    };
    return repeat(x, one, kNever, kOneByOne);
}

bool op_cmps(Execution& x) {
    const unsigned size = x.in.operand_size;
    const auto one = [&] {
        std::uint64_t first, second;
        if (!load(x, memory_segment(x), index(x, Rsi), size, first) ||
            !load(x, Es, index(x, Rdi), size, second))
            return false;
        compare_flags(x, first, second);
        advance(x, Rsi);
        advance(x, Rdi);
        return true;
    };
    return repeat(x, one, [&] { return compare_ends(x); }, kOneByOne);
}

bool op_scas(Execution& x) {
    const unsigned size = x.in.operand_size;
    const auto one = [&] {
        std::uint64_t value;
        if (!load(x, Es, index(x, Rdi), size, value))
            return false;
        compare_flags(x, gpr(x, Rax, size), value);
        advance(x, Rdi);
        return true;
    };
    return repeat(x, one, [&] { return compare_ends(x); }, kOneByOne);
}

// --- ports ---

bool op_ins(Execution& x) {
    const unsigned size = x.in.operand_size;
    const auto port = static_cast<std::uint16_t>(gpr(x, Rdx, 2));
    if (!check_io(x.cx, port, size))
        return false;
    const auto one = [&] {
        // The port is read only when the write behind it cannot fault.
        std::uint64_t linear;
        if (!linear_address(x.cx, Es, index(x, Rdi), size, AccessType::Write, linear, size) ||
            !probe_linear(x.cx, linear, size, AccessType::Write, data_privilege(x.cx)))
            return false;
        const std::uint32_t value = read_port(x.cx, port, size);
        if (!store(x, Es, index(x, Rdi), size, value))
            return false;
        advance(x, Rdi);
        return true;
    };
    return repeat(x, one, kNever, kOneByOne);
}

bool op_outs(Execution& x) {
    const unsigned size = x.in.operand_size;
    const auto port = static_cast<std::uint16_t>(gpr(x, Rdx, 2));
    if (!check_io(x.cx, port, size))
        return false;
    const auto one = [&] {
        std::uint64_t value;
        if (!load(x, memory_segment(x), index(x, Rsi), size, value))
            return false;
        write_port(x.cx, port, size, static_cast<std::uint32_t>(value));
        advance(x, Rsi);
        return true;
    };
    return repeat(x, one, kNever, kOneByOne);
}

bool op_in(Execution& x) {
    const Operand& target = x.in.operands[0];
    std::uint64_t port;
    if (!read_operand(x, x.in.operands[1], port) ||
        !check_io(x.cx, static_cast<std::uint16_t>(port), target.size))
        return false;
    write_register(x, target, read_port(x.cx, static_cast<std::uint16_t>(port), target.size));
    return true;
}

bool op_out(Execution& x) {
    const Operand& source = x.in.operands[1];
    std::uint64_t port;
    if (!read_operand(x, x.in.operands[0], port) ||
        !check_io(x.cx, static_cast<std::uint16_t>(port), source.size))
        return false;
    write_port(x.cx, static_cast<std::uint16_t>(port), source.size,
               static_cast<std::uint32_t>(read_register(x, source)));
    return true;
}

} // namespace doppel::cpu::x86::interpreter
