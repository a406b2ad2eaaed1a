// SPDX-License-Identifier: Apache-2.0
/// DR7: enable bits 2i and 2i+1, R/W in bits 17:16 + 4i, LEN in bits 19:18 + 4i. Vol. 3B §18.2.4.
#include "cpu/x86/system/exceptions.hpp"
#include "cpu/x86/system/linear_memory.hpp"

namespace doppel::cpu::x86 {

namespace {

enum class Watch : std::uint8_t { Execute, Write, Io, ReadWrite };

bool enabled(const SystemContext& cx, unsigned i) { return (cx.state.dr7 >> (2 * i) & 3) != 0; }
Watch watch_of(const SystemContext& cx, unsigned i) {
    return static_cast<Watch>(cx.state.dr7 >> (16 + 4 * i) & 3);
}
std::uint64_t length_of(const SystemContext& cx, unsigned i) {
    constexpr std::uint8_t lengths[] = {1, 2, 8, 4};
    return lengths[cx.state.dr7 >> (18 + 4 * i) & 3];
}

/// The watched range is aligned to its length; any byte in common counts.
bool overlaps(const SystemContext& cx, unsigned i, std::uint64_t start, std::uint32_t bytes) {
    const std::uint64_t length = length_of(cx, i);
    const std::uint64_t watched = cx.state.dr[i] & ~(length - 1);
    return start - watched < length || watched - start < bytes;
}

void note_port_access(SystemContext& cx, std::uint16_t port, std::uint32_t bytes) {
    if ((cx.state.dr7 & 0xff) == 0 || (cx.state.cr4 & CR4_DE) == 0)
        return;
    for (unsigned i = 0; i < 4; ++i)
        if (enabled(cx, i) && watch_of(cx, i) == Watch::Io && overlaps(cx, i, port, bytes))
            cx.debug_hits |= 1u << i;
}

/// Bit map of allowed ports in a 32-bit or 64-bit TSS (Vol. 1 §19.5.2): two bytes are always read.
bool bitmap_allows(SystemContext& cx, std::uint16_t port, std::uint32_t bytes) {
    const Segment& tr = cx.state.tr;
    constexpr std::uint32_t kMapBase = 102;
    if (!tr.present() || (tr.type() & 8) == 0 || tr.limit < kMapBase + 1)
        return cx.gp(0);
    std::uint16_t map = 0, ports = 0;
    if (!load_linear(cx, tr.base + kMapBase, map, Privilege::Supervisor))
        return false;
    const std::uint32_t offset = map + port / 8u;
    if (offset + 1 > tr.limit)
        return cx.gp(0);
    if (!load_linear(cx, tr.base + offset, ports, Privilege::Supervisor))
        return false;
    const std::uint32_t wanted = ((1u << bytes) - 1) << port % 8;
    return (ports & wanted) == 0 || cx.gp(0);
}

} // namespace

std::uint64_t instruction_breakpoints(const SystemContext& cx, std::uint64_t linear) {
    std::uint64_t hits = 0;
    for (unsigned i = 0; i < 4; ++i)
        if (enabled(cx, i) && watch_of(cx, i) == Watch::Execute && cx.state.dr[i] == linear)
            hits |= 1u << i;
    return hits;
}

void note_data_access(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                      AccessType access) {
    for (unsigned i = 0; i < 4; ++i) {
        const Watch watch = watch_of(cx, i);
        const bool wanted =
            watch == Watch::ReadWrite || (watch == Watch::Write && access == AccessType::Write);
        if (enabled(cx, i) && wanted && overlaps(cx, i, linear, bytes))
            cx.debug_hits |= 1u << i;
    }
}

bool check_io(SystemContext& cx, std::uint16_t port, std::uint32_t bytes) {
    if (!cx.protected_mode() || (!cx.v86() && cx.state.cpl <= cx.iopl()))
        return true;
    return bitmap_allows(cx, port, bytes); // V86 mode: whatever IOPL is
}

std::uint32_t read_port(SystemContext& cx, std::uint16_t port, std::uint32_t bytes) {
    note_port_access(cx, port, bytes);
    return static_cast<std::uint32_t>(cx.board.pio_read(port, static_cast<std::uint8_t>(bytes)));
}

void write_port(SystemContext& cx, std::uint16_t port, std::uint32_t bytes, std::uint32_t value) {
    note_port_access(cx, port, bytes);
    const std::uint64_t mask = (std::uint64_t{1} << bytes * 8) - 1;
    cx.board.pio_write(port, static_cast<std::uint8_t>(bytes), value & mask);
}

} // namespace doppel::cpu::x86
