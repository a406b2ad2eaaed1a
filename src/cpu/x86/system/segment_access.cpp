// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/segment_access.hpp"

#include "cpu/x86/system/segment_check.hpp"

namespace doppel::cpu::x86 {

namespace {

bool access_fault(SystemContext& cx, SegmentIndex segment) {
    return cx.raise(segment == Ss ? Vector::SS : Vector::GP, 0);
}

bool alignment_checked(const SystemContext& cx) {
    return cx.state.cpl == 3 && (cx.state.rflags & FLAG_AC) != 0 && (cx.state.cr0 & CR0_AM) != 0;
}

} // namespace

bool type_allows(const Segment& segment, AccessType access) {
    if (!segment.present())
        return false;
    const bool code = (segment.access & 8) != 0, read_or_write = (segment.access & 2) != 0;
    return access == AccessType::Write ? !code && read_or_write : !code || read_or_write;
}

bool limit_allows(const Segment& segment, std::uint64_t offset, std::uint32_t bytes) {
    const std::uint64_t last = offset + bytes - 1;
    const bool expand_down =
        (segment.access & (Segment::kS | 0xc)) == (Segment::kS | 4); // data, type bit 2
    if (!expand_down) [[likely]]
        return last <= segment.limit;
    const std::uint64_t top = segment.default_big() ? 0xffff'ffff : 0xffff;
    return offset > segment.limit && last <= top;
}

std::uint64_t linear_unchecked(const SystemContext& cx, SegmentIndex segment,
                               std::uint64_t offset) {
    if (!cx.code64())
        return (cx.state.segment[segment].base + offset) & 0xffff'ffff;
    return segment >= Fs ? cx.state.segment[segment].base + offset : offset;
}

bool linear_address(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                    std::uint32_t bytes, AccessType access, std::uint64_t& linear,
                    std::uint32_t alignment) {
    linear = linear_unchecked(cx, segment, offset);
    if (cx.code64()) {
        if (!is_canonical(linear) || !is_canonical(linear + bytes - 1)) [[unlikely]]
            return access_fault(cx, segment);
    } else {
        const Segment& cached = cx.state.segment[segment];
        const bool typed = !cx.real_or_v86();
        if ((typed && !type_allows(cached, access)) || !limit_allows(cached, offset, bytes))
            return access_fault(cx, segment);
    }
    if (alignment > 1 && (linear & (alignment - 1)) != 0 && alignment_checked(cx)) [[unlikely]]
        return cx.raise(Vector::AC, 0);
    return true;
}

bool read_data(SystemContext& cx, SegmentIndex segment, std::uint64_t offset, void* to,
               std::uint32_t bytes, Intent intent) {
    std::uint64_t linear = 0;
    const AccessType access = intent == Intent::Read ? AccessType::Read : AccessType::Write;
    return linear_address(cx, segment, offset, bytes, access, linear, bytes) &&
           read_linear(cx, linear, to, bytes, data_privilege(cx), intent);
}

bool write_data(SystemContext& cx, SegmentIndex segment, std::uint64_t offset, const void* from,
                std::uint32_t bytes) {
    std::uint64_t linear = 0;
    return linear_address(cx, segment, offset, bytes, AccessType::Write, linear, bytes) &&
           write_linear(cx, linear, from, bytes, data_privilege(cx));
}

bool compare_exchange_data(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                           std::uint32_t bytes, Wide& expected, Wide desired, bool& swapped) {
    std::uint64_t linear = 0;
    return linear_address(cx, segment, offset, bytes, AccessType::Write, linear, bytes) &&
           compare_exchange_linear(cx, linear, bytes, expected, desired, swapped,
                                   data_privilege(cx));
}

bool code_address(SystemContext& cx, std::uint64_t rip, std::uint64_t& linear,
                  std::uint32_t& allowed_bytes) {
    allowed_bytes = 15;
    if (cx.code64()) {
        linear = rip;
        return is_canonical(rip) || cx.gp(0);
    }
    const Segment& cs = cx.state.segment[Cs];
    if (rip > cs.limit)
        return cx.gp(0);
    if (cs.limit - rip < 15)
        allowed_bytes = static_cast<std::uint32_t>(cs.limit - rip + 1);
    linear = (cs.base + rip) & 0xffff'ffff;
    return true;
}

bool check_branch_target(SystemContext& cx, std::uint64_t target) {
    const bool good = cx.code64() ? is_canonical(target) : target <= cx.state.segment[Cs].limit;
    return good || cx.gp(0);
}

} // namespace doppel::cpu::x86
