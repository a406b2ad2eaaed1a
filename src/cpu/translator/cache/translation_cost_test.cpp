// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "cpu/translator/cache/translation_cost.hpp"

namespace doppel::cpu::translator {
namespace {

/// `hot` bytes behind both entries, for 10 of the guest.
NewBlock block_of(const std::uint8_t* code, std::size_t hot) {
    NewBlock block;
    block.begin = code;
    block.hot_begin = code + 20;
    block.hot_end = code + 20 + hot;
    block.body_end = block.hot_end + 30;
    block.end = block.body_end + 50;
    block.guest_bytes = 12;
    block.hot_guest_bytes = 10;
    return block;
}

TEST_CASE("translation cost: the median is of the hot path, without entries and exits") {
    const std::uint8_t code[2000] = {};
    TranslationCost cost;
    CHECK(cost.median_percent() == 0);
    cost.add(block_of(code, 20), 3, 0);
    CHECK(cost.median_percent() == 200);
    cost.add(block_of(code, 30), 3, 0);
    cost.add(block_of(code, 900), 4, 0); // beyond what is told apart
    CHECK(cost.median_percent() == 300);
    CHECK(cost.instructions() == 10);
    CHECK(cost.ns_per_instruction() == 0); // none of them was timed
}

TEST_CASE("translation cost: one translation in 16 is timed, unless the host was elsewhere") {
    const std::uint8_t code[2000] = {};
    TranslationCost cost;
    int timed = 0, all = 0;
    for (; all < 160 || (cost.ns_per_instruction() == 0 && all < 16'000); ++all) {
        const std::uint64_t begun = cost.begin();
        timed += begun != 0 ? 1 : 0;
        volatile int work = 0;
        for (int k = 0; begun != 0 && k < 100'000; ++k)
            work = work + 1;
        cost.add(block_of(code, 20), 2, begun);
    }
    CHECK(timed == all / 16);
    CHECK(cost.ns_per_instruction() > 1'000);
    CHECK(cost.ns_per_instruction() < 1'000'000'000);
}

TEST_CASE("translation cost: a loop takes time, but is no block of its own") {
    const std::uint8_t code[2000] = {};
    TranslationCost cost;
    NewBlock loop = block_of(code, 400);
    loop.loop = true;
    cost.add(loop, 20, 0);
    CHECK(cost.median_percent() == 0);
    CHECK(cost.instructions() == 20);
}

} // namespace
} // namespace doppel::cpu::translator
