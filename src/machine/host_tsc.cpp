// SPDX-License-Identifier: Apache-2.0
#include "machine/host_tsc.hpp"

#include <x86intrin.h>

#include <ctime>

namespace doppel::machine {

namespace {

__extension__ using Wide = unsigned __int128;

struct Sample {
    std::uint64_t ticks;
    std::uint64_t ns;
};

std::uint64_t monotonic_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(now.tv_nsec);
}

/// The clock between two TSC reads that lie closest together: an interrupt in between shows as a
/// wide pair and loses.
Sample sample() {
    Sample best{};
    std::uint64_t narrowest = UINT64_MAX;
    for (int i = 0; i < 32; ++i) {
        const auto before = __rdtsc();
        const auto ns = monotonic_ns();
        const auto after = __rdtsc();
        if (after - before < narrowest) {
            narrowest = after - before;
            best = {before + (after - before) / 2, ns};
        }
    }
    return best;
}

std::uint64_t measure_frequency() {
    constexpr std::uint64_t kIntervalNs = 4'000'000;
    const auto first = sample();
    while (monotonic_ns() - first.ns < kIntervalNs) {
    }
    const auto second = sample();
    const auto ticks = static_cast<Wide>(second.ticks - first.ticks);
    const auto hz = static_cast<std::uint64_t>(ticks * 1'000'000'000u / (second.ns - first.ns));
    constexpr std::uint64_t kRound = 1000; // guests are told kHz: let both agree exactly
    return (hz + kRound / 2) / kRound * kRound;
}

constexpr unsigned kRatioBits = 40;
constexpr std::uint64_t kTolerancePpm = 250;

} // namespace

HostTsc::HostTsc() : host_hz_{measure_frequency()}, frequency_hz_{host_hz_}, offset_{0} {}

std::uint64_t HostTsc::scaled(std::uint64_t host) const noexcept {
    if (ratio_ == 0)
        return host;
    return static_cast<std::uint64_t>(static_cast<Wide>(host) * ratio_ >> kRatioBits);
}

std::uint64_t HostTsc::read() const noexcept {
    return is_paused_.load() ? frozen_.load() : scaled(__rdtsc()) + offset_.load();
}

bool HostTsc::is_host_tsc(std::uint64_t& host_offset) const noexcept {
    host_offset = offset_.load();
    return ratio_ == 0;
}

void HostTsc::pause() {
    frozen_.store(read());
    is_paused_.store(true);
}

void HostTsc::set(std::uint64_t ticks, std::uint64_t frequency_hz) {
    const auto difference =
        host_hz_ > frequency_hz ? host_hz_ - frequency_hz : frequency_hz - host_hz_;
    const bool is_same = difference <= host_hz_ / 1'000'000 * kTolerancePpm;
    ratio_ =
        is_same ? 0 : static_cast<std::uint64_t>((Wide{frequency_hz} << kRatioBits) / host_hz_);
    frequency_hz_ = frequency_hz;
    frozen_.store(ticks);
    is_reset_ = false;
}

void HostTsc::reset() {
    frozen_.store(scaled(__rdtsc()));
    is_reset_ = true;
}

void HostTsc::resume() {
    offset_.store(is_reset_ ? 0 : frozen_.load() - scaled(__rdtsc()));
    is_reset_ = false;
    is_paused_.store(false);
}

} // namespace doppel::machine
