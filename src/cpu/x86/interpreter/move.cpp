// SPDX-License-Identifier: Apache-2.0
/// Data movement: moves, exchanges, the stack, segment registers.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/interpreter/host_alu.hpp"
#include "cpu/x86/interpreter/with_size.hpp"
#include "cpu/x86/system/exceptions.hpp"
#include "cpu/x86/system/segmentation.hpp"

namespace doppel::cpu::x86::interpreter {

bool op_mov(Execution& x) {
    std::uint64_t value;
    return read_operand(x, x.in.operands[1], value) && write_operand(x, x.in.operands[0], value);
}
bool op_movzx(Execution& x) { return op_mov(x); }
bool op_movsx(Execution& x) {
    std::uint64_t value;
    if (!read_operand(x, x.in.operands[1], value))
        return false;
    write_register(x, x.in.operands[0], sign_extend(value, x.in.operands[1].size));
    return true;
}
bool op_movnti(Execution& x) { return op_mov(x); }

bool op_movbe(Execution& x) {
    const unsigned size = x.in.operands[0].size;
    std::uint64_t value;
    if (!read_operand(x, x.in.operands[1], value))
        return false;
    return write_operand(x, x.in.operands[0], __builtin_bswap64(value) >> (64 - size * 8));
}

bool op_lea(Execution& x) {
    write_register(x, x.in.operands[0], effective_address(x));
    return true;
}

bool op_xchg(Execution& x) { // the memory operand, if any, is operand 0
    const Operand& target = x.in.operands[0];
    const Operand& other = x.in.operands[1];
    const std::uint64_t value = read_register(x, other);
    if (!is_memory(target)) {
        const std::uint64_t old = read_register(x, target);
        write_register(x, target, value);
        write_register(x, other, old);
        return true;
    }
    const std::uint64_t offset = effective_address(x);
    std::uint64_t old;
    if (!load(x, memory_segment(x), offset, target.size, old, Intent::ReadForWrite))
        return false;
    Wide expected{old, 0};
    for (bool swapped = false; !swapped;)
        if (!compare_exchange_data(x.cx, memory_segment(x), offset, target.size, expected,
                                   {value, 0}, swapped))
            return false;
    write_register(x, other, expected.low);
    return true;
}

bool op_xadd(Execution& x) {
    const Operand& target = x.in.operands[0];
    const Operand& other = x.in.operands[1];
    const std::uint64_t addend = read_register(x, other);
    const host::Flags before = host::flags_in(x.cx.state.rflags);
    host::Flags flags = before;
    std::uint64_t old = 0, sum = 0;
    const auto compute = [&](std::uint64_t value) {
        flags = before;
        old = value;
        sum = with_size<1>(target.size, [&]<typename T>() {
            return host::Add::run(static_cast<T>(value), static_cast<T>(addend), flags);
        });
        return sum;
    };
    if (!update_operand(x, target, compute))
        return false;
    write_register(x, other, old);
    if (!is_memory(target)) // XADD of a register with itself: the sum wins
        write_register(x, target, sum);
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

bool op_cmpxchg(Execution& x) {
    const Operand& target = x.in.operands[0];
    const unsigned size = target.size;
    const std::uint64_t accumulator = gpr(x, Rax, size);
    const std::uint64_t desired = read_register(x, x.in.operands[1]);
    host::Flags flags = host::flags_in(x.cx.state.rflags);
    const auto compare = [&](std::uint64_t old) {
        with_size<1>(size, [&]<typename T>() {
            return host::Sub::run(static_cast<T>(accumulator), static_cast<T>(old), flags);
        });
    };
    std::uint64_t old;
    if (!is_memory(target)) {
        old = read_register(x, target);
        if (old == accumulator)
            write_register(x, target, desired);
    } else if (x.in.lock()) {
        Wide expected{accumulator, 0};
        bool swapped = false;
        if (!compare_exchange_data(x.cx, memory_segment(x), effective_address(x), size, expected,
                                   {desired, 0}, swapped))
            return false;
        old = expected.low;
    } else {
        const std::uint64_t offset = effective_address(x);
        if (!load(x, memory_segment(x), offset, size, old, Intent::ReadForWrite) ||
            !store(x, memory_segment(x), offset, size, old == accumulator ? desired : old))
            return false;
    }
    if (old != accumulator)
        set_gpr(x, Rax, size, old);
    compare(old);
    x.cx.state.rflags = host::flags_out(x.cx.state.rflags, flags);
    return true;
}

namespace {
/// CMPXCHG8B and 16B: edx:eax or rdx:rax with `half` bytes each.
DOPPEL_HOT bool compare_exchange_pair(Execution& x, unsigned half) {
    const auto pack = [&](std::uint64_t low, std::uint64_t high) {
        return half == 8 ? Wide{low, high} : Wide{low | high << 32, 0};
    };
    Wide expected = pack(gpr(x, Rax, half), gpr(x, Rdx, half));
    const Wide desired = pack(gpr(x, Rbx, half), gpr(x, Rcx, half));
    const std::uint64_t offset = effective_address(x);
    if (half == 8) {
        std::uint64_t linear;
        if (!linear_address(x.cx, memory_segment(x), offset, 16, AccessType::Write, linear, 0))
            return false;
        if ((linear & 15) != 0)
            return x.cx.gp(0);
    }
    bool swapped = false;
    if (!compare_exchange_data(x.cx, memory_segment(x), offset, half * 2, expected, desired,
                               swapped))
        return false;
    if (!swapped) {
        set_gpr(x, Rax, half, expected.low);
        set_gpr(x, Rdx, half, half == 8 ? expected.high : expected.low >> 32);
    }
    set_flag(x.cx.state, FLAG_ZF, swapped);
    return true;
}
} // namespace

bool op_cmpxchg8b(Execution& x) { return compare_exchange_pair(x, 4); }
bool op_cmpxchg16b(Execution& x) { return compare_exchange_pair(x, 8); }

bool op_cmov(Execution& x) {
    std::uint64_t value;
    if (!read_operand(x, x.in.operands[1], value))
        return false;
    const Operand& target = x.in.operands[0];
    const bool holds = condition_holds(x.cx.state.rflags, x.in.condition());
    write_register(x, target, holds ? value : read_register(x, target));
    return true;
}

bool op_set(Execution& x) {
    return write_operand(x, x.in.operands[0],
                         condition_holds(x.cx.state.rflags, x.in.condition()) ? 1 : 0);
}

bool op_cbw(Execution& x) {
    const unsigned size = x.in.operand_size;
    set_gpr(x, Rax, size, sign_extend(gpr(x, Rax, size / 2), size / 2));
    return true;
}
bool op_cwd(Execution& x) {
    const unsigned size = x.in.operand_size;
    const bool negative = (gpr(x, Rax, size) >> (size * 8 - 1)) != 0;
    set_gpr(x, Rdx, size, negative ? ~std::uint64_t{0} : 0);
    return true;
}

bool op_xlat(Execution& x) {
    const std::uint64_t offset = (gpr(x, Rbx, 8) + gpr(x, Rax, 1)) & mask_of(x.in.address_size);
    std::uint64_t value;
    if (!load(x, memory_segment(x), offset, 1, value))
        return false;
    set_gpr(x, Rax, 1, value);
    return true;
}

bool op_nop(Execution&) { return true; }

// --- stack ---

bool op_push(Execution& x) {
    std::uint64_t value;
    const Operand& operand = x.in.operands[0];
    if (operand.kind == OperandKind::Immediate)
        value = x.in.immediate;
    else if (!read_operand(x, operand, value))
        return false;
    return push(x, value, x.in.operand_size);
}

bool op_pop(Execution& x) {
    const unsigned size = x.in.operand_size;
    std::uint64_t value;
    if (!peek(x, value, size))
        return false;
    const std::uint64_t before = x.cx.state.gpr.data()[Rsp];
    release(x, size); // the address of a memory operand counts with the new rsp
    if (write_operand(x, x.in.operands[0], value))
        return true;
    x.cx.state.gpr.data()[Rsp] = before;
    return false;
}

bool op_pusha(Execution& x) {
    const unsigned size = x.in.operand_size;
    const std::uint64_t stack_mask = mask_of(stack_width(x.cx));
    const std::uint64_t before = stack_pointer(x);
    // All or nothing: the far end is probed first, then the near one.
    for (const unsigned number : {7u, 0u})
        for (const auto access : {AccessType::Write}) {
            std::uint64_t linear;
            if (!linear_address(x.cx, Ss, (before - size * (number + 1)) & stack_mask, size, access,
                                linear, 0) ||
                !probe_linear(x.cx, linear, size, access, data_privilege(x.cx)))
                return false;
        }
    for (unsigned number = 0; number < 8; ++number)
        if (!store(x, Ss, (before - size * (number + 1)) & stack_mask, size, gpr(x, number, size)))
            return false;
    set_stack_pointer(x, before - size * 8);
    return true;
}

bool op_popa(Execution& x) {
    const unsigned size = x.in.operand_size;
    const std::uint64_t stack_mask = mask_of(stack_width(x.cx));
    const std::uint64_t top = stack_pointer(x);
    std::uint64_t values[8];
    for (unsigned i = 0; i < 8; ++i)
        if (!load(x, Ss, (top + size * i) & stack_mask, size, values[7 - i]))
            return false;
    for (unsigned number = 0; number < 8; ++number)
        if (number != Rsp)
            set_gpr(x, number, size, values[number]);
    set_stack_pointer(x, top + size * 8);
    return true;
}

bool op_enter(Execution& x) {
    const unsigned size = x.in.operand_size;
    const std::uint64_t stack_mask = mask_of(stack_width(x.cx));
    const unsigned level = x.in.immediate2 & 31;
    const std::uint64_t frame_bytes = x.in.immediate & 0xffff;
    const auto offset = [&](std::uint64_t address) { return address & stack_mask; };
    std::uint64_t top = stack_pointer(x) - size;
    if (!store(x, Ss, offset(top), size, gpr(x, Rbp, size)))
        return false;
    const std::uint64_t frame = top;
    std::uint64_t base = gpr(x, Rbp, 8);
    for (unsigned i = 1; i < level; ++i) { // copies of the outer frames' pointers
        std::uint64_t pointer;
        base -= size;
        top -= size;
        if (!load(x, Ss, offset(base), size, pointer) || !store(x, Ss, offset(top), size, pointer))
            return false;
    }
    if (level != 0) {
        top -= size;
        if (!store(x, Ss, offset(top), size, frame))
            return false;
    }
    top -= frame_bytes;
    std::uint64_t linear; // the last word of the frame must be writable
    if (!linear_address(x.cx, Ss, offset(top), size, AccessType::Write, linear, size) ||
        !probe_linear(x.cx, linear, size, AccessType::Write, data_privilege(x.cx)))
        return false;
    set_gpr(x, Rbp, size, frame);
    set_stack_pointer(x, top);
    return true;
}

bool op_leave(Execution& x) {
    const unsigned size = x.in.operand_size;
    const std::uint64_t frame = gpr(x, Rbp, stack_width(x.cx));
    std::uint64_t value;
    if (!load(x, Ss, frame, size, value))
        return false;
    set_stack_pointer(x, frame + size);
    set_gpr(x, Rbp, size, value);
    return true;
}

// --- segment registers ---

bool op_mov_from_segment(Execution& x) {
    const unsigned from = x.in.operands[1].reg;
    return write_operand(x, x.in.operands[0], (&x.cx.state.segment.front())[from].selector);
}

bool op_mov_to_segment(Execution& x) {
    std::uint64_t selector;
    const auto segment = static_cast<SegmentIndex>(x.in.operands[0].reg);
    if (!read_operand(x, x.in.operands[1], selector) ||
        !load_segment(x.cx, segment, static_cast<std::uint16_t>(selector)))
        return false;
    if (segment == Ss)
        set_mov_ss_shadow(x.cx);
    return true;
}

bool op_push_segment(Execution& x) {
    const unsigned from = x.in.operands[0].reg;
    return push(x, (&x.cx.state.segment.front())[from].selector, x.in.operand_size);
}

bool op_pop_segment(Execution& x) {
    const auto segment = static_cast<SegmentIndex>(x.in.operands[0].reg);
    const std::uint64_t top = stack_pointer(x) + x.in.operand_size;
    const unsigned width = stack_width(x.cx);
    std::uint64_t selector;
    if (!peek(x, selector, x.in.operand_size) ||
        !load_segment(x.cx, segment, static_cast<std::uint16_t>(selector)))
        return false;
    set_gpr(x, Rsp, width, top); // the width counted before SS changed
    if (segment == Ss)
        set_mov_ss_shadow(x.cx);
    return true;
}

bool op_load_far_pointer(Execution& x) {
    const unsigned size = x.in.operand_size;
    std::uint64_t pointer[2] = {};
    auto* bytes = reinterpret_cast<std::uint8_t*>(pointer);
    if (!read_data(x.cx, memory_segment(x), effective_address(x), bytes, size + 2))
        return false;
    std::uint16_t selector;
    __builtin_memcpy(&selector, bytes + size, 2);
    if (!load_segment(x.cx, static_cast<SegmentIndex>(x.in.operands[2].reg), selector))
        return false;
    write_register(x, x.in.operands[0], pointer[0]);
    return true;
}

bool op_bound(Execution& x) {
    const unsigned size = x.in.operand_size;
    std::uint64_t lower, upper;
    const std::uint64_t offset = effective_address(x);
    if (!load(x, memory_segment(x), offset, size, lower) ||
        !load(x, memory_segment(x), (offset + size) & mask_of(x.in.address_size), size, upper))
        return false;
    const auto index =
        static_cast<std::int64_t>(sign_extend(read_register(x, x.in.operands[0]), size));
    if (index < static_cast<std::int64_t>(sign_extend(lower, size)) ||
        index > static_cast<std::int64_t>(sign_extend(upper, size)))
        return x.cx.raise(Vector::BR);
    return true;
}

} // namespace doppel::cpu::x86::interpreter
