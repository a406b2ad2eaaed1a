// SPDX-License-Identifier: Apache-2.0
/// Hardware task switching with 16- and 32-bit TSSs. Intel SDM (June 2025) Vol. 3A chapter 9 (§9.3
/// lists the steps). Faults up to the commit belong to the old task, later ones to the new one.
#include "cpu/x86/system/gates.hpp"
#include "cpu/x86/system/linear_memory.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kDr7Local = 0x155; // L0..L3 and LE are cleared
constexpr std::uint64_t kDr6TaskSwitch = 1u << 15;

/// Offsets of the dynamic fields. General registers stand in encoding order.
struct Layout {
    std::uint32_t word; // size of a field
    std::uint32_t rip, flags, registers, segments, segment_count, ldt;
    std::uint32_t minimum_limit;
};
constexpr Layout kTss32{4, 0x20, 0x24, 0x28, 0x48, 6, 0x60, 0x67};
constexpr Layout kTss16{2, 0x0e, 0x10, 0x12, 0x22, 4, 0x2a, 0x2b};
constexpr std::uint32_t kCr3 = 0x1c, kTrapWord = 0x64;
/// es cs ss ds fs gs is the order of both the TSS and SegmentIndex.

const Layout& layout_of(unsigned type) { return (type & 8) != 0 ? kTss32 : kTss16; }

/// What the new TSS holds.
struct Image {
    std::uint32_t cr3 = 0, rip = 0, flags = 0, gpr[8] = {};
    std::uint16_t segment[6] = {}, ldt = 0, trap = 0;
};

bool load_field(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                std::uint32_t& value) {
    value = 0;
    return read_linear(cx, linear & 0xffff'ffff, &value, bytes, Privilege::Supervisor);
}

bool store_field(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                 std::uint64_t value) {
    return write_linear(cx, linear & 0xffff'ffff, &value, bytes, Privilege::Supervisor);
}

bool load_selector(SystemContext& cx, std::uint64_t linear, std::uint16_t& selector) {
    std::uint32_t value = 0;
    const bool done = load_field(cx, linear, 2, value);
    selector = static_cast<std::uint16_t>(value);
    return done;
}

/// Step 1..4: the descriptor of the new TSS.
bool check_descriptor(SystemContext& cx, const TaskSwitch& request, Descriptor& tss) {
    const bool back = request.source == TaskSource::Return;
    const Vector vector = back ? Vector::TS : Vector::GP;
    const std::uint32_t error = selector_error(request.selector) | request.ext;
    if (is_null(request.selector) || (request.selector & 4) != 0)
        return cx.raise(vector, error);
    if (!demand_descriptor(cx, request.selector, vector, request.ext, tss))
        return false;
    const unsigned busy = back ? system_type::kBusy : 0;
    if (!tss.is_system() || (tss.type() & 7) != (1 | busy))
        return cx.raise(vector, error);
    if (!tss.present())
        return cx.raise(Vector::NP, error);
    return tss.limit() >= layout_of(tss.type()).minimum_limit || cx.raise(Vector::TS, error);
}

bool read_image(SystemContext& cx, std::uint64_t base, const Layout& layout, Image& out) {
    for (std::uint64_t i = 0; i < 8; ++i)
        if (!load_field(cx, base + layout.registers + i * layout.word, layout.word, out.gpr[i]))
            return false;
    for (std::uint64_t i = 0; i < layout.segment_count; ++i)
        if (!load_selector(cx, base + layout.segments + i * layout.word, out.segment[i]))
            return false;
    const bool wide = layout.word == 4;
    return load_field(cx, base + layout.rip, layout.word, out.rip) &&
           load_field(cx, base + layout.flags, layout.word, out.flags) &&
           load_selector(cx, base + layout.ldt, out.ldt) &&
           (!wide || (load_field(cx, base + kCr3, 4, out.cr3) &&
                      load_selector(cx, base + kTrapWord, out.trap)));
}

bool save_old(SystemContext& cx, const TaskSwitch& request) {
    const CpuState& state = cx.state;
    const Layout& layout = layout_of(state.tr.type());
    const std::uint64_t base = state.tr.base;
    std::uint64_t flags = state.rflags | (request.resume_flag ? FLAG_RF : 0);
    if (request.source == TaskSource::Return)
        flags &= ~FLAG_NT;
    if (!store_field(cx, base + layout.rip, layout.word, request.return_rip) ||
        !store_field(cx, base + layout.flags, layout.word, flags))
        return false;
    for (std::uint64_t i = 0; i < 8; ++i)
        if (!store_field(cx, base + layout.registers + i * layout.word, layout.word, state.gpr[i]))
            return false;
    for (std::uint64_t i = 0; i < layout.segment_count; ++i)
        if (!store_field(cx, base + layout.segments + i * layout.word, 2,
                         state.segment[i].selector))
            return false;
    return true;
}

/// Everything that could fault in the old task's name.
bool probe(SystemContext& cx, std::uint64_t new_base, std::uint32_t new_limit) {
    const Segment& tr = cx.state.tr;
    const std::uint32_t old_limit = layout_of(tr.type()).minimum_limit;
    if (tr.limit < old_limit)
        return cx.raise(Vector::TS, selector_error(tr.selector));
    return probe_linear(cx, tr.base, old_limit + 1, AccessType::Write, Privilege::Supervisor) &&
           probe_linear(cx, new_base, new_limit + 1, AccessType::Write, Privilege::Supervisor);
}

bool update_busy_bits(SystemContext& cx, const TaskSwitch& request, Descriptor& tss) {
    const bool nests =
        request.source == TaskSource::Call || request.source == TaskSource::Interrupt;
    if (!nests) {
        Descriptor old;
        if (!demand_descriptor(cx, cx.state.tr.selector, Vector::TS, request.ext, old) ||
            !clear_busy(cx, old))
            return false;
    }
    if (nests && !store_field(cx, tss.base(), 2, cx.state.tr.selector))
        return false;
    return mark_descriptor(cx, tss, system_type::kBusy); // already busy on a return
}

void load_cr3(SystemContext& cx, std::uint32_t cr3) {
    if ((cx.state.cr0 & CR0_PG) == 0)
        return;
    cx.state.cr3 = cr3;
    if ((cx.state.cr4 & CR4_PAE) != 0)
        (void)load_pdptes(cx, cr3); // a bad one keeps the old registers: nowhere to fault to
    cx.tlb.switch_to(0);
    flush_tlb(cx, {.kind = TlbFlush::Kind::Pcid, .pcid = 0});
    cx.changes |= change::kAddressSpace;
}

/// The point of no return: registers of the new task, its segments still unusable.
void load_registers(SystemContext& cx, const TaskSwitch& request, const Descriptor& tss,
                    const Image& image) {
    CpuState& state = cx.state;
    const bool wide = (tss.type() & 8) != 0;
    const bool nests =
        request.source == TaskSource::Call || request.source == TaskSource::Interrupt;
    state.tr = unpack(tss, request.selector);
    state.cr0 |= CR0_TS;
    state.dr7 &= ~kDr7Local;
    if (wide)
        load_cr3(cx, image.cr3);
    constexpr std::uint64_t defined = kArithmeticFlags | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_IOPL |
                                      FLAG_NT | FLAG_RF | FLAG_VM | FLAG_AC | FLAG_VIF | FLAG_VIP |
                                      FLAG_ID;
    const std::uint64_t flags = wide ? image.flags : image.flags & 0xffff;
    state.rflags = (flags & defined) | 2 | (nests ? FLAG_NT : 0);
    for (unsigned i = 0; i < 8; ++i)
        state.gpr[i] = wide ? image.gpr[i] : (state.gpr[i] & ~std::uint64_t{0xffff}) | image.gpr[i];
    state.rip = image.rip;
    for (unsigned i = 0; i < kSegments; ++i)
        state.segment[i] = null_segment(state.segment[i], image.segment[i]);
    state.ldtr = null_segment(state.ldtr, image.ldt);
    cx.resume = false;
    cx.changes |= change::kMode | change::kSegments | change::kEvents | change::kDebug;
}

bool load_ldt(SystemContext& cx, std::uint16_t selector, std::uint32_t ext) {
    if (is_null(selector))
        return true;
    const std::uint32_t error = selector_error(selector) | ext;
    Descriptor descriptor;
    if ((selector & 4) != 0)
        return cx.raise(Vector::TS, error);
    if (!demand_descriptor(cx, selector, Vector::TS, ext, descriptor))
        return false;
    if (!descriptor.is_system() || descriptor.type() != system_type::kLdt || !descriptor.present())
        return cx.raise(Vector::TS, error);
    cx.state.ldtr = unpack(descriptor, selector);
    return true;
}

bool segment_acceptable(const SystemContext& cx, SegmentIndex index, const Descriptor& descriptor,
                        std::uint16_t selector) {
    const unsigned rpl = selector & 3u, cpl = cx.state.cpl;
    switch (index) {
    case Cs:
        return descriptor.is_code() &&
               (descriptor.conforming() ? descriptor.dpl() <= rpl : descriptor.dpl() == rpl);
    case Ss: return descriptor.writable_data() && rpl == cpl && descriptor.dpl() == cpl;
    default:
        return !descriptor.is_system() && descriptor.readable() &&
               (descriptor.conforming() || (rpl <= descriptor.dpl() && cpl <= descriptor.dpl()));
    }
}

bool load_task_segment(SystemContext& cx, SegmentIndex index, std::uint32_t ext) {
    Segment& segment = cx.state.segment[index];
    const std::uint16_t selector = segment.selector;
    const std::uint32_t error = selector_error(selector) | ext;
    if (is_null(selector))
        return (index != Cs && index != Ss) || cx.raise(Vector::TS, error);
    Descriptor descriptor;
    if (!demand_descriptor(cx, selector, Vector::TS, ext, descriptor))
        return false;
    if (!segment_acceptable(cx, index, descriptor, selector))
        return cx.raise(Vector::TS, error);
    if (!descriptor.present())
        return cx.raise(index == Ss ? Vector::SS : Vector::NP, error);
    if (!mark_descriptor(cx, descriptor, 1))
        return false;
    segment = unpack(descriptor, selector);
    return true;
}

void load_v86_segments(SystemContext& cx) {
    for (Segment& segment : cx.state.segment)
        segment = {.base = std::uint64_t{segment.selector} << 4,
                   .limit = 0xffff,
                   .selector = segment.selector,
                   .access = Segment::kPresent | Segment::kS | Segment::kDplMask | 3};
    cx.state.cpl = 3;
}

/// Steps in the new task's name.
bool load_segments(SystemContext& cx, std::uint32_t ext) {
    CpuState& state = cx.state;
    if (!cx.v86())
        state.cpl = state.segment[Cs].selector & 3;
    if (!load_ldt(cx, state.ldtr.selector, ext))
        return false;
    if (cx.v86()) {
        load_v86_segments(cx);
        return true;
    }
    for (const SegmentIndex index : {Cs, Ss, Ds, Es, Fs, Gs})
        if (!load_task_segment(cx, index, ext))
            return false;
    return true;
}

bool push_error_code(SystemContext& cx, const TaskSwitch& request, bool wide) {
    if (!request.has_error_code)
        return true;
    Stack stack = Stack::current(cx);
    stack.set_error_code(request.ext);
    if (!stack.push(request.error_code, wide ? 4 : 2))
        return false;
    cx.state.gpr[Rsp] = stack.pointer();
    return true;
}

} // namespace

bool check_task_gate(SystemContext& cx, const Descriptor& gate, std::uint32_t gate_error,
                     std::uint32_t ext, std::uint16_t& tss) {
    tss = gate.gate_selector();
    if (!gate.present())
        return cx.raise(Vector::NP, gate_error);
    return (tss & 4) == 0 || cx.gp(selector_error(tss) | ext);
}

bool switch_task(SystemContext& cx, const TaskSwitch& request) {
    Descriptor tss;
    Image image;
    if (!check_descriptor(cx, request, tss))
        return false;
    const Layout& layout = layout_of(tss.type());
    if (!probe(cx, tss.base(), layout.minimum_limit) ||
        !read_image(cx, tss.base(), layout, image) || !save_old(cx, request) ||
        !update_busy_bits(cx, request, tss))
        return false;
    load_registers(cx, request, tss, image);
    if (!load_segments(cx, request.ext))
        return false;
    if ((image.trap & 1) != 0)
        cx.state.pending_debug |= kDr6TaskSwitch;
    if (!push_error_code(cx, request, layout.word == 4))
        return false;
    return cx.state.rip <= cx.state.segment[Cs].limit || cx.gp(0);
}

} // namespace doppel::cpu::x86
