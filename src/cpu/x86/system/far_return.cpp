// SPDX-License-Identifier: Apache-2.0
/// RETF and IRET. Intel SDM (June 2025) Vol. 2 (RET, IRET), Vol. 3A §5.8.6, §7.12, Vol. 3B §21.2.
#include "cpu/x86/system/far_transfer.hpp"
#include "cpu/x86/system/gates.hpp"
#include "cpu/x86/system/segment_access.hpp"

namespace doppel::cpu::x86 {

namespace {

/// What a return took from the stack.
struct Frame {
    std::uint64_t rip = 0;
    std::uint16_t cs = 0;
    std::uint64_t flags = 0;
    std::uint64_t rsp = 0;
    std::uint16_t ss = 0;
    Descriptor code;
    Segment stack; // if `changes_stack`
    bool changes_stack = false;
    unsigned cpl = 0;
};

void set_real_cs(SystemContext& cx, std::uint16_t selector) {
    Segment& cs = cx.state.segment[Cs];
    cs.selector = selector;
    cs.base = std::uint64_t{selector} << 4;
    cx.changes |= change::kMode;
}

bool to_64bit(const SystemContext& cx, const Frame& frame) {
    return cx.long_mode() && frame.code.is_long();
}

/// CS of a return: code, privilege outwards or the same (Vol. 2, RET pseudocode).
bool check_code(SystemContext& cx, Frame& frame) {
    if (is_null(frame.cs))
        return cx.gp(0);
    if (!demand_descriptor(cx, frame.cs, Vector::GP, 0, frame.code))
        return false;
    const std::uint32_t error = selector_error(frame.cs);
    const Descriptor& code = frame.code;
    const unsigned rpl = frame.cs & 3u;
    if (!code.is_code() || rpl < cx.state.cpl ||
        (code.conforming() ? code.dpl() > rpl : code.dpl() != rpl) ||
        (cx.long_mode() && code.is_long() && code.default_big()))
        return cx.gp(error);
    if (!code.present())
        return cx.raise(Vector::NP, error);
    frame.cpl = rpl;
    return true;
}

bool check_target(SystemContext& cx, const Frame& frame) {
    const bool good =
        to_64bit(cx, frame) ? is_canonical(frame.rip) : frame.rip <= frame.code.limit();
    return good || cx.gp(0);
}

/// SS of a return that loads it. Null is legal when going to 64-bit mode below CPL 3.
bool check_stack(SystemContext& cx, Frame& frame) {
    const unsigned rpl = frame.cpl;
    if (is_null(frame.ss)) {
        if (!to_64bit(cx, frame) || rpl == 3 || (frame.ss & 3u) != rpl)
            return cx.gp(0);
        frame.stack = long_stack_segment(rpl);
        return true;
    }
    Descriptor descriptor;
    if (!demand_descriptor(cx, frame.ss, Vector::GP, 0, descriptor))
        return false;
    const std::uint32_t error = selector_error(frame.ss);
    if ((frame.ss & 3u) != rpl || !descriptor.writable_data() || descriptor.dpl() != rpl)
        return cx.gp(error);
    if (!descriptor.present())
        return cx.raise(Vector::SS, error);
    if (!mark_descriptor(cx, descriptor, 1))
        return false;
    frame.stack = unpack(descriptor, frame.ss);
    return true;
}

/// Segments that the outer level may not use become null.
void drop_inner_segments(SystemContext& cx, unsigned cpl) {
    for (const SegmentIndex index : {Es, Ds, Fs, Gs}) {
        Segment& segment = cx.state.segment[index];
        const bool conforming = (segment.access & (Segment::kS | 0xc)) == (Segment::kS | 0xc);
        if (segment.present() && segment.dpl() < cpl && !conforming)
            segment = null_segment(segment, 0);
    }
}

void set_stack_pointer(SystemContext& cx, std::uint64_t value) {
    const std::uint32_t width = stack_width(cx);
    std::uint64_t& rsp = cx.state.gpr[Rsp];
    rsp = width == 8   ? value
          : width == 4 ? value & 0xffff'ffff
                       : (rsp & ~std::uint64_t{0xffff}) | (value & 0xffff);
}

/// CS, SS, RSP and the data segments; `inner_rsp` when the stack stays.
void commit(SystemContext& cx, const Frame& frame, std::uint64_t inner_rsp) {
    const unsigned old_cpl = cx.state.cpl;
    enter_code_segment(cx, frame.code, frame.cs, frame.cpl);
    if (frame.changes_stack) {
        cx.state.segment[Ss] = frame.stack;
        set_stack_pointer(cx, frame.rsp);
    } else {
        cx.state.gpr[Rsp] = inner_rsp;
    }
    if (frame.cpl > old_cpl)
        drop_inner_segments(cx, frame.cpl);
    cx.state.rip = frame.rip;
    cx.changes |= change::kMode | change::kSegments;
}

bool pop_selector(Stack& stack, std::uint32_t size, std::uint16_t& selector) {
    std::uint64_t value = 0;
    if (!stack.pop(value, size))
        return false;
    selector = static_cast<std::uint16_t>(value);
    return true;
}

bool return_real(SystemContext& cx, std::uint32_t size, std::uint32_t release) {
    Stack stack = Stack::current(cx);
    Frame frame;
    if (!stack.pop(frame.rip, size) || !pop_selector(stack, size, frame.cs))
        return false;
    if (frame.rip > cx.state.segment[Cs].limit)
        return cx.gp(0);
    stack.release(release);
    cx.state.gpr[Rsp] = stack.pointer();
    set_real_cs(cx, frame.cs);
    cx.state.rip = frame.rip;
    return true;
}

// --- IRET ---

/// Bits of EFLAGS that IRET takes from the image at the old CPL (Vol. 2, IRET).
std::uint64_t iret_flags_mask(const SystemContext& cx, std::uint32_t size) {
    std::uint64_t mask =
        kArithmeticFlags | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_RF | FLAG_AC | FLAG_ID;
    if (cx.state.cpl == 0)
        mask |= FLAG_IOPL | FLAG_VIF | FLAG_VIP;
    if (!cx.protected_mode() || cx.state.cpl <= cx.iopl())
        mask |= FLAG_IF;
    return size == 2 ? mask & 0xffff : mask;
}

void set_flags(SystemContext& cx, std::uint64_t image, std::uint64_t mask) {
    cx.state.rflags = (cx.state.rflags & ~mask) | (image & mask) | 2;
    cx.resume = false; // RF is the image's: it holds for the next instruction
    cx.changes |= change::kMode | change::kEvents;
}

bool pop_frame(Stack& stack, std::uint32_t size, Frame& frame) {
    return stack.pop(frame.rip, size) && pop_selector(stack, size, frame.cs) &&
           stack.pop(frame.flags, size);
}

bool iret_real(SystemContext& cx, std::uint32_t size) {
    Stack stack = Stack::current(cx);
    Frame frame;
    if (!pop_frame(stack, size, frame))
        return false;
    if (frame.rip > cx.state.segment[Cs].limit)
        return cx.gp(0);
    const std::uint64_t mask = iret_flags_mask(cx, size) & ~(FLAG_VIF | FLAG_VIP);
    cx.state.gpr[Rsp] = stack.pointer();
    set_real_cs(cx, frame.cs);
    cx.state.rip = frame.rip;
    set_flags(cx, frame.flags, mask);
    return true;
}

/// V86 mode: IOPL 3 as in real mode (IOPL untouched); below, only 16-bit IRET with VME.
bool iret_v86(SystemContext& cx, std::uint32_t size) {
    const bool vme = (cx.state.cr4 & CR4_VME) != 0 && size == 2;
    if (cx.iopl() < 3 && !vme)
        return cx.gp(0);
    Stack stack = Stack::current(cx);
    Frame frame;
    if (!pop_frame(stack, size, frame))
        return false;
    if (frame.rip > cx.state.segment[Cs].limit)
        return cx.gp(0);
    std::uint64_t mask = iret_flags_mask(cx, size);
    if (cx.iopl() < 3) {
        const bool wants_if = (frame.flags & FLAG_IF) != 0;
        if ((frame.flags & FLAG_TF) != 0 || (wants_if && (cx.state.rflags & FLAG_VIP) != 0))
            return cx.gp(0);
        frame.flags = (frame.flags & ~FLAG_VIF) | (wants_if ? FLAG_VIF : 0);
        mask = (mask & ~FLAG_IF) | FLAG_VIF;
    }
    cx.state.gpr[Rsp] = stack.pointer();
    set_real_cs(cx, frame.cs);
    cx.state.rip = frame.rip;
    set_flags(cx, frame.flags, mask);
    return true;
}

Segment v86_segment(std::uint16_t selector) {
    return {.base = std::uint64_t{selector} << 4,
            .limit = 0xffff,
            .selector = selector,
            .access = Segment::kPresent | Segment::kS | Segment::kDplMask | 3};
}

/// CPL 0, 32-bit operand, VM set in the image: ESP SS ES DS FS GS follow.
bool iret_to_v86(SystemContext& cx, Stack& stack, const Frame& frame) {
    std::uint64_t rsp = 0;
    std::uint16_t selectors[5]; // ss es ds fs gs
    if (!stack.pop(rsp, 4))
        return false;
    for (std::uint16_t& selector : selectors)
        if (!pop_selector(stack, 4, selector))
            return false;
    if (frame.rip > 0xffff)
        return cx.gp(0);
    CpuState& state = cx.state;
    constexpr std::uint64_t mask = kArithmeticFlags | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_RF |
                                   FLAG_AC | FLAG_ID | FLAG_IOPL | FLAG_VIF | FLAG_VIP | FLAG_IF |
                                   FLAG_VM;
    set_flags(cx, frame.flags, mask);
    state.segment[Cs] = v86_segment(frame.cs);
    state.segment[Ss] = v86_segment(selectors[0]);
    state.segment[Es] = v86_segment(selectors[1]);
    state.segment[Ds] = v86_segment(selectors[2]);
    state.segment[Fs] = v86_segment(selectors[3]);
    state.segment[Gs] = v86_segment(selectors[4]);
    state.cpl = 3;
    state.rip = frame.rip;
    state.gpr[Rsp] = rsp;
    cx.changes |= change::kSegments;
    return true;
}

bool iret_task(SystemContext& cx, std::uint64_t next) {
    std::uint16_t link = 0;
    return read_tss(cx, 0, &link, sizeof link, 0) &&
           switch_task(cx, {.selector = link, .source = TaskSource::Return, .return_rip = next});
}

bool iret_protected(SystemContext& cx, std::uint32_t size) {
    Stack stack = Stack::current(cx);
    Frame frame;
    if (!pop_frame(stack, size, frame))
        return false;
    if (size == 4 && (frame.flags & FLAG_VM) != 0 && cx.state.cpl == 0 && !cx.long_mode())
        return iret_to_v86(cx, stack, frame);
    if (!check_code(cx, frame))
        return false;
    frame.changes_stack = cx.code64() || frame.cpl != cx.state.cpl;
    if (frame.changes_stack && (!stack.pop(frame.rsp, size) ||
                                !pop_selector(stack, size, frame.ss) || !check_stack(cx, frame)))
        return false;
    if (!check_target(cx, frame) || !mark_descriptor(cx, frame.code, 1))
        return false;
    const std::uint64_t mask = iret_flags_mask(cx, size);
    set_flags(cx, frame.flags, mask);
    commit(cx, frame, stack.pointer());
    return true;
}

} // namespace

bool far_return(SystemContext& cx, std::uint32_t operand_size, std::uint32_t release_bytes) {
    if (cx.real_or_v86())
        return return_real(cx, operand_size, release_bytes);
    Stack stack = Stack::current(cx);
    Frame frame;
    if (!stack.pop(frame.rip, operand_size) || !pop_selector(stack, operand_size, frame.cs) ||
        !check_code(cx, frame))
        return false;
    stack.release(release_bytes);
    frame.changes_stack = frame.cpl != cx.state.cpl;
    if (frame.changes_stack &&
        (!stack.pop(frame.rsp, operand_size) || !pop_selector(stack, operand_size, frame.ss) ||
         !check_stack(cx, frame)))
        return false;
    if (!check_target(cx, frame) || !mark_descriptor(cx, frame.code, 1))
        return false;
    frame.rsp += release_bytes; // the parameters were copied: both stacks drop them
    commit(cx, frame, stack.pointer());
    return true;
}

bool iret(SystemContext& cx, std::uint32_t operand_size, std::uint64_t next) {
    if (cx.state.nmi_blocked) { // even if IRET faults (Vol. 3A §7.7.1)
        cx.state.nmi_blocked = false;
        cx.changes |= change::kEvents;
    }
    if (!cx.protected_mode())
        return iret_real(cx, operand_size);
    if (cx.v86())
        return iret_v86(cx, operand_size);
    if ((cx.state.rflags & FLAG_NT) != 0)
        return cx.long_mode() ? cx.gp(0) : iret_task(cx, next);
    return iret_protected(cx, operand_size);
}

} // namespace doppel::cpu::x86
