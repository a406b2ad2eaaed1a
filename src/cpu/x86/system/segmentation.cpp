// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/segmentation.hpp"

#include "cpu/x86/system/descriptor.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint16_t kRealAccess = Segment::kPresent | Segment::kS | 3; // writable, accessed
constexpr std::uint16_t kV86Access = kRealAccess | Segment::kDplMask;

/// Real mode keeps the limit that protected mode left ("unreal mode"); V86 mode has fixed ones.
Segment real_segment(const SystemContext& cx, SegmentIndex segment, std::uint16_t selector) {
    const Segment& old = cx.state.segment[segment];
    const bool v86 = cx.v86();
    constexpr std::uint16_t kept = Segment::kDefaultBig | Segment::kGranular | Segment::kAvl;
    return {.base = std::uint64_t{selector} << 4,
            .limit = v86 ? 0xffff : old.limit,
            .selector = selector,
            .access =
                v86 ? kV86Access : static_cast<std::uint16_t>((old.access & kept) | kRealAccess)};
}

/// SS = null is legal in 64-bit mode below CPL 3, with RPL = CPL.
bool prepare_null(SystemContext& cx, SegmentIndex segment, std::uint16_t selector, Segment& out) {
    const unsigned cpl = cx.state.cpl;
    out = null_segment(cx.state.segment[segment], selector);
    if (segment != Ss)
        return true;
    if (!cx.code64() || cpl == 3 || (selector & 3u) != cpl)
        return cx.gp(0);
    out.access = static_cast<std::uint16_t>((out.access & ~Segment::kDplMask) | cpl << 5);
    return true;
}

bool stack_descriptor_ok(const SystemContext& cx, const Descriptor& descriptor,
                         std::uint16_t selector) {
    const unsigned cpl = cx.state.cpl;
    return (selector & 3u) == cpl && descriptor.writable_data() && descriptor.dpl() == cpl;
}

bool data_descriptor_ok(const SystemContext& cx, const Descriptor& descriptor,
                        std::uint16_t selector) {
    if (descriptor.is_system() || !descriptor.readable())
        return false;
    return descriptor.conforming() ||
           ((selector & 3u) <= descriptor.dpl() && cx.state.cpl <= descriptor.dpl());
}

bool demand_cpl0(SystemContext& cx) { return cx.state.cpl == 0 || cx.gp(0); }

/// LDT or available TSS for LLDT and LTR; in long mode they are 16 bytes.
bool load_system_descriptor(SystemContext& cx, std::uint16_t selector, Descriptor& out,
                            bool (*type_ok)(const SystemContext&, unsigned)) {
    const std::uint32_t error = selector_error(selector);
    if ((selector & 4) != 0)
        return cx.gp(error);
    if (!demand_descriptor(cx, selector, Vector::GP, 0, out))
        return false;
    if (!out.is_system() || !type_ok(cx, out.type()))
        return cx.gp(error);
    if (!out.present())
        return cx.raise(Vector::NP, error);
    if (!cx.long_mode())
        return true;
    switch (extend_descriptor(cx, selector, out)) {
    case Lookup::Outside: return cx.gp(error);
    case Lookup::Faulted: return false;
    case Lookup::Found: break;
    }
    const bool upper_type_clear = (out.high >> 40 & 0x1f) == 0;
    return (upper_type_clear && is_canonical(out.base64())) || cx.gp(error);
}

bool is_ldt(const SystemContext&, unsigned type) { return type == system_type::kLdt; }

bool is_available_tss(const SystemContext& cx, unsigned type) {
    return type == system_type::kTss32 || (type == system_type::kTss16 && !cx.long_mode());
}

Segment unpack_system(const SystemContext& cx, const Descriptor& descriptor,
                      std::uint16_t selector) {
    Segment segment = unpack(descriptor, selector);
    if (cx.long_mode())
        segment.base = descriptor.base64();
    return segment;
}

/// Types for which LAR and LSL answer (Vol. 2, LAR table 3-53, LSL table 3-58). In long mode only
/// the 16-byte ones.
bool visible_type(const SystemContext& cx, const Descriptor& descriptor, std::uint32_t types16,
                  std::uint32_t types64) {
    if (!descriptor.is_system())
        return true;
    return ((cx.long_mode() ? types64 : types16) >> descriptor.type() & 1) != 0;
}

/// Common part of LAR, LSL, VERR, VERW: `valid` if the descriptor can be seen from here.
bool inspect(SystemContext& cx, std::uint16_t selector, Descriptor& out, bool& valid) {
    valid = false;
    if (is_null(selector))
        return true;
    switch (find_descriptor(cx, selector, out)) {
    case Lookup::Outside: return true;
    case Lookup::Faulted: return false;
    case Lookup::Found: break;
    }
    valid = out.conforming() || (cx.state.cpl <= out.dpl() && (selector & 3u) <= out.dpl());
    return true;
}

} // namespace

bool prepare_segment(SystemContext& cx, SegmentIndex segment, std::uint16_t selector,
                     Segment& out) {
    if (cx.real_or_v86()) {
        out = real_segment(cx, segment, selector);
        return true;
    }
    if (is_null(selector))
        return prepare_null(cx, segment, selector, out);
    Descriptor descriptor;
    if (!demand_descriptor(cx, selector, Vector::GP, 0, descriptor))
        return false;
    const std::uint32_t error = selector_error(selector);
    const bool good = segment == Ss ? stack_descriptor_ok(cx, descriptor, selector)
                                    : data_descriptor_ok(cx, descriptor, selector);
    if (!good)
        return cx.gp(error);
    if (!descriptor.present())
        return cx.raise(segment == Ss ? Vector::SS : Vector::NP, error);
    if (!mark_descriptor(cx, descriptor, 1))
        return false;
    out = unpack(descriptor, selector);
    return true;
}

void commit_segment(SystemContext& cx, SegmentIndex segment, const Segment& value) {
    Segment& place = cx.state.segment[segment];
    if (segment == Ss && place.default_big() != value.default_big())
        cx.changes |= change::kMode; // width of the stack pointer
    place = value;
    cx.changes |= change::kSegments;
}

bool load_segment(SystemContext& cx, SegmentIndex segment, std::uint16_t selector) {
    Segment value;
    if (!prepare_segment(cx, segment, selector, value))
        return false;
    commit_segment(cx, segment, value);
    return true;
}

bool check_umip(SystemContext& cx) {
    return (cx.state.cr4 & CR4_UMIP) == 0 || cx.state.cpl == 0 || cx.gp(0);
}

bool load_gdtr(SystemContext& cx, DescriptorTable value) {
    if (!demand_cpl0(cx))
        return false;
    if (cx.code64() && !is_canonical(value.base))
        return cx.gp(0);
    cx.state.gdtr = value;
    return true;
}

bool load_idtr(SystemContext& cx, DescriptorTable value) {
    if (!demand_cpl0(cx))
        return false;
    if (cx.code64() && !is_canonical(value.base))
        return cx.gp(0);
    cx.state.idtr = value;
    return true;
}

bool load_ldtr(SystemContext& cx, std::uint16_t selector) {
    if (!demand_cpl0(cx))
        return false;
    if (is_null(selector)) {
        cx.state.ldtr = null_segment(cx.state.ldtr, selector);
        return true;
    }
    Descriptor descriptor;
    if (!load_system_descriptor(cx, selector, descriptor, is_ldt))
        return false;
    cx.state.ldtr = unpack_system(cx, descriptor, selector);
    return true;
}

bool load_tr(SystemContext& cx, std::uint16_t selector) {
    if (!demand_cpl0(cx))
        return false;
    if (is_null(selector))
        return cx.gp(0);
    Descriptor descriptor;
    if (!load_system_descriptor(cx, selector, descriptor, is_available_tss) ||
        !mark_descriptor(cx, descriptor, system_type::kBusy))
        return false;
    cx.state.tr = unpack_system(cx, descriptor, selector);
    return true;
}

bool load_access_rights(SystemContext& cx, std::uint16_t selector, bool& valid,
                        std::uint32_t& result) {
    Descriptor descriptor;
    if (!inspect(cx, selector, descriptor, valid))
        return false;
    valid = valid && visible_type(cx, descriptor, 0x1a3e, 0x1a04);
    // Bits 19:16 are undefined on Intel; AMD (and so every Zen) passes the limit's bits.
    const std::uint32_t mask = cx.traits.amd ? 0x00ff'ff00 : 0x00f0'ff00;
    result = static_cast<std::uint32_t>(descriptor.low >> 32) & mask;
    return true;
}

bool load_segment_limit(SystemContext& cx, std::uint16_t selector, bool& valid,
                        std::uint32_t& result) {
    Descriptor descriptor;
    if (!inspect(cx, selector, descriptor, valid))
        return false;
    valid = valid && visible_type(cx, descriptor, 0x0a0e, 0x0a04);
    result = descriptor.limit();
    return true;
}

bool verify_segment(SystemContext& cx, std::uint16_t selector, AccessType access, bool& valid) {
    Descriptor descriptor;
    if (!inspect(cx, selector, descriptor, valid))
        return false;
    valid = valid && !descriptor.is_system() &&
            (access == AccessType::Write ? descriptor.writable_data() : descriptor.readable());
    return true;
}

bool read_segment_base(SystemContext& cx, SegmentIndex segment, std::uint64_t& value) {
    if ((cx.state.cr4 & CR4_FSGSBASE) == 0)
        return cx.ud();
    value = cx.state.segment[segment].base;
    return true;
}

bool write_segment_base(SystemContext& cx, SegmentIndex segment, std::uint64_t value) {
    if ((cx.state.cr4 & CR4_FSGSBASE) == 0)
        return cx.ud();
    if (!is_canonical(value))
        return cx.gp(0);
    cx.state.segment[segment].base = value;
    cx.changes |= change::kSegments;
    return true;
}

bool swapgs(SystemContext& cx) {
    if (!demand_cpl0(cx))
        return false;
    const std::uint64_t base = cx.state.segment[Gs].base;
    cx.state.segment[Gs].base = cx.state.kernel_gs_base;
    cx.state.kernel_gs_base = base;
    cx.changes |= change::kSegments;
    return true;
}

} // namespace doppel::cpu::x86
