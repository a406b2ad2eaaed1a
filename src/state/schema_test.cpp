// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "state/schema.hpp"

using namespace doppel;
using namespace doppel::state;

namespace {

enum class Colour : std::uint8_t { Red, Green };

struct Inner {
    std::uint16_t x = 0;
    static constexpr auto kSchema = schema("inner", 1, field(1, "x", &Inner::x));
};

struct Sample {
    std::uint64_t a = 0;
    bool b = false;
    Colour c = Colour::Red;
    std::array<std::uint8_t, 3> d{};
    std::vector<std::uint32_t> e;
    std::array<Inner, 2> f{};
    base::Result<void> validate() const {
        if (a > 100)
            return base::fail(base::Errc::Corrupt, "a is above 100");
        return {};
    }
    static constexpr auto kSchema =
        schema("sample", 2, field(1, "a", &Sample::a), field(2, "b", &Sample::b),
               field(3, "c", &Sample::c), field(4, "d", &Sample::d), field(5, "e", &Sample::e),
               field(6, "f", &Sample::f, 2));
};

struct Named {
    std::string name;
    std::vector<std::byte> blob;
    static constexpr auto kSchema =
        schema("named", 1, field(1, "name", &Named::name), field(2, "blob", &Named::blob));
};

struct Older {
    std::uint64_t a = 7;
    bool b = true;
    Colour c = Colour::Green;
    std::array<std::uint8_t, 3> d{1, 2, 3};
    std::vector<std::uint32_t> e;
    static constexpr auto kSchema =
        schema("sample", 1, field(1, "a", &Older::a), field(2, "b", &Older::b),
               field(3, "c", &Older::c), field(4, "d", &Older::d), field(5, "e", &Older::e));
};

template <typename S> std::vector<std::byte> saved(const S& state) {
    Encoder encoder;
    encode(encoder, S::kSchema, state);
    return encoder.take();
}

Sample example() {
    Sample s;
    s.a = 42;
    s.b = true;
    s.c = Colour::Green;
    s.d = {1, 2, 3};
    s.e = {10, 20};
    s.f[1].x = 77;
    return s;
}

} // namespace

TEST_CASE("save, load, save gives the same bytes") {
    const auto bytes = saved(example());
    Sample loaded;
    Decoder decoder{bytes};
    REQUIRE(decode(decoder, Sample::kSchema, loaded));
    CHECK(loaded.f[1].x == 77);
    CHECK(saved(loaded) == bytes);
}

TEST_CASE("a field that came later keeps its default when an older state is read") {
    const auto bytes = saved(Older{});
    Sample loaded;
    loaded.f[0].x = 5;
    Decoder decoder{bytes};
    REQUIRE(decode(decoder, Sample::kSchema, loaded));
    CHECK(loaded.a == 7);
    CHECK(loaded.f[0].x == 5);
}

TEST_CASE("a newer version and another kind are refused with a sentence") {
    const auto bytes = saved(example());
    Older older;
    Decoder decoder{bytes};
    const auto result = decode(decoder, Older::kSchema, older);
    REQUIRE(!result);
    CHECK(result.error().code == base::Errc::Unsupported);
    Inner inner;
    Decoder again{bytes};
    CHECK(!decode(again, Inner::kSchema, inner));
}

TEST_CASE("every truncation and every flipped byte ends in an error or a valid state") {
    const auto bytes = saved(example());
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        Sample loaded;
        Decoder decoder{std::span{bytes}.first(length)};
        CHECK(!decode(decoder, Sample::kSchema, loaded));
    }
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        auto broken = bytes;
        broken[i] ^= std::byte{0xff};
        Sample loaded;
        Decoder decoder{broken};
        const auto result = decode(decoder, Sample::kSchema, loaded);
        CHECK((!result || loaded.validate()));
    }
}

TEST_CASE("values that validate() refuses do not load") {
    auto bad = example();
    bad.a = 101;
    const auto bytes = saved(bad);
    Sample loaded;
    Decoder decoder{bytes};
    CHECK(!decode(decoder, Sample::kSchema, loaded));
}

TEST_CASE("text and raw bytes are kept as they are; a text longer than its field is refused") {
    const Named named{"disk \xc3\xa4", {std::byte{0}, std::byte{255}}};
    auto bytes = saved(named);
    Named loaded;
    Decoder decoder{bytes};
    REQUIRE(decode(decoder, Named::kSchema, loaded));
    CHECK(loaded.name == named.name);
    CHECK(loaded.blob == named.blob);
    const auto length_at = 2 + 5 + 4 + 4 + 2 + 2 + 4; // kind, version, count, id, optional, length
    bytes[static_cast<std::size_t>(length_at)] = std::byte{200};
    Decoder broken{bytes};
    CHECK(!decode(broken, Named::kSchema, loaded));
}
