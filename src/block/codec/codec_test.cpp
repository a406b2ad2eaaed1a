// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <random>

#include "block/codec/codec.hpp"

using namespace doppel::block::codec;

namespace {

std::vector<std::byte> text_like(std::size_t size) {
    std::mt19937 random{3};
    std::vector<std::byte> data(size);
    for (auto& byte : data)
        byte = static_cast<std::byte>("etaoin shrdlu"[random() % 13]);
    return data;
}

std::vector<std::byte> noise(std::size_t size) {
    std::mt19937 random{3};
    std::vector<std::byte> data(size);
    for (auto& byte : data)
        byte = static_cast<std::byte>(random());
    return data;
}

} // namespace

TEST_CASE("what is compressed comes back, with garbage behind it too") {
    for (const std::size_t size : {512u, 4096u, 65536u, 2u << 20}) {
        const auto data = text_like(size);
        for (const auto effort : {Effort::Fast, Effort::Best}) {
            std::vector<std::byte> out(size);
            auto packed = deflate(data, size, effort);
            REQUIRE(!packed.empty());
            packed.resize(packed.size() + 300, std::byte{0xa5});
            CHECK(inflate(packed, out).has_value());
            CHECK(out == data);
            auto frame = zstd(data, size, effort);
            REQUIRE(!frame.empty());
            frame.resize(frame.size() + 300, std::byte{0xa5});
            CHECK(unzstd(frame, out).has_value());
            CHECK(out == data);
        }
    }
}

TEST_CASE("data that does not become smaller is left alone") {
    const auto data = noise(65536);
    for (const auto effort : {Effort::Fast, Effort::Best}) {
        CHECK(deflate(data, data.size(), effort).empty());
        CHECK(zstd(data, data.size(), effort).empty());
    }
}

TEST_CASE("damaged, short and long streams are errors") {
    const auto data = text_like(4096);
    auto packed = deflate(data, data.size(), Effort::Fast);
    auto frame = zstd(data, data.size(), Effort::Fast);
    std::vector<std::byte> out(4097);
    CHECK(!inflate(packed, out).has_value());
    CHECK(!unzstd(frame, out).has_value());
    CHECK(!inflate(packed, std::span{out}.first(4095)).has_value());
    packed.resize(packed.size() / 2);
    frame.resize(frame.size() / 2);
    CHECK(!inflate(packed, std::span{out}.first(4096)).has_value());
    CHECK(!unzstd(frame, std::span{out}.first(4096)).has_value());
    CHECK(!unzstd({}, std::span{out}.first(4096)).has_value());
}
