// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Guest addresses as types of their own, so that a physical address never passes for a linear one.
#include <compare>
#include <cstdint>

namespace doppel::memory {

inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kPageMask = kPageBytes - 1;

/// Guest-physical address.
struct Gpa {
    std::uint64_t value = 0;
    constexpr auto operator<=>(const Gpa&) const = default;
    friend constexpr Gpa operator+(Gpa a, std::uint64_t bytes) { return {a.value + bytes}; }
    friend constexpr std::uint64_t operator-(Gpa a, Gpa b) { return a.value - b.value; }
    constexpr Gpa page() const { return {value & ~kPageMask}; }
    constexpr std::uint64_t offset_in_page() const { return value & kPageMask; }
    constexpr std::uint64_t page_number() const { return value / kPageBytes; }
};

/// Guest-virtual (x86: linear) address.
struct Gva {
    std::uint64_t value = 0;
    constexpr auto operator<=>(const Gva&) const = default;
    friend constexpr Gva operator+(Gva a, std::uint64_t bytes) { return {a.value + bytes}; }
    constexpr Gva page() const { return {value & ~kPageMask}; }
    constexpr std::uint64_t offset_in_page() const { return value & kPageMask; }
};

} // namespace doppel::memory
