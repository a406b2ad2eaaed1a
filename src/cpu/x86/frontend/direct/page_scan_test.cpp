// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/page_scan.hpp"

#include <algorithm>
#include <initializer_list>

#include <doctest/doctest.h>

namespace {

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

TEST_CASE("one whose second byte is on the next page is found") {
    CHECK(secretive_instructions(page_with({0x90, 0x90, 0x90, 0x0f, 0xa2}, 4092)) == Places{4095});
    CHECK(secretive_instructions(page_with({0x90, 0x90, 0x90, 0x0f, 0xaf}, 4092)).empty()); // imul
    auto page = page_with({0x90, 0x90, 0x90, 0x0f, 0xaf}, 4092);
    page.end = PageBytes::kBefore + PageBytes::kPage; // not known
    CHECK(secretive_instructions(page) == Places{4095});
}
