// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Descriptors in memory: reading, marking, unpacking. Intel SDM Vol. 3A §3.4.5, §5.8.3, §8.2.2.
///
///   high dword  31..24 base | G D/B L AVL | limit 19..16 | P DPL S type | 23..16 base
///   low dword   31..16 base 15..0         | 15..0 limit 15..0
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

namespace system_type { // of descriptors with S clear; 32-bit names are the 64-bit ones in long
                        // mode
inline constexpr unsigned kTss16 = 1, kLdt = 2, kBusy = 2, kCallGate16 = 4, kTaskGate = 5,
                          kInterruptGate16 = 6, kTrapGate16 = 7, kTss32 = 9, kCallGate32 = 12,
                          kInterruptGate32 = 14, kTrapGate32 = 15;
}

struct Descriptor {
    std::uint64_t low = 0;  // first 8 bytes
    std::uint64_t high = 0; // second 8 bytes of a 16-byte one
    std::uint64_t linear = 0;

    [[gnu::always_inline]] unsigned type() const { return low >> 40 & 15; }
    [[gnu::always_inline]] bool is_system() const { return (low >> 44 & 1) == 0; }
    [[gnu::always_inline]] unsigned dpl() const { return low >> 45 & 3; }
    [[gnu::always_inline]] bool present() const { return (low >> 47 & 1) != 0; }
    [[gnu::always_inline]] bool is_long() const { return (low >> 53 & 1) != 0; }
    [[gnu::always_inline]] bool default_big() const { return (low >> 54 & 1) != 0; }
    [[gnu::always_inline]] bool is_code() const { return !is_system() && (type() & 8) != 0; }
    [[gnu::always_inline]] bool is_data() const { return !is_system() && (type() & 8) == 0; }
    [[gnu::always_inline]] bool conforming() const { return is_code() && (type() & 4) != 0; }
    [[gnu::always_inline]] bool writable_data() const { return is_data() && (type() & 2) != 0; }
    [[gnu::always_inline]] bool readable() const { return is_data() || (type() & 2) != 0; }
    [[gnu::always_inline]] std::uint32_t limit() const {
        const auto raw = static_cast<std::uint32_t>((low & 0xffff) | (low >> 32 & 0xf0000));
        return (low >> 55 & 1) != 0 ? raw << 12 | 0xfff : raw;
    }
    [[gnu::always_inline]] std::uint64_t base() const {
        return (low >> 16 & 0xff'ffff) | (low >> 32 & 0xff00'0000);
    }
    [[gnu::always_inline]] std::uint64_t base64() const { return base() | high << 32; }

    // --- gates ---
    [[gnu::always_inline]] std::uint16_t gate_selector() const {
        return static_cast<std::uint16_t>(low >> 16);
    }
    [[gnu::always_inline]] std::uint32_t gate_offset() const {
        return static_cast<std::uint32_t>((low & 0xffff) | (low >> 32 & 0xffff'0000));
    }
    [[gnu::always_inline]] std::uint64_t gate_offset64() const {
        return gate_offset() | high << 32;
    }
    [[gnu::always_inline]] unsigned gate_parameters() const { return low >> 32 & 0x1f; }
    [[gnu::always_inline]] unsigned gate_ist() const { return low >> 32 & 7; }
};

[[gnu::always_inline]] inline bool is_null(std::uint16_t selector) { return (selector & ~3) == 0; }
/// Error code of a fault that names a selector.
[[gnu::always_inline]] inline std::uint32_t selector_error(std::uint16_t selector) {
    return selector & 0xfffcu;
}

/// The hidden part that a descriptor gives a segment register.
Segment unpack(const Descriptor& descriptor, std::uint16_t selector);
/// The hidden part of a null selector.
Segment null_segment(const Segment& old, std::uint16_t selector);

enum class Lookup : std::uint8_t {
    Found,
    Outside, // beyond the table's limit, or no LDT: the caller's fault, nothing is raised
    Faulted, // reading it faulted: cx.fault
};

/// The 8 bytes that `selector` names in GDT or LDT. It is not null.
Lookup find_descriptor(SystemContext& cx, std::uint16_t selector, Descriptor& out);
/// Reads the second half of a 16-byte system descriptor into `descriptor`.
Lookup extend_descriptor(SystemContext& cx, std::uint16_t selector, Descriptor& descriptor);

/// find_descriptor() with Outside raised as `vector` (error code: selector | ext).
[[nodiscard]] bool demand_descriptor(SystemContext& cx, std::uint16_t selector, Vector vector,
                                     std::uint32_t ext, Descriptor& out);

/// Sets type bits in the descriptor in memory (accessed 1, busy 2) unless they are set, as a locked
/// implicit supervisor access.
[[nodiscard]] bool mark_descriptor(SystemContext& cx, Descriptor& descriptor, unsigned type_bits);
/// Clears the busy bit of a TSS descriptor.
[[nodiscard]] bool clear_busy(SystemContext& cx, const Descriptor& descriptor);

} // namespace doppel::cpu::x86
