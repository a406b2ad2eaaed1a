// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/register_loop.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

namespace {

using Bytes = std::initializer_list<std::uint8_t>;

/// Offsets of `code`, which begins at `place` of a page, at which one is in such a loop.
std::vector<std::size_t> places_in_loops(Bytes code, std::size_t place = 1000) {
    std::vector<std::uint8_t> page(4096, 0xcc); // int3
    std::ranges::copy(code, page.begin() + static_cast<std::ptrdiff_t>(place));
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < code.size(); ++i)
        if (doppel::cpu::x86::frontend::in_register_loop(page, place + i))
            places.push_back(i);
    return places;
}

using Places = std::vector<std::size_t>;

} // namespace

TEST_CASE("a loop on registers") {
    const Bytes code{
        0x31, 0xc9,             // 0: xor ecx,ecx
        0x48, 0x01, 0xd0,       // 2: add rax,rdx
        0x48, 0xf7, 0xf3,       // 5: div rbx
        0x48, 0x8d, 0x40, 0x01, // 8: lea rax,[rax+1]
        0xff, 0xc9,             // 12: dec ecx
        0x75, 0xf2,             // 14: jnz 2
        0xc3,                   // 16: ret
    };
    CHECK(places_in_loops(code) == Places{2, 5, 8, 12, 14});
    CHECK(places_in_loops(code, 4096 - code.size()) == Places{2, 5, 8, 12, 14});
}

TEST_CASE("a loop with a jump ahead in it") {
    CHECK(places_in_loops({
              0xd8, 0xc1, // 0: fadd st(0),st(1)
              0x74, 0x02, // 2: je 6
              0xff, 0xc0, // 4: inc eax
              0xff, 0xc9, // 6: dec ecx
              0x75, 0xf6, // 8: jnz 0
          }) == Places{0, 2, 4, 6, 8});
}

TEST_CASE("what is in no such loop") {
    // memory: read, written; the stack; a call; the system
    CHECK(places_in_loops({0x48, 0x03, 0x07, 0xff, 0xc9, 0x75, 0xf9}).empty());
    CHECK(places_in_loops({0x48, 0x89, 0x07, 0xff, 0xc9, 0x75, 0xf9}).empty());
    CHECK(places_in_loops({0x50, 0x58, 0xff, 0xc9, 0x75, 0xfa}).empty());
    CHECK(places_in_loops({0xe8, 0, 0, 0, 0, 0xff, 0xc9, 0x75, 0xf7}).empty());
    CHECK(places_in_loops({0x0f, 0xa2, 0xff, 0xc9, 0x75, 0xfa}).empty());
    CHECK(places_in_loops({0x0f, 0x31, 0xff, 0xc9, 0x75, 0xfa}).empty());
    CHECK(places_in_loops({0xf3, 0xaa, 0xff, 0xc9, 0x75, 0xfa}).empty());
    // a return in it, one that begins before the page, no instruction, into one's midst
    CHECK(places_in_loops({0x74, 0x01, 0xc3, 0xff, 0xc9, 0x75, 0xf9}) == Places{});
    CHECK(places_in_loops({0xff, 0xc9, 0x75, 0xfa}, 0).empty());
    CHECK(places_in_loops({0x06, 0xff, 0xc9, 0x75, 0xfb}).empty());
    CHECK(places_in_loops({0xb8, 1, 0, 0, 0, 0xff, 0xc9, 0x75, 0xf8}).empty());
}

TEST_CASE("of two loops in each other the inner one counts") {
    CHECK(places_in_loops({
              0xff, 0xc0, // 0: inc eax
              0xff, 0xc9, // 2: dec ecx
              0x75, 0xfc, // 4: jnz 2
              0xff, 0xca, // 6: dec edx
              0x75, 0xf6, // 8: jnz 0
          }) == Places{2, 4});
}
