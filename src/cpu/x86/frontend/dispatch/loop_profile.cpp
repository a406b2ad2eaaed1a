// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/dispatch/loop_profile.hpp"

namespace doppel::cpu::x86::frontend {

LoopProfile::Verdict LoopProfile::visit(const translator::BlockKey& head,
                                        const std::array<std::uint64_t, 16>& registers) {
    Entry& at = entry(head);
    if (!(at.head == head))
        return Verdict::Unknown;
    const std::uint64_t now = registers.data()[at.counter.reg];
    if (at.jumps != 0 && now == at.last + static_cast<std::uint64_t>(at.counter.step))
        ++at.continued;
    at.last = now;
    if (++at.jumps < threshold_)
        return Verdict::Wait;
    const bool long_runs = threshold_ == 1 || at.continued * 5 >= at.jumps * 2;
    at = {};
    return long_runs ? Verdict::Hot : Verdict::Cold;
}

} // namespace doppel::cpu::x86::frontend
