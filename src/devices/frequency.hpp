// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Ticks of a fixed frequency against VM time, without drift: tick n begins at the first nanosecond
/// for which ticks_at() gives n. Any thread.
#include <cstdint>

namespace doppel::devices {

class Frequency {
public:
    constexpr explicit Frequency(std::uint64_t hz) : hz_{hz == 0 ? 1 : hz} {}
    constexpr std::uint64_t hz() const { return hz_; }

    /// Whole ticks since VM time 0, modulo 2^64.
    constexpr std::uint64_t ticks_at(std::uint64_t ns) const {
        return static_cast<std::uint64_t>(Wide{ns} * hz_ / kSecond);
    }
    /// Begin of tick `ticks`; UINT64_MAX when that is beyond VM time.
    constexpr std::uint64_t ns_at(std::uint64_t ticks) const {
        const Wide ns = (Wide{ticks} * kSecond + (hz_ - 1)) / hz_;
        return ns > UINT64_MAX ? UINT64_MAX : static_cast<std::uint64_t>(ns);
    }

private:
    __extension__ using Wide = unsigned __int128;
    static constexpr std::uint64_t kSecond = 1'000'000'000;
    std::uint64_t hz_;
};

/// Saturating sum: deadlines far away are "never".
constexpr std::uint64_t add_saturated(std::uint64_t a, std::uint64_t b) {
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

} // namespace doppel::devices
