// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>
#include <string>

#include "block/io_buffer.hpp"

using namespace doppel::block;

namespace {

std::span<std::byte> bytes(std::string& text) {
    return std::as_writable_bytes(std::span{text.data(), text.size()});
}

} // namespace

TEST_CASE("a buffer of pieces is cut and copied as if it were one") {
    std::string a = "abc";
    std::string b = "defgh";
    std::string c = "ij";
    const std::array<iovec, 3> list{{{a.data(), 3}, {b.data(), 5}, {c.data(), 2}}};
    const IoBuffer whole{list};
    CHECK(whole.size() == 10);
    const auto part = whole.slice(2, 7).slice(0, 7);
    std::string out(7, ' ');
    part.copy_to(bytes(out));
    CHECK(out == "cdefghi");
    CHECK(part.pieces().size() == 3);
    CHECK(part.pieces(0, 2).size() == 2);
    CHECK(part.pieces(6).size() == 1);
    CHECK(part.contiguous() == nullptr);
    CHECK(whole.slice(4, 2).contiguous() == bytes(b).data() + 1);

    std::string in = "1234567";
    part.copy_from(bytes(in));
    CHECK(a + b + c == "ab1234567j");
    whole.slice(8, 2).fill(std::byte{'x'});
    CHECK(b + c == "23456xx");
}

TEST_CASE("zero bytes are told from others at every place") {
    for (std::size_t size = 0; size < 70; ++size) {
        std::string text(size, '\0');
        CHECK(all_zero(bytes(text)));
        for (std::size_t i = 0; i < size; ++i) {
            text[i] = 1;
            CHECK(!all_zero(bytes(text)));
            text[i] = 0;
        }
    }
}
