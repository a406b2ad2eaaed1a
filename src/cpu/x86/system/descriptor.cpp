// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/descriptor.hpp"

#include "cpu/x86/system/linear_memory.hpp"

namespace doppel::cpu::x86 {

namespace {

/// Table that a selector points into.
struct Table {
    std::uint64_t base;
    std::uint32_t limit;
    bool usable;
};

Table table_of(const SystemContext& cx, std::uint16_t selector) {
    const CpuState& state = cx.state;
    if ((selector & 4) == 0)
        return {state.gdtr.base, state.gdtr.limit, true};
    return {state.ldtr.base, state.ldtr.limit, state.ldtr.present()};
}

std::uint64_t wrap(const SystemContext& cx, std::uint64_t linear) {
    return cx.long_mode() ? linear : linear & 0xffff'ffff;
}

bool change_type(SystemContext& cx, std::uint64_t linear, std::uint32_t set, std::uint32_t clear) {
    Wide expected;
    std::uint32_t old = 0;
    if (!read_linear(cx, linear, &old, sizeof old, Privilege::Supervisor, Intent::ReadForWrite))
        return false;
    expected.low = old;
    for (bool swapped = false; !swapped;) {
        const std::uint64_t desired = (expected.low & ~std::uint64_t{clear}) | set;
        if (!compare_exchange_linear(cx, linear, 4, expected, {desired, 0}, swapped,
                                     Privilege::Supervisor))
            return false;
    }
    return true;
}

} // namespace

Segment unpack(const Descriptor& descriptor, std::uint16_t selector) {
    return {.base = descriptor.base(),
            .limit = descriptor.limit(),
            .selector = selector,
            .access = static_cast<std::uint16_t>(descriptor.low >> 40 & 0xf0ff)};
}

/// The base is cleared, too (as Intel CPUs and AMD's Zen 3 and later do).
Segment null_segment(const Segment& old, std::uint16_t selector) {
    return {.base = 0,
            .limit = 0,
            .selector = selector,
            .access = static_cast<std::uint16_t>(old.access & ~Segment::kPresent)};
}

Lookup find_descriptor(SystemContext& cx, std::uint16_t selector, Descriptor& out) {
    const Table table = table_of(cx, selector);
    const std::uint32_t offset = selector & 0xfff8u;
    if (!table.usable || offset + 7 > table.limit)
        return Lookup::Outside;
    out.linear = wrap(cx, table.base + offset);
    return load_linear(cx, out.linear, out.low, Privilege::Supervisor) ? Lookup::Found
                                                                       : Lookup::Faulted;
}

Lookup extend_descriptor(SystemContext& cx, std::uint16_t selector, Descriptor& descriptor) {
    if ((selector & 0xfff8u) + 15 > table_of(cx, selector).limit)
        return Lookup::Outside;
    return load_linear(cx, descriptor.linear + 8, descriptor.high, Privilege::Supervisor)
               ? Lookup::Found
               : Lookup::Faulted;
}

bool demand_descriptor(SystemContext& cx, std::uint16_t selector, Vector vector, std::uint32_t ext,
                       Descriptor& out) {
    const Lookup lookup = find_descriptor(cx, selector, out);
    if (lookup == Lookup::Outside)
        return cx.raise(vector, selector_error(selector) | ext);
    return lookup == Lookup::Found;
}

bool mark_descriptor(SystemContext& cx, Descriptor& descriptor, unsigned type_bits) {
    if ((descriptor.type() & type_bits) == type_bits)
        return true;
    if (!change_type(cx, descriptor.linear + 4, type_bits << 8, 0))
        return false;
    descriptor.low |= std::uint64_t{type_bits} << 40;
    return true;
}

bool clear_busy(SystemContext& cx, const Descriptor& descriptor) {
    return change_type(cx, descriptor.linear + 4, 0, system_type::kBusy << 8);
}

} // namespace doppel::cpu::x86
