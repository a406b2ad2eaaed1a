// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guards.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>

#include <doctest/doctest.h>

namespace {

using doppel::cpu::x86::frontend::Guard;
using Code = std::vector<std::uint8_t>;
using Places = std::vector<std::uint16_t>;
struct Place {
    std::uint16_t place, end = 0;
    bool operator==(const Place&) const = default;
};
using Guards = std::vector<Place>;

/// As the module's, which tells more of each.
template <typename... Arguments> Guards guards_of(const Arguments&... arguments) {
    Guards places;
    for (const Guard& guard : doppel::cpu::x86::frontend::guards_of(arguments...))
        places.push_back({guard.place, guard.end});
    return places;
}

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

/// At 0x100: two CPUIDs, behind a loop, in a function; other functions before it and behind it.
Code two_functions() {
    Code code = nops();
    put(code, 0x0f0, {0x31, 0xc0, 0xc3});       // xor eax,eax; ret
    put(code, 0x100, {0x53});                   // push rbx
    put(code, 0x101, {0x0f, 0xa2});             // cpuid
    put(code, 0x103, {0x75, 0xfc});             // jne 0x101
    put(code, 0x105, {0x74, 0x09});             // je 0x110
    put(code, 0x107, {0x5b, 0xc3});             // pop rbx; ret
    put(code, 0x110, {0x0f, 0xa2, 0x5b, 0xc3}); // cpuid; pop rbx; ret
    put(code, 0x120, {0x53, 0x5b, 0xc3});       // push rbx; pop rbx; ret
    return code;
}
Guards guards(const Code& code, const Places& secretive) {
    Code behind = code;
    behind.resize(3 * kPage, 0xc3);
    return guards_of(behind, kPage, secretive);
}

} // namespace

TEST_CASE("a function's beginning guards what is in it") {
    const Guards found = guards(two_functions(), {0x101, 0x103, 0x105});
    CHECK(found == Guards{{0x100, 0x120}});
    const Guard guard{.place = 0x100, .end = 0x120, .first = 0, .count = 3, .is_function = true};
    CHECK(guard.is_entry());
    for (const unsigned at : {0x100, 0x101, 0x11f})
        CHECK(guard.is_within(at));
    for (const unsigned at : {0x0ff, 0x120})
        CHECK_FALSE(guard.is_within(at));
    CHECK(guards(two_functions(), {}).empty());
}

TEST_CASE("one instruction guards itself, and so does what may begin a function") {
    CHECK(guards(two_functions(), {0x101}) == Guards{{0x101}});
    CHECK(guards(two_functions(), {0x101, 0x103, 0x110}) == Guards{{0x100, 0x120}, {0x110}});
}

TEST_CASE("each tells for which instructions it stands, in order of their places") {
    Code code = nops();
    put(code, 0x0f0, {0x31, 0xc0, 0xc3});                   // xor eax,eax; ret
    put(code, 0x100, {0x53, 0xb8, 0x0f, 0xa2, 0x0f, 0xa2}); // push rbx; mov eax
    put(code, 0x106, {0x0f, 0xa2, 0x0f, 0xa2, 0x5b, 0xc3}); // cpuid; cpuid; pop; ret
    code.resize(3 * kPage, 0xc3);
    const Places secretive{0x102, 0x106, 0x108}; // the first is an operand
    const auto found = doppel::cpu::x86::frontend::guards_of(code, kPage, secretive);
    REQUIRE(found.size() == 2);
    CHECK(found[0].place == 0x100);
    CHECK(found[0].first == 1);
    CHECK(found[0].count == 2);
    CHECK(found[0].is_function);
    CHECK(found[1].place == 0x102);
    CHECK(found[1].first == 0);
    CHECK(found[1].count == 1);
    CHECK_FALSE(found[1].is_function);
}

TEST_CASE("an instruction that is not known goes on") {
    Code code = two_functions();
    put(code, 0x200, {0x62, 0xd1, 0xfd, 0x48, 0x7f, 0x4c, 0x24, 0x0e}); // vmovdqa64
    put(code, 0x208, {0x0f, 0xa2, 0x0f, 0xa2, 0xc3});                   // cpuid; cpuid; ret
    CHECK(guards(code, {0x208, 0x20a}) == Guards{{0x200, 4096}});
    put(code, 0x200, {0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b}); // ud2
    CHECK(guards(code, {0x208, 0x20a}) == Guards{{0x208, 4096}});
}

TEST_CASE("what may be a label is surely no function") {
    Code code = two_functions();
    put(code, 0x200, {0x0f, 0x0b});                               // ud2
    put(code, 0x210, {0x31, 0xc0, 0x0f, 0xa2, 0x0f, 0xa2, 0xc3}); // xor eax,eax; cpuid; cpuid; ret
    code.resize(3 * kPage, 0xc3);
    const Places secretive{0x212, 0x214};
    const auto found = doppel::cpu::x86::frontend::guards_of(code, kPage, secretive);
    REQUIRE(found.size() == 1);
    CHECK(found[0].place == 0x210);
    CHECK_FALSE(found[0].is_function);
}

TEST_CASE("but not where something else leads into it") {
    Code code = two_functions();
    put(code, 0x0f2, {0xeb, 0x0f}); // jmp 0x103, of the other function
    CHECK(guards(code, {0x101, 0x103, 0x105}) == Guards{{0x101}, {0x103}, {0x105}});
    put(code, 0x0f2, {0xeb, 0x11}); // jmp 0x105
    CHECK(guards(code, {0x105, 0x107}) == Guards{{0x105}, {0x107}});
    code[kPage - 2] = 0x72; // jb 0x81, on the page before
    code[kPage - 1] = 0x7f;
    put(code, 0x081, {0x0f, 0xa2, 0x0f, 0xa2});
    CHECK(guards(code, {0x81, 0x83}) == Guards{{0x81}, {0x83}});
}

TEST_CASE("nor where a jump through a table may lead into it") {
    Code code = two_functions();
    put(code, 0x107, {0xff, 0xe0}); // jmp rax, behind the function's beginning
    CHECK(guards(code, {0x101, 0x103}) == Guards{{0x100, 0x120}});
    put(code, 0x300, {0x53, 0xff, 0xe0});                   // push rbx; jmp rax
    put(code, 0x310, {0x31, 0xc0});                         // case 2: xor eax,eax
    put(code, 0x312, {0x0f, 0xa2, 0x0f, 0xa2, 0x5b, 0xc3}); // case 3: cpuid; cpuid; pop rbx; ret
    CHECK(guards(code, {0x312, 0x314}) == Guards{{0x312}, {0x314}});
    put(code, 0x300, {0x53, 0x5b, 0xc3}); // pop rbx; ret
    CHECK(guards(code, {0x312, 0x314}) == Guards{{0x310, 4096}});
}

TEST_CASE("what a table leads to is no function's beginning, if the table is to be had") {
    // At 0x400: cpuid; a switch, whose cases come back to the second CPUID.
    Code code = nops();
    put(code, 0x3f0, {0x31, 0xc0, 0xc3});                         // xor eax,eax; ret
    put(code, 0x400, {0x53, 0x0f, 0xa2});                         // push rbx; cpuid
    put(code, 0x403, {0x48, 0x8d, 0x3d, 0xf6, 0x1b, 0x00, 0x00}); // lea rdi,[0x2000]
    put(code, 0x40a, {0x48, 0x63, 0x04, 0xb7});                   // movsxd rax,[rdi+rsi*4]
    put(code, 0x40e, {0x48, 0x01, 0xf8, 0xff, 0xe0});             // add rax,rdi; jmp rax
    put(code, 0x413, {0x0f, 0xa2, 0x5b, 0xc3});                   // cpuid; pop rbx; ret
    put(code, 0x417, {0x31, 0xc0, 0xeb, 0xf8});                   // xor eax,eax; jmp 0x413
    constexpr std::uint64_t kLinear = 0x7000'0000;                // of the page
    std::vector<std::int32_t> table{0x413 - 0x2000, 0x417 - 0x2000, 0};
    const auto read = [&](std::uint64_t linear, std::span<std::uint8_t> bytes) {
        const std::uint64_t offset = linear - (kLinear + 0x2000);
        if (offset + bytes.size() > table.size() * sizeof table[0])
            return false;
        std::memcpy(bytes.data(), reinterpret_cast<const char*>(table.data()) + offset,
                    bytes.size());
        return true;
    };
    Code behind = code;
    behind.resize(3 * kPage, 0xc3);
    const Places secretive{0x401, 0x413};
    const auto found = [&](const doppel::cpu::x86::frontend::ReadMemory& memory) {
        return guards_of(behind, kPage, secretive, kLinear - kPage, memory);
    };
    CHECK(found({}) == Guards{{0x401}, {0x413}});
    CHECK(found(read) == Guards{{0x400, 4096}});
    table = {0x413 - 0x2000}; // the other may be a function that goes on in this one
    CHECK(found(read) == Guards{{0x401}, {0x413}});
    table = {0x413 - 0x2000, 0x417 - 0x2000};
    behind[kPage + 0x412] = 0xe1; // jmp rcx
    CHECK(found(read) == Guards{{0x401}, {0x413}});
    behind[kPage + 0x412] = 0xe0;
    behind[kPage + 0x3f0] = 0xeb; // jmp 0x40a: with another table
    behind[kPage + 0x3f1] = 0x18;
    CHECK(found(read) == Guards{{0x401}, {0x413}});
}

TEST_CASE("addresses in a table, too") {
    Code code = nops();
    put(code, 0x3f0, {0x31, 0xc0, 0xc3});                         // xor eax,eax; ret
    put(code, 0x400, {0x53, 0x0f, 0xa2});                         // push rbx; cpuid
    put(code, 0x403, {0xff, 0x24, 0xc5, 0x00, 0x20, 0x00, 0x70}); // jmp [rax*8+…]
    put(code, 0x40a, {0x0f, 0xa2, 0x5b, 0xc3});                   // cpuid; pop; ret
    put(code, 0x40e, {0x31, 0xc0, 0xeb, 0xf8});                   // jmp 0x40a
    constexpr std::uint64_t kLinear = 0x7000'0000;
    const auto read = [](std::uint64_t linear, std::span<std::uint8_t> bytes) {
        constexpr std::array<std::uint64_t, 3> kTable{kLinear + 0x40a, kLinear + 0x40e, 0};
        const std::uint64_t offset = linear - (kLinear + 0x2000);
        if (offset + bytes.size() > sizeof kTable)
            return false;
        std::memcpy(bytes.data(), reinterpret_cast<const char*>(kTable.data()) + offset,
                    bytes.size());
        return true;
    };
    code.resize(3 * kPage, 0xc3);
    const Places secretive{0x401, 0x40a};
    CHECK(guards_of(code, kPage, secretive) == Guards{{0x401}, {0x40a}});
    CHECK(guards_of(code, kPage, secretive, kLinear - kPage, read) == Guards{{0x400, 4096}});
}

TEST_CASE("where a loop begins that is jumped over no function does") {
    Code code = nops();
    put(code, 0x100, {0x53, 0x0f, 0xa2, 0xeb, 0x1d}); // push rbx; cpuid; jmp 0x122
    put(code, 0x110, {0x0f, 0xa2});                   // cpuid
    put(code, 0x122, {0x75, 0xec, 0x5b, 0xc3});       // jne 0x110; pop rbx; ret
    CHECK(guards(code, {0x101, 0x110}) == Guards{{0x100, 4096}});
    put(code, 0x103, {0x5b, 0xc3}); // pop rbx; ret: the loop may be a function's beginning
    CHECK(guards(code, {0x101, 0x110}) == Guards{{0x101}, {0x110}});
}

TEST_CASE("each function has its own, also behind a call that does not return, and behind UD2") {
    Code code = two_functions();
    put(code, 0x200, {0x0f, 0xa2, 0x0f, 0xa2, 0xe8, 0, 0x10, 0, 0}); // cpuid; cpuid; call
    put(code, 0x210, {0x53, 0x0f, 0xa2, 0x0f, 0xa2, 0x0f, 0x0b});    // push rbx; cpuid; cpuid; ud2
    put(code, 0x217, {0x0f, 0x1f, 0x80, 0, 0, 0, 0, 0x66, 0x90});    // nops
    put(code, 0x220, {0x53, 0x0f, 0xa2, 0x0f, 0xa2});                // push rbx; cpuid; cpuid
    CHECK(guards(code, {0x200, 0x202, 0x211, 0x213, 0x221, 0x223}) ==
          Guards{{0x200, 0x210}, {0x210, 0x220}, {0x220, 4096}});
    put(code, 0x2f0, {0xe8, 0x07, 0, 0, 0});                                     // call 0x2fc
    put(code, 0x2f5, {0x0f, 0xa2, 0xe8, 0, 0x10, 0, 0, 0x0f, 0xa2, 0x0f, 0xa2}); // unaligned
    CHECK(guards(code, {0x2fc, 0x2fe}) == Guards{{0x2fc, 4096}});
}

TEST_CASE("what began on the page before, or may be read out of step, guards itself") {
    Code code = nops();
    code[kPage - 2] = 0x31; // xor eax,eax
    code[kPage - 1] = 0xc0;
    put(code, 0, {0x0f, 0xa2, 0x0f, 0xa2});
    put(code, 0x100, {0xb8, 0x0f, 0xa2, 0x0f, 0xa2}); // mov eax
    CHECK(guards(code, {0, 2}) == Guards{{0}, {2}});
    CHECK(guards(code, {0x101, 0x103}) == Guards{{0x101}, {0x103}});
    const Code alone(code.begin() + kPage, code.end()); // the page before is not known
    CHECK(guards_of(alone, 0, Places{0, 2}) == Guards{{0}, {2}});
}
