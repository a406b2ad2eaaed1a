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
        block.landing = lands;
        const base::MutexLock lock{cache->mutex()};
        return cache->add_block(block);
    }
    /// Blocks of pages from `gpa` on, one each, until the arena is full; how many.
    std::uint64_t fill_arena(std::uint64_t gpa) {
        std::uint64_t blocks = 0;
        for (; !cache->full(); ++blocks)
            add(gpa + blocks * 0x1000, static_cast<std::uint32_t>(blocks));
        return blocks;
    }
    const Block* find(std::uint64_t gpa) const {
        return cache->find({.gpa = gpa, .second_page = 0, .mode = 0});
    }
    static const std::uint8_t* target_of(const std::uint8_t* place) {
        std::int32_t distance = 0;
        std::memcpy(&distance, place, sizeof distance);
        return place + 4 + distance;
    }
    static std::uint32_t call(const std::uint8_t* at) {
        std::uint32_t (*function)() = nullptr;
        std::memcpy(&function, &at, sizeof function);
        return function();
    }
    std::unique_ptr<CodeCache> cache;
    bool lands = false; // the next block
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
    Block& target = add(0x4000, 1);
    cache->link(place, unlinked, target, target.far_entry());
    CHECK(target_of(place) == target.far_entry());
    cache->invalidate_page(0x4000);
    CHECK(target_of(place) == unlinked);
    cache->link(place, unlinked, target, target.far_entry());
    CHECK(target_of(place) == unlinked);
}

TEST_CASE_FIXTURE(Rig, "links are used again, however often their target is made anew") {
    std::uint8_t* const base = cache->memory().exec();
    for (std::uint32_t round = 0; round < 110'000; ++round) {
        if (cache->full() && !cache->next_arena())
            cache->recycle();
        Block& target = add(0x4000, 1);
        for (std::size_t place = 0; place < 40; place += 8)
            cache->link(base + place, base + 48, target, target.far_entry());
        REQUIRE(target_of(base + 32) == target.far_entry());
        cache->invalidate_page(0x4000);
        REQUIRE(target_of(base + 32) == base + 48);
    }
}

TEST_CASE_FIXTURE(Rig, "a block in two pages dies with either") {
    add(0x5ffe, 1, 0x9000);
    CHECK(cache->overlaps(0x9000, 1));
    CHECK(cache->invalidate_page(0x9000));
    CHECK(cache->find({.gpa = 0x5ffe, .second_page = 0x9000, .mode = 0}) == nullptr);
    CHECK_FALSE(cache->overlaps(0x5ffe, 2));
}

TEST_CASE_FIXTURE(Rig, "code cache: what a page had before it was made anew is still its code") {
    add(0x7100, 1);
    add(0x7200, 2);
    add(0x8ffe, 3, 0x7000);
    const base::MutexLock lock{cache->mutex()};
    cache->supersede_page(0x7000);
    CHECK(find(0x7100) == nullptr);
    CHECK(find(0x7200) == nullptr);
    CHECK(cache->find({.gpa = 0x8ffe, .second_page = 0x7000, .mode = 0}) != nullptr);
    CHECK(cache->blocks_in(0x7000).size() == 2);
    CHECK(cache->overlaps(0x7101, 1)); // by who made it again, a write is a write to code
    CHECK(cache->invalidate_page(0x7000));
    CHECK_FALSE(cache->page_has_code(0x7000));
    CHECK_FALSE(cache->overlaps(0x7101, 1));
    cache->supersede_page(0x7000); // nothing to do
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

/// Arenas of 64 KiB hold blocks of 8 bytes: what a page of a guest has here.
struct SmallRig : Rig {
    static constexpr std::uint64_t kStep = std::uint64_t{1} << 32;
    SmallRig() {
        cache = std::move(*CodeCache::create(CodeCache::kArenas * 2 * CodeCache::kBlockBytes + 64));
        cache->reserve(64);
        cache->set_stale_entry(cache->memory().exec() + 32);
    }
    void fill_all() {
        for (std::uint64_t i = 0; i < CodeCache::kArenas; ++i) {
            per_arena = fill_arena(i * kStep);
            CHECK(cache->next_arena() == (i + 1 < CodeCache::kArenas));
        }
    }
    std::uint64_t per_arena = 0;
};

TEST_CASE_FIXTURE(SmallRig, "a full cache loses what it was filled with first, and only that") {
    fill_all();
    REQUIRE(per_arena > 1000);
    const std::uint64_t bytes = cache->code_bytes();
    const std::vector<std::uint64_t> pages = cache->recycle();
    CHECK(pages.size() == per_arena);
    CHECK(cache->evictions() == 1);
    CHECK(cache->code_bytes() + per_arena * 8 <= bytes);
    for (std::uint64_t i = 0; i < per_arena; ++i) {
        REQUIRE(find(i * 0x1000) == nullptr);
        REQUIRE_FALSE(cache->page_has_code(i * 0x1000));
        for (std::uint64_t arena = 1; arena < CodeCache::kArenas; ++arena) {
            const Block* const kept = find(arena * kStep + i * 0x1000);
            REQUIRE(kept != nullptr);
            REQUIRE(call(kept->far_entry()) == i);
            REQUIRE(cache->find_by_host(kept->begin + 2) == kept);
        }
    }
    CHECK_FALSE(cache->full());
    CHECK(call(add(0, 77).far_entry()) == 77);
    CHECK(find(0) != nullptr);
}

TEST_CASE_FIXTURE(SmallRig, "a page with blocks in two arenas has code until both are emptied") {
    add(0x1004, 5);
    REQUIRE(cache->next_arena());
    add(0x1008, 6);
    add(0x1ffc, 7, 0x2000);
    while (cache->next_arena()) {
    }
    CHECK(cache->recycle().empty());
    CHECK(find(0x1004) == nullptr);
    CHECK(find(0x1008) != nullptr);
    CHECK(cache->page_has_code(0x1000));
    CHECK(cache->recycle().size() == 2);
    CHECK_FALSE(cache->page_has_code(0x1000));
    CHECK_FALSE(cache->page_has_code(0x2000));
}

TEST_CASE_FIXTURE(SmallRig, "jumps into an emptied arena ask again") {
    Block& target = add(0x1000, 1);
    std::uint8_t* const place = cache->memory().exec() + 8; // in no arena
    const std::uint8_t* const unlinked = cache->memory().exec() + 48;
    cache->link(place, unlinked, target, target.far_entry());
    CHECK(target_of(place) == target.far_entry());
    fill_all();
    cache->recycle();
    CHECK(target_of(place) == unlinked);
}

TEST_CASE_FIXTURE(SmallRig, "jumps that were in an emptied arena are not put back there") {
    const Block& source = add(0x1000, 1);
    auto* const place = cache->memory().exec() + (source.begin - cache->memory().exec()) + 8;
    fill_arena(kStep);
    REQUIRE(cache->next_arena());
    Block& target = add(0x2000, 2);
    cache->link(place, cache->memory().exec() + 48, target, target.far_entry());
    for (std::size_t i = 2; i < CodeCache::kArenas; ++i)
        REQUIRE(cache->next_arena());
    cache->recycle(); // the source's
    const std::uint8_t* const now = target_of(place);
    CHECK(cache->invalidate_page(0x2000));
    CHECK(target_of(place) == now);
}

TEST_CASE_FIXTURE(Rig, "landings have numbers that are theirs until their arena is emptied") {
    CHECK(cache->next_landing() == 0);
    lands = true;
    add(0x1000, 1);
    CHECK(cache->next_landing() == 1);
    lands = false;
    add(0x1004, 1);
    CHECK(cache->next_landing() == 1);
    lands = true;
    for (std::uint32_t i = 1; i < CodeCache::kArenaLandings; ++i)
        add(0x2000, i);
    CHECK(cache->next_landing() == CodeCache::kNoLanding);
    for (std::uint32_t i = 1; i < CodeCache::kArenas; ++i) {
        REQUIRE(cache->next_arena());
        CHECK(cache->next_landing() == i * CodeCache::kArenaLandings);
        add(0x3000, i);
    }
    cache->recycle();
    CHECK(cache->next_landing() == 0);
    cache->recycle();
    CHECK(cache->next_landing() == CodeCache::kArenaLandings);
}

TEST_CASE_FIXTURE(SmallRig, "the table does not fill with what was dropped") {
    for (std::uint32_t round = 0; round < 40; ++round) {
        if (!cache->next_arena())
            cache->recycle();
        fill_arena(round * kStep);
        REQUIRE(find(kStep * 1000) == nullptr); // comes to an end
    }
    CHECK(cache->evictions() >= 30);
}

TEST_CASE_FIXTURE(Rig, "a host address finds its block") {
    const Block& one = add(0x1000, 1);
    const Block& two = add(0x2000, 2);
    CHECK(cache->find_by_host(one.begin + 3) == &one);
    CHECK(cache->find_by_host(two.begin) == &two);
    CHECK(cache->find_by_host(cache->memory().exec()) == nullptr);
}

/// What is out of the way is 16 bytes for each block.
struct SplitRig : Rig {
    SplitRig() {
        cache =
            std::move(*CodeCache::create(CodeCache::kArenas * 8 * CodeCache::kBlockBytes + 4096));
        cache->reserve(64, ColdCode::Apart);
        cache->set_stale_entry(cache->memory().exec() + 32);
    }
    Block& add_split(std::uint64_t gpa) {
        std::uint8_t* const exec = cache->free_begin();
        NewBlock block;
        block.key = {.gpa = gpa, .second_page = 0, .mode = 0};
        block.begin = block.far_entry = exec;
        block.end = exec + 24;
        block.cold_begin = cache->cold_begin();
        block.cold_end = block.cold_begin + 16;
        const base::MutexLock lock{cache->mutex()};
        return cache->add_block(block);
    }
};

TEST_CASE_FIXTURE(SplitRig, "bodies lie side by side, and so does what is out of the way") {
    const Block& one = add_split(0x1000);
    const Block& two = add_split(0x2000);
    CHECK(two.begin == one.end());
    CHECK(two.cold_begin == one.cold_end());
    CHECK(cache->find_by_host(one.begin) == &one);
    CHECK(cache->find_by_host(two.begin + 23) == &two);
    CHECK(cache->find_by_host(one.cold_begin + 15) == &one);
    CHECK(cache->find_by_host(two.cold_begin) == &two);
    CHECK(cache->find_by_host(two.cold_end()) == nullptr);
    CHECK(cache->find_by_host(one.cold_begin - 1) == nullptr);
}

TEST_CASE_FIXTURE(SplitRig, "an arena is full when either part is, and both are emptied") {
    std::uint64_t blocks = 0;
    for (; !cache->full(); ++blocks)
        add_split(blocks * 0x1000);
    CHECK(blocks > 1000);
    const std::uint64_t full = cache->code_bytes();
    while (cache->next_arena()) {
    }
    cache->recycle();
    CHECK_FALSE(cache->full());
    CHECK(full - cache->code_bytes() >= blocks * 40);
}

TEST_CASE("huge pages keep what was written before, in both views, and come behind what follows") {
    constexpr std::size_t kSize = (std::size_t{5} << 20) + 4096; // two whole ones and a rest
    const auto memory = CodeMemory::create(kSize).value();
    const auto value_at = [](std::size_t at) { return static_cast<std::uint8_t>(at >> 12 | 1); };
    const auto write_pages = [&](std::size_t from) {
        for (std::size_t at = from; at < kSize; at += 3 * 4096)
            memory->write()[at] = value_at(at);
    };
    write_pages(0);
    memory->use_huge_pages(4096, std::size_t{2} << 20); // of the second a part
    memory->use_huge_pages(0, kSize);
    write_pages(4096); // meanwhile
    memory->wait_for_huge_pages();
    for (std::size_t at = 0; at < kSize; at += 4096) {
        const bool written = at % (3 * 4096) != std::size_t{2} * 4096;
        REQUIRE(memory->exec()[at] == (written ? value_at(at) : 0));
        REQUIRE(memory->write()[at] == memory->exec()[at]);
    }
}

} // namespace
} // namespace doppel::cpu::translator
