// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/gates.hpp"

#include "cpu/x86/system/linear_memory.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint32_t kIdtError = 2; // the error code's index is into the IDT

/// What an interrupt gate leads to.
struct Target {
    Descriptor code;
    std::uint16_t selector = 0;
    std::uint64_t rip = 0;
    unsigned cpl = 0;
    std::uint32_t size = 8; // of what is pushed
    bool masks_interrupts = false;
};

std::uint32_t idt_error(const Event& event) { return event.vector * 8u + kIdtError + event.ext(); }

bool load_gate(SystemContext& cx, const Event& event, Descriptor& gate) {
    const std::uint32_t size = cx.long_mode() ? 16 : 8;
    const std::uint32_t offset = event.vector * size;
    if (offset + size - 1 > cx.state.idtr.limit)
        return cx.gp(idt_error(event));
    gate.linear = cx.state.idtr.base + offset;
    if (!cx.long_mode())
        gate.linear &= 0xffff'ffff;
    if (!load_linear(cx, gate.linear, gate.low, Privilege::Supervisor))
        return false;
    return size == 8 || load_linear(cx, gate.linear + 8, gate.high, Privilege::Supervisor);
}

bool gate_type_ok(const SystemContext& cx, unsigned type) {
    using namespace system_type;
    if (type == kInterruptGate32 || type == kTrapGate32)
        return true;
    return !cx.long_mode() &&
           (type == kTaskGate || type == kInterruptGate16 || type == kTrapGate16);
}

bool check_gate(SystemContext& cx, const Event& event, const Descriptor& gate) {
    if (!gate.is_system() || !gate_type_ok(cx, gate.type()))
        return cx.gp(idt_error(event));
    if (event.source == Event::Source::Software && gate.dpl() < cx.state.cpl)
        return cx.gp(idt_error(event));
    return gate.present() || cx.raise(Vector::NP, idt_error(event));
}

bool check_target(SystemContext& cx, const Event& event, Target& target) {
    const std::uint32_t ext = event.ext();
    if (is_null(target.selector))
        return cx.gp(ext);
    if (!demand_descriptor(cx, target.selector, Vector::GP, ext, target.code))
        return false;
    const std::uint32_t error = selector_error(target.selector) | ext;
    const Descriptor& code = target.code;
    if (!code.is_code() || code.dpl() > cx.state.cpl)
        return cx.gp(error);
    if (cx.long_mode() && (!code.is_long() || code.default_big()))
        return cx.gp(error);
    if (!code.present())
        return cx.raise(Vector::NP, error);
    target.cpl = code.conforming() ? cx.state.cpl : code.dpl();
    if (cx.v86() && target.cpl != 0)
        return cx.gp(error);
    const bool reachable = cx.long_mode() ? is_canonical(target.rip) : target.rip <= code.limit();
    return reachable || cx.gp(ext);
}

void enter_handler(SystemContext& cx, const Target& target) {
    enter_code_segment(cx, target.code, target.selector, target.cpl);
    cx.state.rip = target.rip;
    cx.state.rflags &=
        ~(FLAG_TF | FLAG_VM | FLAG_RF | FLAG_NT | (target.masks_interrupts ? FLAG_IF : 0));
    cx.changes |= change::kMode | change::kSegments | change::kEvents;
}

std::uint64_t flags_image(const SystemContext& cx, const Event& event) {
    return event.resume_flag ? cx.state.rflags | FLAG_RF : cx.state.rflags;
}

bool push_return(SystemContext& cx, const Event& event, std::uint32_t size, Stack& stack) {
    return stack.push(flags_image(cx, event), size) &&
           stack.push(cx.state.segment[Cs].selector, size) && stack.push(event.return_rip, size) &&
           (!event.has_error_code || stack.push(event.error_code, size));
}

bool deliver_long(SystemContext& cx, const Event& event, const Descriptor& gate, Target& target) {
    target.rip = gate.gate_offset64();
    if (!check_target(cx, event, target))
        return false;
    const bool inner = target.cpl != cx.state.cpl;
    std::uint64_t rsp = cx.state.gpr[Rsp];
    const unsigned ist = gate.gate_ist();
    if ((inner || ist != 0) && !long_stack(cx, target.cpl, ist, event.ext(), rsp))
        return false;
    if (!mark_descriptor(cx, target.code, 1))
        return false;
    Stack stack{cx, cx.state.segment[Ss],         rsp & ~std::uint64_t{15},
                8,  privilege_at(cx, target.cpl), event.ext()};
    if (!stack.push(cx.state.segment[Ss].selector, 8) || !stack.push(cx.state.gpr[Rsp], 8) ||
        !push_return(cx, event, 8, stack))
        return false;
    if (inner)
        cx.state.segment[Ss] = long_stack_segment(target.cpl);
    cx.state.gpr[Rsp] = stack.pointer();
    enter_handler(cx, target);
    return true;
}

bool push_v86_segments(SystemContext& cx, std::uint32_t size, Stack& stack) {
    for (const SegmentIndex segment : {Gs, Fs, Ds, Es})
        if (!stack.push(cx.state.segment[segment].selector, size))
            return false;
    return true;
}

bool deliver_inner(SystemContext& cx, const Event& event, const Target& target) {
    InnerStack inner;
    if (!legacy_stack(cx, target.cpl, event.ext(), inner))
        return false;
    Stack stack{cx,
                inner.segment,
                inner.pointer,
                inner.segment.default_big() ? 4u : 2u,
                Privilege::Supervisor,
                selector_error(inner.segment.selector) | event.ext()};
    const bool from_v86 = cx.v86();
    if (from_v86) // its segments are pushed, and the stack's own checks are protected-mode ones
        cx.state.rflags &= ~FLAG_VM;
    const std::uint64_t image_vm = from_v86 ? FLAG_VM : 0;
    const std::uint64_t flags = flags_image(cx, event) | image_vm;
    const bool pushed = (!from_v86 || push_v86_segments(cx, target.size, stack)) &&
                        stack.push(cx.state.segment[Ss].selector, target.size) &&
                        stack.push(cx.state.gpr[Rsp], target.size) &&
                        stack.push(flags, target.size) &&
                        stack.push(cx.state.segment[Cs].selector, target.size) &&
                        stack.push(event.return_rip, target.size) &&
                        (!event.has_error_code || stack.push(event.error_code, target.size));
    cx.state.rflags |= image_vm;
    if (!pushed)
        return false;
    if (from_v86)
        for (const SegmentIndex segment : {Gs, Fs, Ds, Es})
            cx.state.segment[segment] = null_segment(cx.state.segment[segment], 0);
    cx.state.segment[Ss] = inner.segment;
    cx.state.gpr[Rsp] = stack.pointer();
    enter_handler(cx, target);
    return true;
}

bool deliver_legacy(SystemContext& cx, const Event& event, const Descriptor& gate, Target& target) {
    target.size = (gate.type() & 8) != 0 ? 4 : 2;
    target.rip = target.size == 4 ? gate.gate_offset() : gate.gate_offset() & 0xffff;
    if (!check_target(cx, event, target) || !mark_descriptor(cx, target.code, 1))
        return false;
    if (target.cpl != cx.state.cpl)
        return deliver_inner(cx, event, target);
    Stack stack = Stack::current(cx);
    stack.set_error_code(event.ext());
    if (!push_return(cx, event, target.size, stack))
        return false;
    cx.state.gpr[Rsp] = stack.pointer();
    enter_handler(cx, target);
    return true;
}

bool deliver_task(SystemContext& cx, const Event& event, const Descriptor& gate) {
    std::uint16_t tss = 0;
    return check_task_gate(cx, gate, idt_error(event), event.ext(), tss) &&
           switch_task(cx, {.selector = tss,
                            .source = TaskSource::Interrupt,
                            .return_rip = event.return_rip,
                            .ext = event.ext(),
                            .has_error_code = event.has_error_code,
                            .error_code = event.error_code,
                            .resume_flag = event.resume_flag});
}

} // namespace

bool deliver_event(SystemContext& cx, const Event& event) {
    if (!cx.protected_mode())
        return deliver_real(cx, event, cx.state.idtr.base, cx.state.idtr.limit);
    Descriptor gate;
    if (!load_gate(cx, event, gate) || !check_gate(cx, event, gate))
        return false;
    if (gate.type() == system_type::kTaskGate)
        return deliver_task(cx, event, gate);
    Target target;
    target.selector = gate.gate_selector();
    target.masks_interrupts = (gate.type() & 1) == 0;
    return cx.long_mode() ? deliver_long(cx, event, gate, target)
                          : deliver_legacy(cx, event, gate, target);
}

bool deliver_real(SystemContext& cx, const Event& event, std::uint64_t table, std::uint32_t limit) {
    const std::uint32_t offset = event.vector * 4u;
    if (offset + 3 > limit)
        return cx.gp(idt_error(event));
    const Privilege privilege = cx.v86() ? Privilege::User : Privilege::Supervisor;
    std::uint32_t vector = 0;
    if (!load_linear(cx, (table + offset) & 0xffff'ffff, vector, privilege))
        return false;
    const std::uint64_t rip = vector & 0xffff;
    if (rip > cx.state.segment[Cs].limit)
        return cx.gp(0);
    std::uint64_t flags = flags_image(cx, event);
    if (cx.v86() && cx.iopl() < 3) // VME: the program sees VIF as IF, and IOPL 3
        flags = (flags & ~FLAG_IF) | ((flags & FLAG_VIF) != 0 ? FLAG_IF : 0) | FLAG_IOPL;
    Stack stack = Stack::current(cx);
    if (!stack.push(flags, 2) || !stack.push(cx.state.segment[Cs].selector, 2) ||
        !stack.push(event.return_rip, 2))
        return false;
    cx.state.gpr[Rsp] = stack.pointer();
    Segment& cs = cx.state.segment[Cs];
    cs.selector = static_cast<std::uint16_t>(vector >> 16);
    cs.base = std::uint64_t{cs.selector} << 4;
    cx.state.rip = rip;
    const std::uint64_t mask = cx.v86() && cx.iopl() < 3 ? FLAG_VIF : FLAG_IF;
    cx.state.rflags &= ~(FLAG_TF | FLAG_RF | mask | (cx.v86() ? FLAG_NT : FLAG_AC));
    cx.changes |= change::kMode | change::kEvents;
    return true;
}

bool read_tss(SystemContext& cx, std::uint32_t offset, void* to, std::uint32_t bytes,
              std::uint32_t ext) {
    const Segment& tr = cx.state.tr;
    if (offset + bytes - 1 > tr.limit)
        return cx.raise(Vector::TS, selector_error(tr.selector) | ext);
    std::uint64_t linear = tr.base + offset;
    if (!cx.long_mode())
        linear &= 0xffff'ffff;
    return read_linear(cx, linear, to, bytes, Privilege::Supervisor);
}

bool long_stack(SystemContext& cx, unsigned cpl, unsigned ist, std::uint32_t ext,
                std::uint64_t& pointer) {
    const std::uint32_t offset = ist != 0 ? 0x24 + (ist - 1) * 8 : 4 + cpl * 8;
    if (!read_tss(cx, offset, &pointer, 8, ext))
        return false;
    return is_canonical(pointer) || cx.raise(Vector::SS, ext);
}

bool legacy_stack(SystemContext& cx, unsigned cpl, std::uint32_t ext, InnerStack& out) {
    const bool wide = (cx.state.tr.type() & 8) != 0;
    std::uint32_t field[2] = {0, 0};
    std::uint16_t narrow[2] = {0, 0};
    const bool loaded =
        wide ? read_tss(cx, 4 + cpl * 8, field, 6, ext) : read_tss(cx, 2 + cpl * 4, narrow, 4, ext);
    if (!loaded)
        return false;
    out.pointer = wide ? field[0] : narrow[0];
    const auto selector = static_cast<std::uint16_t>(wide ? field[1] : narrow[1]);
    if (is_null(selector))
        return cx.raise(Vector::TS, ext);
    Descriptor descriptor;
    if (!demand_descriptor(cx, selector, Vector::TS, ext, descriptor))
        return false;
    const std::uint32_t error = selector_error(selector) | ext;
    if ((selector & 3u) != cpl || descriptor.dpl() != cpl || !descriptor.writable_data())
        return cx.raise(Vector::TS, error);
    if (!descriptor.present())
        return cx.raise(Vector::SS, error);
    if (!mark_descriptor(cx, descriptor, 1))
        return false;
    out.segment = unpack(descriptor, selector);
    return true;
}

Segment long_stack_segment(unsigned cpl) {
    return {.base = 0,
            .limit = 0,
            .selector = static_cast<std::uint16_t>(cpl),
            .access = static_cast<std::uint16_t>(Segment::kS | 3 | cpl << 5)};
}

void enter_code_segment(SystemContext& cx, const Descriptor& descriptor, std::uint16_t selector,
                        unsigned cpl) {
    cx.state.segment[Cs] = unpack(descriptor, static_cast<std::uint16_t>((selector & ~3u) | cpl));
    cx.state.cpl = static_cast<std::uint8_t>(cpl);
    cx.changes |= change::kMode;
}

Segment flat_code(std::uint16_t selector, unsigned dpl, bool is_long) {
    const unsigned access = Segment::kPresent | Segment::kS | 0xb | Segment::kGranular | dpl << 5 |
                            (is_long ? Segment::kLong : Segment::kDefaultBig);
    return {.base = 0,
            .limit = 0xffff'ffff,
            .selector = selector,
            .access = static_cast<std::uint16_t>(access)};
}

Segment flat_stack(std::uint16_t selector, unsigned dpl) {
    const unsigned access =
        Segment::kPresent | Segment::kS | 3 | Segment::kGranular | Segment::kDefaultBig | dpl << 5;
    return {.base = 0,
            .limit = 0xffff'ffff,
            .selector = selector,
            .access = static_cast<std::uint16_t>(access)};
}

} // namespace doppel::cpu::x86
