// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/dispatch/flat_code.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint32_t kLastOffset = 0xffff'ffff;

bool is_flat_data(const Segment& segment) {
    return segment.base == 0 && segment.reaches_everywhere();
}

} // namespace

bool is_flat32(const SystemContext& cx) {
    const Segment* const segments = cx.state.segment.data();
    const Segment& cs = segments[Cs];
    return !cx.real_or_v86() && !cx.code64() && cs.default_big() && cs.base == 0 &&
           cs.limit == kLastOffset && is_flat_data(segments[Ss]) && segments[Ss].default_big() &&
           is_flat_data(segments[Ds]) && is_flat_data(segments[Es]);
}

} // namespace doppel::cpu::x86::frontend
