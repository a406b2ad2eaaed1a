// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>

#include "cpu/x86/frontend/dispatch/chaos.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

TEST_CASE("chaos: without a seed there is none") {
    Chaos chaos;
    chaos.seed(0, 3);
    CHECK_FALSE(chaos.enabled());
}

TEST_CASE("chaos: every kind of disturbance happens, and the seed decides when") {
    Chaos chaos;
    Chaos again;
    Chaos other_vcpu;
    chaos.seed(7, 0);
    again.seed(7, 0);
    other_vcpu.seed(7, 1);
    std::array<int, static_cast<std::size_t>(Chaos::Act::Safepoint) + 1> seen{};
    int same = 0;
    for (int i = 0; i < 1'000'000; ++i) {
        const Chaos::Act act = chaos.act();
        ++seen.at(static_cast<std::size_t>(act));
        REQUIRE(again.act() == act);
        same += other_vcpu.act() == act ? 1 : 0;
    }
    for (const int count : seen)
        CHECK(count > 0);
    CHECK(same < 999'000);
    CHECK(seen[0] > 500'000); // calms are long
}

TEST_CASE("chaos: a curtailed budget is enough for a block") {
    Chaos chaos;
    chaos.seed(1, 0);
    for (int i = 0; i < 10'000; ++i) {
        (void)chaos.act();
        CHECK(chaos.budget(1000) >= 64);
        CHECK(chaos.budget(5) == 5);
    }
}

} // namespace
} // namespace doppel::cpu::x86::frontend
