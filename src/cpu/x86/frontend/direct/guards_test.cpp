// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guards.hpp"

#include <algorithm>
#include <initializer_list>

#include <doctest/doctest.h>

namespace {

using doppel::cpu::x86::frontend::Guard;
using doppel::cpu::x86::frontend::guards_of;
using Code = std::vector<std::uint8_t>;
using Places = std::vector<std::uint16_t>;
using Guards = std::vector<Guard>;

/// Two pages of NOP behind a RET; the second is the one that is asked about.
constexpr std::size_t kPage = 4096;
Code nops() {
    Code code(2 * kPage, 0x90);
    code[kPage - 1] = 0xc3;
    return code;
}
void put(Code& code, std::size_t offset, std::initializer_list<std::uint8_t> bytes) {
    std::ranges::copy(bytes, code.begin() + static_cast<std::ptrdiff_t>(kPage + offset));
}

/// At 0x100: two CPUIDs, behind a loop, in a function; another function before it.
Code two_functions() {
    Code code = nops();
    put(code, 0x0f0, {0x31, 0xc0, 0xc3});       // xor eax,eax; ret
    put(code, 0x100, {0x53});                   // push rbx
    put(code, 0x101, {0x0f, 0xa2});             // cpuid
    put(code, 0x103, {0x75, 0xfc});             // jne 0x101
    put(code, 0x105, {0x74, 0x09});             // je 0x110
    put(code, 0x107, {0x5b, 0xc3});             // pop rbx; ret
    put(code, 0x110, {0x0f, 0xa2, 0x5b, 0xc3}); // cpuid; pop rbx; ret
    return code;
}

} // namespace

TEST_CASE("a function's beginning guards what is in it") {
    const Guards one{{0x100, 0x110}};
    CHECK(guards_of(two_functions(), kPage, Places{0x101, 0x110}) == one);
    CHECK(guards_of(two_functions(), kPage, Places{}).empty());
    CHECK(one.front().is_entry());
}

TEST_CASE("but not where something else leads into it") {
    Code code = two_functions();
    put(code, 0x0f2, {0xeb, 0x1c}); // jmp 0x110, of the other function
    CHECK(guards_of(code, kPage, Places{0x101, 0x110}) == Guards{{0x100, 0x101}, {0x110, 0x110}});
    put(code, 0x0f2, {0xeb, 0x0d}); // jmp 0x101, from which 0x110 is reached
    CHECK(guards_of(code, kPage, Places{0x101, 0x110}) == Guards{{0x101, 0x101}, {0x110, 0x110}});
    code[kPage - 2] = 0x72; // jb 0x81, on the page before
    code[kPage - 1] = 0x7f;
    put(code, 0x081, {0x0f, 0xa2});
    CHECK(guards_of(code, kPage, Places{0x81}) == Guards{{0x81, 0x81}});
}

TEST_CASE("each function has its own, also behind a call that does not return") {
    Code code = two_functions();
    put(code, 0x200, {0x0f, 0xa2, 0x0f, 0xa2, 0xe8, 0, 0, 0, 0}); // cpuid; cpuid; call
    put(code, 0x210, {0x53, 0x0f, 0xa2, 0x0f, 0xa2});             // push rbx; cpuid; cpuid
    CHECK(guards_of(code, kPage, Places{0x101, 0x110, 0x200, 0x202, 0x211, 0x213}) ==
          Guards{{0x100, 0x110}, {0x200, 0x202}, {0x210, 0x213}});
}

TEST_CASE("what began on the page before, or may be read out of step, guards itself") {
    Code code = nops();
    code[kPage - 2] = 0x31; // xor eax,eax
    code[kPage - 1] = 0xc0;
    put(code, 0, {0x0f, 0xa2, 0x0f, 0xa2});
    CHECK(guards_of(code, kPage, Places{0, 2}) == Guards{{0, 0}, {2, 2}});
    const Code alone(code.begin() + kPage, code.end()); // the page before is not known
    CHECK(guards_of(alone, 0, Places{0, 2}) == Guards{{0, 0}, {2, 2}});
}
