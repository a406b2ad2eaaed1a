// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/cache/code_cache.hpp"

#include <cstring>
#include <vector>

#include <doctest/doctest.h>

#include "cpu/translator/emit/assembler.hpp"

namespace doppel::cpu::translator {
namespace {

struct Rig {
    Rig() : cache{std::move(*CodeCache::create(4 << 20))} {
        cache->reserve(64);
        cache->set_stale_entry(cache->memory().exec() + 32);
    }
    /// A block that returns `value` to its C caller.
    Block& add(std::uint64_t gpa, std::uint32_t value, std::uint64_t second_page = 0) {
        std::uint8_t* const exec = cache->free_begin();
        Assembler a{cache->memory().writable(exec), exec, cache->free_bytes()};
        a.mov_imm(kRax, value);
        a.byte(0x90);
        a.byte(0x90);
        a.ret();
        NewBlock block;
        block.key = {.gpa = gpa, .second_page = second_page, .mode = 0};
        block.begin = exec;
        block.far_entry = exec;
        block.end = a.here();
        block.guest_bytes = 4;
        const base::MutexLock lock{cache->mutex()};
        return cache->add_block(block);
    }
    static std::uint32_t call(const std::uint8_t* at) {
        std::uint32_t (*function)() = nullptr;
        std::memcpy(&function, &at, sizeof function);
        return function();
    }
    std::unique_ptr<CodeCache> cache;
};

TEST_CASE_FIXTURE(Rig, "a block is found by its key and can be executed") {
    add(0x1000, 7);
    add(0x1004, 8);
    const Block* const found = cache->find({.gpa = 0x1004, .second_page = 0, .mode = 0});
    REQUIRE(found != nullptr);
    CHECK(call(found->far_entry()) == 8);
    CHECK(cache->find({.gpa = 0x1004, .second_page = 0, .mode = 1}) == nullptr);
    CHECK(cache->find({.gpa = 0x1008, .second_page = 0, .mode = 0}) == nullptr);
}

TEST_CASE_FIXTURE(Rig, "a dead block is no longer found, its successor at the same place is") {
    for (std::uint32_t round = 0; round < 1000; ++round) {
        add(0x2000, round);
        const Block* const found = cache->find({.gpa = 0x2000, .second_page = 0, .mode = 0});
        REQUIRE(found != nullptr);
        CHECK(call(found->far_entry()) == round);
        CHECK(cache->invalidate_page(0x2000));
        CHECK(cache->find({.gpa = 0x2000, .second_page = 0, .mode = 0}) == nullptr);
    }
    CHECK_FALSE(cache->invalidate_page(0x2000));
}

TEST_CASE_FIXTURE(Rig, "the far entry of a dead block leads to the stale entry") {
    const Block& block = add(0x3000, 1);
    cache->invalidate_page(0x3000);
    const std::uint8_t* const at = block.far_entry();
    std::int32_t distance = 0;
    std::memcpy(&distance, at + 1, sizeof distance);
    CHECK(*at == 0xe9);
    CHECK(at + 5 + distance == cache->memory().exec() + 32);
}

TEST_CASE_FIXTURE(Rig, "links lead to the target while it lives, then back to asking") {
    std::uint8_t* const place = cache->memory().exec() + 8;
    const std::uint8_t* const unlinked = cache->memory().exec() + 48;
    const auto target_of = [&] {
        std::int32_t distance = 0;
        std::memcpy(&distance, place, sizeof distance);
        return place + 4 + distance;
    };
    Block& target = add(0x4000, 1);
    cache->link(place, unlinked, target, target.far_entry());
    CHECK(target_of() == target.far_entry());
    cache->invalidate_page(0x4000);
    CHECK(target_of() == unlinked);
    cache->link(place, unlinked, target, target.far_entry());
    CHECK(target_of() == unlinked);
}

TEST_CASE_FIXTURE(Rig, "links are used again, however often their target is made anew") {
    std::uint8_t* const base = cache->memory().exec();
    const auto target_of = [&](std::size_t place) {
        std::int32_t distance = 0;
        std::memcpy(&distance, base + place, sizeof distance);
        return base + place + 4 + distance;
    };
    for (std::uint32_t round = 0; round < 110'000; ++round) {
        Block& target = add(0x4000, 1);
        for (std::size_t place = 0; place < 40; place += 8)
            cache->link(base + place, base + 48, target, target.far_entry());
        REQUIRE(target_of(32) == target.far_entry());
        cache->invalidate_page(0x4000);
        REQUIRE(target_of(32) == base + 48);
    }
}

TEST_CASE_FIXTURE(Rig, "a block in two pages dies with either") {
    add(0x5ffe, 1, 0x9000);
    CHECK(cache->overlaps(0x9000, 1));
    CHECK(cache->invalidate_page(0x9000));
    CHECK(cache->find({.gpa = 0x5ffe, .second_page = 0x9000, .mode = 0}) == nullptr);
    CHECK_FALSE(cache->overlaps(0x5ffe, 2));
}

TEST_CASE_FIXTURE(Rig, "a block in two pages is forgotten by both, its neighbours are not") {
    add(0x1800, 1);
    add(0x1ffc, 5, 0x2000);
    add(0x1900, 2);
    CHECK(cache->invalidate_page(0x2000));
    CHECK(!cache->page_has_code(0x2000));
    CHECK(cache->find({.gpa = 0x1800, .second_page = 0, .mode = 0}) != nullptr);
    CHECK(cache->find({.gpa = 0x1900, .second_page = 0, .mode = 0}) != nullptr);
    add(0x3ffc, 6, 0x4000);
    CHECK(cache->invalidate_page(0x4000));
    CHECK(!cache->page_has_code(0x3000)); // nothing is left there
}

TEST_CASE_FIXTURE(Rig, "a write beside the code of a page does not overlap") {
    add(0x6100, 1);
    CHECK_FALSE(cache->overlaps(0x60fc, 4));
    CHECK(cache->overlaps(0x60fc, 5));
    CHECK(cache->overlaps(0x6103, 1));
    CHECK_FALSE(cache->overlaps(0x6104, 1));
}

TEST_CASE_FIXTURE(Rig, "reset names the pages that had code and gives the room back") {
    add(0x7000, 1);
    add(0x8000, 1);
    std::vector<std::uint64_t> pages;
    cache->reset([&](std::uint64_t page) { pages.push_back(page); });
    CHECK(pages.size() == 2);
    CHECK(cache->code_bytes() == 64);
    CHECK(cache->find({.gpa = 0x7000, .second_page = 0, .mode = 0}) == nullptr);
}

TEST_CASE_FIXTURE(Rig, "a host address finds its block") {
    const Block& one = add(0x1000, 1);
    const Block& two = add(0x2000, 2);
    CHECK(cache->find_by_host(one.begin + 3) == &one);
    CHECK(cache->find_by_host(two.begin) == &two);
    CHECK(cache->find_by_host(cache->memory().exec()) == nullptr);
}

} // namespace
} // namespace doppel::cpu::translator
