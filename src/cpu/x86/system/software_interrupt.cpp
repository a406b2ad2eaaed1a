// SPDX-License-Identifier: Apache-2.0
/// INT n, INT3, INTO, INT1. Intel SDM (June 2025) Vol. 2 (INT n), Vol. 3B §21.3.3 (VME).
#include "cpu/x86/system/far_transfer.hpp"
#include "cpu/x86/system/gates.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint32_t kVectorTableLimit = 0x3ff;

/// The interrupt redirection bit map: 32 bytes below the I/O permission bit map.
bool redirection_bit(SystemContext& cx, std::uint8_t vector, bool& to_protected_mode) {
    constexpr std::uint32_t kMapBase = 102, kBytes = 32;
    std::uint16_t map = 0;
    std::uint8_t bits = 0;
    if (!read_tss(cx, kMapBase, &map, sizeof map, 0))
        return cx.gp(0);
    if (!read_tss(cx, map - kBytes + vector / 8u, &bits, sizeof bits, 0))
        return cx.fault.vector == Vector::PF ? false : cx.gp(0);
    to_protected_mode = (bits >> vector % 8 & 1) != 0;
    return true;
}

void note(SystemContext& cx, std::uint8_t vector) {
    cx.events.add({.kind = TakenEvent::Kind::Software, .vector = vector, .rip = cx.state.rip});
}

bool through_idt(SystemContext& cx, std::uint8_t vector, Event::Source source, std::uint64_t next) {
    note(cx, vector);
    if (!deliver_event(cx, {.vector = vector, .source = source, .return_rip = next}))
        return false;
    cx.step_trap = false; // TF is cleared with the transfer, and no trap is left over
    return true;
}

} // namespace

bool software_interrupt(SystemContext& cx, std::uint8_t vector, std::uint64_t next) {
    if (cx.v86()) {
        bool to_protected_mode = true;
        const bool vme = (cx.state.cr4 & CR4_VME) != 0;
        if (vme && !redirection_bit(cx, vector, to_protected_mode))
            return false;
        if (!to_protected_mode) {
            note(cx, vector);
            const Event event{
                .vector = vector, .source = Event::Source::Software, .return_rip = next};
            return deliver_real(cx, event, 0, kVectorTableLimit);
        }
        if (cx.iopl() < 3)
            return cx.gp(0);
    }
    return through_idt(cx, vector, Event::Source::Software, next);
}

bool int3(SystemContext& cx, std::uint64_t next) {
    return through_idt(cx, 3, Event::Source::Software, next);
}

bool into(SystemContext& cx, std::uint64_t next) {
    return through_idt(cx, 4, Event::Source::Software, next);
}

bool int1(SystemContext& cx, std::uint64_t next) {
    return through_idt(cx, 1, Event::Source::Privileged, next);
}

} // namespace doppel::cpu::x86
