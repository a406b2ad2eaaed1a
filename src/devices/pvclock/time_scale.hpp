// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The multiplier and shift by which a guest turns TSC ticks into nanoseconds (Linux 6.1
/// Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW):
///     ns = (shift >= 0 ? ticks << shift : ticks >> -shift) * mul >> 32
#include <cstdint>

namespace doppel::devices {

struct TimeScale {
    std::uint32_t mul = 0; // at least 2^31: every bit of it counts
    std::int8_t shift = 0;

    /// The largest multiplier that never runs ahead of `hz`; slow by less than 2^-31. `hz` from 1
    /// to 2^62.
    static constexpr TimeScale of(std::uint64_t hz) {
        Wide ticks = hz; // ticks per second after the shift: in (10^9, 2·10^9]
        std::int8_t shift = 0;
        for (; ticks <= kSecond; ticks <<= 1)
            ++shift;
        Wide second = kSecond;
        for (; ticks > 2 * second; second <<= 1)
            --shift;
        return {static_cast<std::uint32_t>((second << 32) / ticks), shift};
    }

    constexpr std::uint64_t to_ns(std::uint64_t ticks) const {
        ticks = shift >= 0 ? ticks << shift : ticks >> -shift;
        return static_cast<std::uint64_t>(Wide{ticks} * mul >> 32);
    }

private:
    __extension__ using Wide = unsigned __int128;
    static constexpr std::uint64_t kSecond = 1'000'000'000;
};

} // namespace doppel::devices
