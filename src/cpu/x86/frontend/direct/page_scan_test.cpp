// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/page_scan.hpp"

#include <algorithm>
#include <initializer_list>

#include <doctest/doctest.h>

namespace {

using doppel::cpu::x86::frontend::has_rdtscp;
using doppel::cpu::x86::frontend::PageBytes;
using doppel::cpu::x86::frontend::secretive_instructions;
using Places = std::vector<std::uint16_t>;

/// A page of `mov rax,[rbp-8]`, with `code` at `offset`.
PageBytes page_with(std::initializer_list<std::uint8_t> code, std::size_t offset) {
    constexpr std::array<std::uint8_t, 4> kFiller{0x48, 0x8b, 0x45, 0xf8};
    PageBytes page;
    for (std::size_t i = 0; i < page.bytes.size(); ++i)
        page.bytes.at(i) = kFiller.at(i % 4);
    std::copy(code.begin(), code.end(),
              page.bytes.begin() + static_cast<std::ptrdiff_t>(PageBytes::kBefore + offset));
    return page;
}

} // namespace

TEST_CASE("instructions that tell what the host is are found") {
    CHECK(secretive_instructions(page_with({}, 0)).empty());
    CHECK(secretive_instructions(page_with({0x0f, 0xa2}, 400)) == Places{400}); // cpuid
    CHECK(secretive_instructions(page_with({0x0f, 0xa2}, 0)) == Places{0});
    CHECK(secretive_instructions(page_with({0x0f, 0x01, 0xd0}, 804)) == Places{804}); // xgetbv
    CHECK(secretive_instructions(page_with({0xf3, 0x0f, 0xc7, 0xf8}, 404)) == Places{404}); // rdpid
    // xsave64
    CHECK(secretive_instructions(page_with({0x48, 0x0f, 0xae, 0x27}, 404)) == Places{404});
    CHECK(secretive_instructions(page_with({0xcd, 0x80}, 404)) == Places{404});
    CHECK(secretive_instructions(page_with({0x0f, 0xa2, 0x0f, 0xa2}, 404)) == Places{404, 406});
}

TEST_CASE("others are not, nor the same bytes as operands") {
    CHECK(secretive_instructions(page_with({0x0f, 0x01, 0xd6}, 404)).empty()); // xtest
    CHECK(secretive_instructions(page_with({0x0f, 0xae, 0xe8}, 404)).empty()); // lfence
    CHECK(secretive_instructions(page_with({0x0f, 0xc7, 0xf0}, 404)).empty()); // rdrand
    CHECK(secretive_instructions(page_with({0xb8, 0x0f, 0xa2, 0x00, 0x00}, 404)).empty());
    const std::initializer_list<std::uint8_t> lea{0x48, 0x8d, 0x05, 0x0f, 0x01, 0, 0};
    CHECK(secretive_instructions(page_with(lea, 404)).empty());
}

TEST_CASE("RDTSCP is found and told from the others") {
    const std::initializer_list<std::uint8_t> rdtscp{0x0f, 0x01, 0xf9};
    CHECK(has_rdtscp(page_with(rdtscp, 404)));
    CHECK(
        has_rdtscp(page_with({0x90, 0x90, 0x0f, 0x01, 0xf9}, 4092))); // which ends on the next page
    CHECK(secretive_instructions(page_with(rdtscp, 404)).empty());
    auto half = page_with({0x90, 0x90, 0x0f, 0x01, 0xf9}, 4092);
    half.end = PageBytes::kBefore + PageBytes::kPage; // who knows what it is
    CHECK(secretive_instructions(half) == Places{4094});
    CHECK_FALSE(has_rdtscp(half));
    CHECK_FALSE(has_rdtscp(page_with({0x0f, 0x31}, 404)));                // rdtsc
    CHECK_FALSE(has_rdtscp(page_with({0xb8, 0x0f, 0x01, 0xf9, 0}, 404))); // mov eax,…
    CHECK_FALSE(has_rdtscp(page_with({0x0f, 0x01, 0xf8}, 404)));          // swapgs
}

TEST_CASE("who begins to read amid operands is given the time to get into step") {
    // 30 of add al,4, which read the same from their second byte on; mov eax,0xa20f
    auto page = page_with({0xb8, 0x0f, 0xa2, 0x00, 0x00}, 404);
    std::fill_n(page.bytes.begin() + PageBytes::kBefore + 404 - 60, 60, std::uint8_t{4});
    CHECK(secretive_instructions(page).empty());
}

TEST_CASE("where the page before is not known, what may be prefixes may begin it") {
    auto page = page_with({0xc3, 0x48, 0x0f, 0xc7, 0x64, 0x24, 0x40}, 40); // xsavec64
    CHECK(secretive_instructions(page) == Places{41, 42});
    page.first = 0;
    CHECK(secretive_instructions(page) == Places{41});
}

TEST_CASE("one instruction") {
    const auto is = [](std::initializer_list<std::uint8_t> code) {
        return doppel::cpu::x86::frontend::is_secretive({code.begin(), code.size()});
    };
    CHECK(is({0x0f, 0xa2}));
    CHECK(is({0x48, 0x0f, 0xae, 0x27}));
    CHECK(is({0xcd, 0x80}));
    CHECK(is({0x66, 0x0f})); // who knows
    CHECK_FALSE(is({0x0f, 0x85, 0xfb, 0, 0, 0}));
    CHECK_FALSE(is({0x90, 0x0f, 0xa2}));
}

TEST_CASE("what is reached from code that was executed") {
    using doppel::cpu::x86::frontend::reached_instructions;
    std::vector<std::uint8_t> code(PageBytes::kPage, 0x90);
    const std::initializer_list<std::uint8_t> test{
        0x74, 0x03,                   // 0: je 5
        0x0f, 0xa2,                   // 2: cpuid
        0xc3,                         // 4: ret
        0xb8, 0x0f, 0xa2, 0x00, 0x00, // 5: mov eax
        0xeb, 0x04,                   // 10: jmp 16
        0x0f, 0xa2,                   // 12: not reached
        0x90, 0x90,                   //
        0xe8, 0x02, 0x00, 0x00, 0x00, // 16: call 23
        0x0f, 0xa2,                   // 21: does it return?
        0x0f, 0xa2,                   // 23: cpuid
        0x75, 0x7f,                   // 25: jne 154
        0xff, 0xe0,                   // 27: jmp rax
    };
    std::ranges::copy(test, code.begin());
    const auto reached = reached_instructions(code, {0});
    for (const std::size_t at : {0, 2, 4, 5, 10, 16, 23, 25, 27, 154, 155, 4095})
        CHECK(reached.begins.test(at));
    CHECK(reached.begins.count() == 9 + 4096 - 154);
    CHECK(reached.outside.empty());
    CHECK(reached_instructions(code, {}).begins.none());
    CHECK(reached_instructions(code, {4095}).begins.count() == 1);
    code[4094] = 0xeb; // jmp 4112
    code[4095] = 0x10;
    CHECK(reached_instructions(code, {4094}).outside == std::vector<std::int64_t>{4112});
}

TEST_CASE("one whose second byte is on the next page is found") {
    CHECK(secretive_instructions(page_with({0x90, 0x90, 0x90, 0x0f, 0xa2}, 4092)) == Places{4095});
    CHECK(secretive_instructions(page_with({0x90, 0x90, 0x90, 0x0f, 0xaf}, 4092)).empty()); // imul
    auto page = page_with({0x90, 0x90, 0x90, 0x0f, 0xaf}, 4092);
    page.end = PageBytes::kBefore + PageBytes::kPage; // not known
    CHECK(secretive_instructions(page) == Places{4095});
}
