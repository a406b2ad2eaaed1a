// SPDX-License-Identifier: Apache-2.0
/// Far JMP and CALL, direct and through call gates, task gates and TSSs.
/// Intel SDM (June 2025) Vol. 2 (JMP, CALL), Vol. 3A §5.8.
#include "cpu/x86/system/far_transfer.hpp"
#include "cpu/x86/system/gates.hpp"
#include "cpu/x86/system/segment_access.hpp"

namespace doppel::cpu::x86 {

namespace {

enum class Kind : std::uint8_t { Jump, Call };

struct Transfer {
    Kind kind;
    std::uint16_t selector;
    std::uint64_t offset;
    std::uint32_t size; // of what a call pushes
    std::uint64_t next;
};

void set_real_cs(SystemContext& cx, std::uint16_t selector) {
    Segment& cs = cx.state.segment[Cs];
    cs.selector = selector;
    cs.base = std::uint64_t{selector} << 4;
    if (cx.v86()) {
        cs.limit = 0xffff;
        cs.access = Segment::kPresent | Segment::kS | Segment::kDplMask | 3;
    } else {
        // As after a switch from protected mode: readable, writable, 16-bit code from here on.
        cs.access = static_cast<std::uint16_t>((cs.access & Segment::kDefaultBig) |
                                               Segment::kPresent | Segment::kS | 3);
    }
    cx.changes |= change::kMode;
}

bool push_return(SystemContext& cx, const Transfer& transfer, Stack& stack) {
    return stack.push(cx.state.segment[Cs].selector, transfer.size) &&
           stack.push(transfer.next, transfer.size);
}

bool transfer_real(SystemContext& cx, const Transfer& transfer) {
    if (transfer.offset > cx.state.segment[Cs].limit)
        return cx.gp(0);
    if (transfer.kind == Kind::Call) {
        Stack stack = Stack::current(cx);
        if (!push_return(cx, transfer, stack))
            return false;
        cx.state.gpr[Rsp] = stack.pointer();
    }
    set_real_cs(cx, transfer.selector);
    cx.state.rip = transfer.offset;
    return true;
}

bool target_reachable(SystemContext& cx, const Descriptor& code, std::uint64_t offset) {
    const bool to64 = cx.long_mode() && code.is_long();
    return (to64 ? is_canonical(offset) : offset <= code.limit()) || cx.gp(0);
}

bool transfer_direct(SystemContext& cx, const Transfer& transfer, Descriptor& code) {
    const std::uint32_t error = selector_error(transfer.selector);
    const unsigned cpl = cx.state.cpl;
    const bool privilege_ok = code.conforming()
                                  ? code.dpl() <= cpl
                                  : code.dpl() == cpl && (transfer.selector & 3u) <= cpl;
    if (!privilege_ok || (cx.long_mode() && code.is_long() && code.default_big()))
        return cx.gp(error);
    if (!code.present())
        return cx.raise(Vector::NP, error);
    if (!target_reachable(cx, code, transfer.offset) || !mark_descriptor(cx, code, 1))
        return false;
    if (transfer.kind == Kind::Call) {
        Stack stack = Stack::current(cx);
        if (!push_return(cx, transfer, stack))
            return false;
        cx.state.gpr[Rsp] = stack.pointer();
    }
    enter_code_segment(cx, code, transfer.selector, cpl);
    cx.state.rip = transfer.offset;
    return true;
}

bool copy_parameters(const Descriptor& gate, std::uint32_t size, Stack& from, Stack& to) {
    for (unsigned i = gate.gate_parameters(); i-- != 0;) {
        std::uint64_t value = 0;
        if (!from.peek(std::uint64_t{i} * size, value, size) || !to.push(value, size))
            return false;
    }
    return true;
}

bool call_inner_legacy(SystemContext& cx, Transfer& transfer, const Descriptor& gate,
                       unsigned cpl) {
    InnerStack inner;
    if (!legacy_stack(cx, cpl, 0, inner))
        return false;
    Stack old = Stack::current(cx);
    Stack stack{cx,
                inner.segment,
                inner.pointer,
                inner.segment.default_big() ? 4u : 2u,
                Privilege::Supervisor,
                selector_error(inner.segment.selector)};
    if (!stack.push(cx.state.segment[Ss].selector, transfer.size) ||
        !stack.push(cx.state.gpr[Rsp], transfer.size) ||
        !copy_parameters(gate, transfer.size, old, stack) || !push_return(cx, transfer, stack))
        return false;
    cx.state.segment[Ss] = inner.segment;
    cx.state.gpr[Rsp] = stack.pointer();
    cx.changes |= change::kSegments;
    return true;
}

bool call_inner_long(SystemContext& cx, Transfer& transfer, unsigned cpl) {
    std::uint64_t rsp = 0;
    if (!long_stack(cx, cpl, 0, 0, rsp))
        return false;
    Stack stack{cx, cx.state.segment[Ss], rsp, 8, privilege_at(cx, cpl), 0};
    if (!stack.push(cx.state.segment[Ss].selector, 8) || !stack.push(cx.state.gpr[Rsp], 8) ||
        !push_return(cx, transfer, stack))
        return false;
    cx.state.segment[Ss] = long_stack_segment(cpl);
    cx.state.gpr[Rsp] = stack.pointer();
    cx.changes |= change::kSegments;
    return true;
}

bool push_for_gate(SystemContext& cx, Transfer& transfer, const Descriptor& gate, unsigned cpl) {
    if (transfer.kind == Kind::Jump)
        return true;
    if (cpl != cx.state.cpl)
        return cx.long_mode() ? call_inner_long(cx, transfer, cpl)
                              : call_inner_legacy(cx, transfer, gate, cpl);
    // A call gate in long mode leads to 64-bit code, which pushes on a 64-bit stack.
    Stack stack = cx.long_mode() ? Stack{cx, cx.state.segment[Ss],  cx.state.gpr[Rsp],
                                         8,  privilege_at(cx, cpl), 0}
                                 : Stack::current(cx);
    if (!push_return(cx, transfer, stack))
        return false;
    cx.state.gpr[Rsp] = stack.pointer();
    return true;
}

/// The gate's own code segment; `cpl` = privilege it runs at.
bool check_gate_target(SystemContext& cx, Kind kind, std::uint16_t selector, Descriptor& code,
                       unsigned& cpl) {
    if (is_null(selector))
        return cx.gp(0);
    if (!demand_descriptor(cx, selector, Vector::GP, 0, code))
        return false;
    const std::uint32_t error = selector_error(selector);
    const bool same = code.conforming() || code.dpl() == cx.state.cpl;
    if (!code.is_code() || code.dpl() > cx.state.cpl || (kind == Kind::Jump && !same))
        return cx.gp(error);
    if (cx.long_mode() && (!code.is_long() || code.default_big()))
        return cx.gp(error);
    if (!code.present())
        return cx.raise(Vector::NP, error);
    cpl = same ? cx.state.cpl : code.dpl();
    return true;
}

/// In long mode the gate has 16 bytes, the upper type field zero.
bool extend_gate(SystemContext& cx, std::uint16_t selector, Descriptor& gate) {
    if (!cx.long_mode())
        return true;
    const Lookup lookup = extend_descriptor(cx, selector, gate);
    if (lookup == Lookup::Faulted)
        return false;
    return (lookup == Lookup::Found && (gate.high >> 40 & 0x1f) == 0) ||
           cx.gp(selector_error(selector));
}

bool transfer_call_gate(SystemContext& cx, Transfer& transfer, Descriptor& gate) {
    const std::uint32_t error = selector_error(transfer.selector);
    if (gate.dpl() < cx.state.cpl || gate.dpl() < (transfer.selector & 3u))
        return cx.gp(error);
    if (!gate.present())
        return cx.raise(Vector::NP, error);
    if (!extend_gate(cx, transfer.selector, gate))
        return false;
    const bool wide = gate.type() == system_type::kCallGate32;
    transfer.size = cx.long_mode() ? 8 : wide ? 4 : 2;
    transfer.offset = cx.long_mode() ? gate.gate_offset64()
                      : wide         ? gate.gate_offset()
                                     : gate.gate_offset() & 0xffff;
    Descriptor code;
    unsigned cpl = 0;
    const std::uint16_t selector = gate.gate_selector();
    if (!check_gate_target(cx, transfer.kind, selector, code, cpl) ||
        !target_reachable(cx, code, transfer.offset) || !mark_descriptor(cx, code, 1) ||
        !push_for_gate(cx, transfer, gate, cpl))
        return false;
    enter_code_segment(cx, code, selector, cpl);
    cx.state.rip = transfer.offset;
    return true;
}

TaskSource task_source(Kind kind) {
    return kind == Kind::Jump ? TaskSource::Jump : TaskSource::Call;
}

bool transfer_tss(SystemContext& cx, const Transfer& transfer, const Descriptor& tss) {
    const std::uint32_t error = selector_error(transfer.selector);
    if (tss.dpl() < cx.state.cpl || tss.dpl() < (transfer.selector & 3u))
        return cx.gp(error);
    return switch_task(cx, {.selector = transfer.selector,
                            .source = task_source(transfer.kind),
                            .return_rip = transfer.next});
}

bool transfer_task_gate(SystemContext& cx, const Transfer& transfer, const Descriptor& gate) {
    const std::uint32_t error = selector_error(transfer.selector);
    std::uint16_t tss = 0;
    if (gate.dpl() < cx.state.cpl || gate.dpl() < (transfer.selector & 3u))
        return cx.gp(error);
    return check_task_gate(cx, gate, error, 0, tss) &&
           switch_task(cx, {.selector = tss,
                            .source = task_source(transfer.kind),
                            .return_rip = transfer.next});
}

bool transfer_system(SystemContext& cx, Transfer& transfer, Descriptor& descriptor) {
    using namespace system_type;
    const unsigned type = descriptor.type();
    if (type == kCallGate32 || (type == kCallGate16 && !cx.long_mode()))
        return transfer_call_gate(cx, transfer, descriptor);
    if (cx.long_mode())
        return cx.gp(selector_error(transfer.selector));
    if (type == kTaskGate)
        return transfer_task_gate(cx, transfer, descriptor);
    if ((type & 5) == 1) // TSS of either size; switch_task() refuses a busy one
        return transfer_tss(cx, transfer, descriptor);
    return cx.gp(selector_error(transfer.selector));
}

bool transfer(SystemContext& cx, Transfer request) {
    if (cx.real_or_v86())
        return transfer_real(cx, request);
    if (is_null(request.selector))
        return cx.gp(0);
    Descriptor descriptor;
    if (!demand_descriptor(cx, request.selector, Vector::GP, 0, descriptor))
        return false;
    if (descriptor.is_code())
        return transfer_direct(cx, request, descriptor);
    if (!descriptor.is_system())
        return cx.gp(selector_error(request.selector));
    return transfer_system(cx, request, descriptor);
}

} // namespace

bool far_jump(SystemContext& cx, std::uint16_t selector, std::uint64_t offset,
              std::uint32_t operand_size, std::uint64_t next) {
    return transfer(cx, {Kind::Jump, selector, offset, operand_size, next});
}

bool far_call(SystemContext& cx, std::uint16_t selector, std::uint64_t offset,
              std::uint32_t operand_size, std::uint64_t next) {
    return transfer(cx, {Kind::Call, selector, offset, operand_size, next});
}

} // namespace doppel::cpu::x86
