// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One instruction in progress, and its operands: what all handlers are made of. Handlers follow
/// the convention of the system layer: false means cx.fault is set and nothing has changed.
#include <utility>

#include "cpu/x86/interpreter/interpreter.hpp"
#include "cpu/x86/system/segment_access.hpp"

/// Everything here is inlined: a weak copy of it could come from a library that uses vector
/// registers.
#define DOPPEL_HOT [[gnu::always_inline]] inline

namespace doppel::cpu::x86::interpreter {

__extension__ using Uint128 = unsigned __int128;
__extension__ using Int128 = __int128;

struct Execution {
    SystemContext& cx;
    const Instruction& in;
    const std::uint8_t* bytes;
    VectorUnit& vectors;
    std::uint64_t next;      // RIP when the instruction is done; branches change it
    bool unfinished = false; // REP: `next` is the instruction itself, for more iterations
};
using Handler = bool (*)(Execution&);

DOPPEL_HOT std::uint64_t mask_of(unsigned size) {
    return size >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (size * 8)) - 1;
}
DOPPEL_HOT std::uint64_t sign_extend(std::uint64_t value, unsigned size) {
    const unsigned shift = 64 - size * 8;
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(value << shift) >> shift);
}
DOPPEL_HOT void set_flag(CpuState& state, std::uint64_t flag, bool on) {
    state.rflags = on ? state.rflags | flag : state.rflags & ~flag;
}

// --- general registers ---

DOPPEL_HOT std::uint64_t* gpr_array(CpuState& state) { return state.gpr.data(); }
DOPPEL_HOT std::uint64_t gpr(const Execution& x, unsigned number, unsigned size) {
    return gpr_array(x.cx.state)[number] & mask_of(size);
}
/// 32-bit writes clear the upper half, smaller ones keep the rest.
DOPPEL_HOT void set_gpr(Execution& x, unsigned number, unsigned size, std::uint64_t value) {
    std::uint64_t& to = gpr_array(x.cx.state)[number];
    if (size >= 4)
        to = value & mask_of(size);
    else
        to = (to & ~mask_of(size)) | (value & mask_of(size));
}
/// By address size: like set_gpr().
DOPPEL_HOT std::uint64_t read_register(const Execution& x, const Operand& operand) {
    const std::uint64_t value = gpr_array(x.cx.state)[operand.reg];
    return operand.kind == OperandKind::GprHigh ? value >> 8 & 0xff : value & mask_of(operand.size);
}
DOPPEL_HOT void write_register(Execution& x, const Operand& operand, std::uint64_t value) {
    if (operand.kind == OperandKind::GprHigh) {
        std::uint64_t& to = gpr_array(x.cx.state)[operand.reg];
        to = (to & ~std::uint64_t{0xff00}) | (value & 0xff) << 8;
    } else {
        set_gpr(x, operand.reg, operand.size, value);
    }
}

// --- memory ---

DOPPEL_HOT std::uint64_t effective_address(const Execution& x) {
    std::uint64_t address = static_cast<std::uint64_t>(x.in.displacement);
    if (x.in.memory_base <= R15)
        address += gpr_array(x.cx.state)[x.in.memory_base];
    else if (x.in.memory_base == kRip)
        address += x.next;
    if (x.in.memory_index <= R15)
        address += gpr_array(x.cx.state)[x.in.memory_index] * x.in.memory_scale;
    return address & mask_of(x.in.address_size);
}
DOPPEL_HOT SegmentIndex memory_segment(const Execution& x) {
    return static_cast<SegmentIndex>(x.in.memory_segment);
}

/// No alignment checks, and the segment checks nothing: in 64-bit mode, where only FS and GS have a
/// base, or because it begins at 0 and has no limit.
DOPPEL_HOT bool is_flat(const SystemContext& cx, SegmentIndex segment) {
    if ((cx.state.rflags & FLAG_AC) != 0 && cx.state.cpl == 3)
        return false;
    if (cx.code64()) [[likely]]
        return true;
    const Segment& cached = (&cx.state.segment.front())[segment];
    return cached.base == 0 && cached.reaches_everywhere() && !cx.real_or_v86();
}
DOPPEL_HOT std::uint64_t flat_address(const SystemContext& cx, SegmentIndex segment,
                                      std::uint64_t offset) {
    return segment >= Fs ? offset + (&cx.state.segment.front())[segment].base : offset;
}
/// Host address if the TLB says that the access may be done without ceremony, or nullptr.
DOPPEL_HOT std::byte* quick_pointer(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                                    unsigned size, AccessType access) {
    if (!is_flat(cx, segment) || (cx.state.dr7 & 0xff) != 0)
        return nullptr;
    const std::uint64_t linear = flat_address(cx, segment, offset);
    const TlbEntry* entry = cx.tlb.lookup(linear, permission(access, data_privilege(cx)));
    if (entry == nullptr || entry->host == nullptr || (linear & 0xfff) + size > 0x1000)
        return nullptr;
    if (access == AccessType::Write && entry->state->load(std::memory_order_acquire) != 0)
        return nullptr;
    return entry->host + (linear & 0xfff);
}

DOPPEL_HOT std::uint64_t load_bytes(const std::byte* from, unsigned size) {
    std::uint64_t value = 0;
    switch (size) {
    case 1: __builtin_memcpy(&value, from, 1); break;
    case 2: __builtin_memcpy(&value, from, 2); break;
    case 4: __builtin_memcpy(&value, from, 4); break;
    default: __builtin_memcpy(&value, from, 8); break;
    }
    return value;
}
DOPPEL_HOT void store_bytes(std::byte* to, std::uint64_t value, unsigned size) {
    switch (size) {
    case 1: __builtin_memcpy(to, &value, 1); break;
    case 2: __builtin_memcpy(to, &value, 2); break;
    case 4: __builtin_memcpy(to, &value, 4); break;
    default: __builtin_memcpy(to, &value, 8); break;
    }
}

/// Integers of 1, 2, 4 or 8 bytes. A read with Intent::ReadForWrite makes sure that the write that
/// follows will not fault.
DOPPEL_HOT bool load(Execution& x, SegmentIndex segment, std::uint64_t offset, unsigned size,
                     std::uint64_t& value, Intent intent = Intent::Read) {
    const auto access = intent == Intent::Read ? AccessType::Read : AccessType::Write;
    if (const std::byte* from = quick_pointer(x.cx, segment, offset, size, access)) [[likely]] {
        value = load_bytes(from, size);
        return true;
    }
    value = 0;
    return read_data(x.cx, segment, offset, &value, size, intent);
}
DOPPEL_HOT bool store(Execution& x, SegmentIndex segment, std::uint64_t offset, unsigned size,
                      std::uint64_t value) {
    if (std::byte* to = quick_pointer(x.cx, segment, offset, size, AccessType::Write)) [[likely]] {
        store_bytes(to, value, size);
        return true;
    }
    return write_data(x.cx, segment, offset, &value, size);
}

// --- operands of any kind ---

DOPPEL_HOT bool is_memory(const Operand& operand) { return operand.kind == OperandKind::Memory; }

DOPPEL_HOT bool read_operand(Execution& x, const Operand& operand, std::uint64_t& value,
                             Intent intent = Intent::Read) {
    switch (operand.kind) {
    case OperandKind::Gpr:
    case OperandKind::GprHigh: value = read_register(x, operand); return true;
    case OperandKind::Immediate: value = x.in.immediate & mask_of(operand.size); return true;
    default: return load(x, memory_segment(x), effective_address(x), operand.size, value, intent);
    }
}
DOPPEL_HOT bool write_operand(Execution& x, const Operand& operand, std::uint64_t value) {
    if (is_memory(operand))
        return store(x, memory_segment(x), effective_address(x), operand.size, value);
    write_register(x, operand, value);
    return true;
}

/// operand = compute(operand), atomically with LOCK. `compute` may run several times and touches
/// nothing; what it returns besides the value is the caller's to commit when this returns true.
template <typename Compute>
DOPPEL_HOT bool update_operand(Execution& x, const Operand& operand, Compute&& compute) {
    if (!is_memory(operand)) {
        write_register(x, operand, compute(read_register(x, operand)));
        return true;
    }
    const std::uint64_t offset = effective_address(x);
    const SegmentIndex segment = memory_segment(x);
    std::uint64_t old;
    if (!load(x, segment, offset, operand.size, old, Intent::ReadForWrite))
        return false;
    if (!x.in.lock()) [[likely]]
        return store(x, segment, offset, operand.size, compute(old));
    Wide expected{old, 0};
    for (bool swapped = false; !swapped;) {
        const Wide desired{compute(expected.low) & mask_of(operand.size), 0};
        if (!compare_exchange_data(x.cx, segment, offset, operand.size, expected, desired, swapped))
            return false;
    }
    return true;
}

// --- stack ---

DOPPEL_HOT std::uint64_t stack_pointer(const Execution& x) {
    return gpr_array(x.cx.state)[Rsp] & mask_of(stack_width(x.cx));
}
DOPPEL_HOT void set_stack_pointer(Execution& x, std::uint64_t value) {
    set_gpr(x, Rsp, stack_width(x.cx), value);
}
DOPPEL_HOT bool push(Execution& x, std::uint64_t value, unsigned size) {
    const std::uint64_t top = (stack_pointer(x) - size) & mask_of(stack_width(x.cx));
    if (!store(x, Ss, top, size, value))
        return false;
    set_stack_pointer(x, top);
    return true;
}
/// Reads the top; the caller releases it when nothing can fail any more.
DOPPEL_HOT bool peek(Execution& x, std::uint64_t& value, unsigned size) {
    return load(x, Ss, stack_pointer(x), size, value);
}
DOPPEL_HOT void release(Execution& x, std::uint64_t bytes) {
    set_stack_pointer(x, stack_pointer(x) + bytes);
}

// --- flags ---

/// Condition codes 0..15 = o no b ae e ne be a s ns p np l ge le g.
DOPPEL_HOT bool condition_holds(std::uint64_t rflags, unsigned condition) {
    bool holds;
    switch (condition >> 1) {
    case 0: holds = (rflags & FLAG_OF) != 0; break;
    case 1: holds = (rflags & FLAG_CF) != 0; break;
    case 2: holds = (rflags & FLAG_ZF) != 0; break;
    case 3: holds = (rflags & (FLAG_CF | FLAG_ZF)) != 0; break;
    case 4: holds = (rflags & FLAG_SF) != 0; break;
    case 5: holds = (rflags & FLAG_PF) != 0; break;
    case 6: holds = ((rflags & FLAG_SF) != 0) != ((rflags & FLAG_OF) != 0); break;
    default:
        holds = (rflags & FLAG_ZF) != 0 || ((rflags & FLAG_SF) != 0) != ((rflags & FLAG_OF) != 0);
        break;
    }
    return holds != ((condition & 1) != 0);
}

// --- near branches ---

DOPPEL_HOT bool branch_to(Execution& x, std::uint64_t target) {
    if (x.cx.code64() ? !is_canonical(target) : !check_branch_target(x.cx, target))
        return x.cx.code64() ? x.cx.gp(0) : false;
    x.next = target;
    return true;
}

} // namespace doppel::cpu::x86::interpreter
