// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <x86intrin.h>

#include "machine/host_tsc.hpp"

using namespace doppel;
using machine::HostTsc;

namespace {

bool is_not_shifted(const HostTsc& tsc) {
    std::uint64_t offset = 1;
    return tsc.is_host_tsc(offset) && offset == 0;
}

} // namespace

TEST_CASE("host TSC: it is the host's until it is paused, and again when the guest starts over") {
    HostTsc tsc;
    CHECK(is_not_shifted(tsc));
    tsc.pause();
    tsc.resume();
    CHECK_FALSE(is_not_shifted(tsc));
    tsc.pause();
    const auto before = tsc.read();
    tsc.reset();
    const auto at_reset = tsc.read();
    CHECK(at_reset >= before);
    tsc.resume();
    CHECK(is_not_shifted(tsc));
    CHECK(tsc.read() >= at_reset);
    tsc.pause();
    tsc.reset();
    tsc.set(5'000, tsc.frequency_hz()); // another VM's after all
    tsc.resume();
    CHECK_FALSE(is_not_shifted(tsc));
    CHECK(tsc.read() < at_reset);
}

TEST_CASE("host TSC: it stands still while paused and goes on without a gap") {
    HostTsc tsc;
    tsc.pause();
    const auto frozen = tsc.read();
    CHECK(tsc.read() == frozen);
    const auto before = __rdtsc();
    tsc.resume();
    const auto after = tsc.read();
    CHECK(after >= frozen);
    CHECK(after - frozen <= __rdtsc() - before);
}

TEST_CASE("host TSC: a saved counter of nearly the host's rate is the host's own, shifted") {
    HostTsc tsc;
    const auto hz = tsc.frequency_hz() + tsc.frequency_hz() / 10'000; // 100 ppm more
    tsc.pause();
    tsc.set(1'000'000, hz);
    CHECK(tsc.read() == 1'000'000);
    CHECK(tsc.frequency_hz() == hz);
    tsc.resume();
    std::uint64_t offset = 0;
    REQUIRE(tsc.is_host_tsc(offset));
    const auto before = __rdtsc() + offset;
    const auto read = tsc.read();
    CHECK(before <= read);
    CHECK(read <= __rdtsc() + offset);
}

TEST_CASE("host TSC: a saved counter of another rate is scaled") {
    HostTsc tsc;
    const auto host_hz = tsc.frequency_hz();
    for (const std::uint64_t hz : {host_hz * 3, host_hz / 7}) {
        tsc.pause();
        tsc.set(5'000, hz);
        CHECK(tsc.read() == 5'000);
        tsc.resume();
        std::uint64_t offset = 0;
        CHECK(!tsc.is_host_tsc(offset));
        const auto outer_begin = __rdtsc();
        const auto first = tsc.read();
        const auto inner_begin = __rdtsc();
        while (__rdtsc() - inner_begin < 1'000'000) {
        }
        const auto inner_end = __rdtsc();
        const auto second = tsc.read();
        const auto outer_end = __rdtsc();
        // What passed lies between the inner and the outer pair of readings, at this rate.
        const auto ticks = static_cast<double>(second - first);
        const auto rate = static_cast<double>(hz) / static_cast<double>(host_hz);
        CHECK(ticks >= static_cast<double>(inner_end - inner_begin) * rate - 2);
        CHECK(ticks <= static_cast<double>(outer_end - outer_begin) * rate + 2);
    }
}
