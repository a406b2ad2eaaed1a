// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "base/bytes.hpp"
#include "block/clustered/test_rig.hpp"
#include "block/vpc/vpc_node.hpp"

using namespace doppel;
using namespace doppel::block;
using namespace doppel::block::vpc;

namespace {

constexpr std::uint64_t kTable = 1536; // of what create() makes

/// 64 KiB in 4 KiB blocks, the second one written.
struct Image {
    test::Rig rig{vpc::format()};
    std::vector<std::byte> bytes;
    std::unique_ptr<SimDisk> disk;

    Image() {
        SimDisk fresh;
        rig.create(fresh, {"image", 64u << 10, {{"block_size", "4k"}}});
        auto node = rig.open(fresh).value();
        const std::vector<std::byte> data(3000, std::byte{5});
        REQUIRE(rig.wait(node->write(4096, IoBuffer::of(data), Durability::Cached)));
        REQUIRE(rig.wait(node->close()));
        bytes = fresh.bytes();
    }
    void put(std::uint64_t at, std::uint32_t value) { base::store_be(bytes.data() + at, value); }
    Result<std::unique_ptr<ImageNode>> open() {
        disk = SimDisk::with(bytes);
        return rig.open(*disk);
    }
};

} // namespace

TEST_CASE("vpc: random operations agree with a plain array, whatever the image's form") {
    test::random_operations(vpc::format(),
                            {{"usual", 5u << 20, {}},
                             {"small", 3u << 20, {{"block_size", "4k"}}},
                             {"fixed", 3u << 20, {{"subformat", "fixed"}}},
                             {"differencing", 3u << 20, {{"block_size", "32k"}}, true}});
}

TEST_CASE("vpc: a power cut at any moment leaves an image without corruption or foreign data") {
    test::power_cuts(vpc::format(),
                     {{"small", 96u << 10, {{"block_size", "4k"}}},
                      {"middle", 256u << 10, {{"block_size", "32k"}}},
                      // While it grows its old footer lies in the disk: there is no other order.
                      {"fixed", 96u << 10, {{"subformat", "fixed"}}, false, 0, false},
                      {"differencing", 128u << 10, {{"block_size", "8k"}}, true}});
}

TEST_CASE("vpc: a disk that fails or fills up is an error, and what was flushed stays") {
    test::failing_disk(vpc::format(), {"small", 96u << 10, {{"block_size", "4k"}}});
}

TEST_CASE("vpc: after a resize that failed nothing foreign shows") {
    test::failing_resize(vpc::format(), {"small", 96u << 10, {{"block_size", "4k"}}});
    test::failing_resize(vpc::format(), {"fixed", 96u << 10, {{"subformat", "fixed"}}});
    test::failing_resize(vpc::format(), {"differencing", 128u << 10, {{"block_size", "8k"}}, true});
}

TEST_CASE("vpc: the geometry is that of the specification") {
    CHECK(geometric_size(1u << 20) >= 1u << 20);
    const auto small = geometry_of(100u << 20);
    CHECK(small.cylinders == 1003);
    CHECK(small.heads == 12);
    CHECK(small.sectors == 17);
    const auto large = geometry_of(std::uint64_t{200} << 30);
    CHECK(large.heads == 16);
    CHECK(large.sectors == 255);
    for (std::uint64_t size = 1; size < (8ull << 30); size = size * 3 + 511) {
        const auto exact = geometric_size(size);
        CHECK(exact >= size);
        CHECK(geometry_of(exact).bytes() == exact);
    }
}

TEST_CASE("vpc: who made an image decides what its size is") {
    auto footer = new_footer(Type::Fixed, geometric_size(1000000), false);
    CHECK(parse_footer(footer.bytes).value().size_bytes == geometric_size(1000000));
    footer = new_footer(Type::Fixed, 1000448, true);
    CHECK(parse_footer(footer.bytes).value().size_bytes == 1000448);
    set_footer(footer, Type::Fixed, ~std::uint64_t{0}, 2000384);
    CHECK(parse_footer(footer.bytes).value().size_bytes == 2000384);
}

TEST_CASE("vpc: the copy of the footer stands in for it, and a check puts it back") {
    Image image;
    image.bytes.resize(image.bytes.size() - 512);
    auto node = image.open().value();
    CHECK(image.rig.wait(node->check(Repair::None)).value().leaks == 1);
    CHECK(image.rig.wait(node->check(Repair::Leaks)).value().leaks_fixed == 1);
    CHECK(image.rig.wait(node->check(Repair::None)).value().leaks == 0);
    const auto& bytes = image.disk->bytes();
    CHECK(parse_footer(std::span{bytes}.last(512)).has_value());
    CHECK(image.rig.wait(node->read(4096, IoBuffer{image.bytes.data(), 1})));
    CHECK(image.bytes[0] == std::byte{5});
}

TEST_CASE("vpc: whoever opens for writing brings the copy of the footer up to date") {
    Image image;
    image.bytes[24] ^= std::byte{1}; // its time
    auto node = image.open().value();
    const auto& bytes = image.disk->bytes();
    CHECK(std::ranges::equal(std::span{bytes}.first(512), std::span{bytes}.last(512)));
}

TEST_CASE("vpc: what a check finds, and what is refused") {
    SUBCASE("a block past the end") {
        Image image;
        image.put(kTable, 5000);
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().corruptions == 1);
        std::byte byte{};
        CHECK(!image.rig.wait(node->read(0, IoBuffer{&byte, 1})));
        CHECK(!image.rig.wait(node->write(0, IoBuffer{&byte, 1}, Durability::Cached)));
    }
    SUBCASE("two in one place") {
        Image image;
        image.put(kTable, base::load_be<std::uint32_t>(image.bytes.data() + kTable + 4));
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().corruptions == 1);
    }
    SUBCASE("on the header") {
        Image image;
        image.put(kTable, 1);
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().corruptions != 0);
    }
    SUBCASE("a header that does not add up") {
        Image image;
        image.put(512 + 28, 0xffffffff);
        const auto node = image.open();
        REQUIRE(!node.has_value());
        CHECK(node.error().message().find("checksum") != std::string::npos);
    }
    SUBCASE("no footer at all") {
        Image image;
        image.bytes.assign(4096, std::byte{0});
        CHECK(!image.open());
    }
}
