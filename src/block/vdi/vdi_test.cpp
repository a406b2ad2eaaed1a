// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "base/bytes.hpp"
#include "block/clustered/test_rig.hpp"
#include "block/vdi/vdi_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

constexpr std::uint64_t kTableOffset = 1u << 20; // of what create() makes

const test::Form kSmall{"small", 96u << 10, {{"block_size", "4k"}}};

std::uint32_t word(const std::vector<std::byte>& bytes, std::uint64_t at) {
    return base::load_le<std::uint32_t>(bytes.data() + at);
}

/// An image of 64 KiB in 4 KiB blocks, all written, then changed by the caller.
struct Damaged {
    test::Rig rig{vdi::format()};
    SimDisk fresh;
    std::vector<std::byte> bytes;
    Damaged() {
        rig.create(fresh, {"damaged", 64u << 10, {{"block_size", "4k"}}});
        auto node = rig.open(fresh).value();
        const std::vector<std::byte> data(64u << 10, std::byte{5});
        REQUIRE(rig.wait(node->write(0, IoBuffer::of(data), Durability::Cached)));
        REQUIRE(rig.wait(node->close()));
        bytes = fresh.bytes();
    }
    void put(std::uint64_t at, std::uint32_t value) { base::store_le(bytes.data() + at, value); }
    Result<std::unique_ptr<ImageNode>> open() {
        disk = SimDisk::with(bytes);
        return rig.open(*disk);
    }
    std::unique_ptr<SimDisk> disk;
};

} // namespace

TEST_CASE("vdi: random operations agree with a plain array, whatever the image's form") {
    test::random_operations(vdi::format(), {{"usual", 5u << 20, {}},
                                            {"static", 3u << 20, {{"static", "on"}}},
                                            {"small", 3u << 20, {{"block_size", "4k"}}},
                                            {"large", 9u << 20, {{"block_size", "4M"}}}});
}

TEST_CASE("vdi: a power cut at any moment leaves an image without corruption or foreign data") {
    test::power_cuts(vdi::format(),
                     {kSmall,
                      {"middle", 256u << 10, {{"block_size", "32k"}}},
                      {"static", 96u << 10, {{"block_size", "4k"}, {"static", "on"}}},
                      {"child", 96u << 10, {{"block_size", "4k"}}, true}});
}

TEST_CASE("vdi: after a shrink that fails half-way nothing more is written") {
    test::power_cuts_again(vdi::format(), kSmall, 597758004, true);
}

TEST_CASE("vdi: a disk that fails or fills up is an error, and what was flushed stays") {
    test::failing_disk(vdi::format(), {"small", 96u << 10, {{"block_size", "4k"}}});
}

TEST_CASE("vdi: after a resize that failed nothing foreign shows") {
    test::failing_resize(vdi::format(), kSmall);
    test::failing_resize(vdi::format(),
                         {"static", 96u << 10, {{"block_size", "4k"}, {"static", "on"}}});
}

TEST_CASE("vdi: a table that outgrows its place moves, the data stays") {
    test::Rig rig{vdi::format()};
    SimDisk disk;
    rig.create(disk, {"growing", 1u << 20, {{"block_size", "4k"}}});
    auto node = rig.open(disk).value();
    std::vector<std::byte> data(1u << 20);
    for (std::size_t i = 0; i < data.size(); ++i)
        data[i] = static_cast<std::byte>(i >> 12);
    REQUIRE(rig.wait(node->write(0, IoBuffer::of(data), Durability::Cached)));
    REQUIRE(rig.wait(node->resize(std::uint64_t{3} << 30))); // 786432 blocks: 3 MiB of table
    REQUIRE(rig.wait(node->write((3ull << 30) - 4096, IoBuffer::of(std::span{data}.last(4096)),
                                 Durability::Cached)));
    CHECK(rig.wait(node->check(Repair::None)).value().corruptions == 0);
    REQUIRE(rig.wait(node->close()));
    CHECK(word(disk.bytes(), 0x154) == 2 * kTableOffset);
    node = rig.open(disk).value();
    std::vector<std::byte> got(data.size());
    REQUIRE(rig.wait(node->read(0, IoBuffer{got})));
    CHECK(got == data);
    REQUIRE(rig.wait(node->read((3ull << 30) - 4096, IoBuffer{std::span{got}.first(4096)})));
    CHECK(got[0] == data.back());
    // Where the old blocks were moved from the table was found at the end; no gap stays for long.
    REQUIRE(rig.wait(node->check(Repair::All)));
    CHECK(rig.wait(node->check(Repair::None)).value().leaks == 0);
}

TEST_CASE("vdi: what a check finds, and what it repairs") {
    SUBCASE("two blocks in one place") {
        Damaged image;
        image.put(kTableOffset + 4, word(image.bytes, kTableOffset));
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().corruptions == 1);
        std::vector<std::byte> bytes(512);
        const auto written = image.rig.wait(node->write(0, IoBuffer{bytes}, Durability::Cached));
        REQUIRE(!written);
        CHECK(written.error().message().find("same place") != std::string::npos);
    }
    SUBCASE("a block past the end") {
        Damaged image;
        image.put(kTableOffset, 0x10000);
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().corruptions == 1);
        std::vector<std::byte> bytes(512);
        CHECK(!image.rig.wait(node->read(0, IoBuffer{bytes})));
        CHECK(image.rig.wait(node->read(8192, IoBuffer{bytes})));
    }
    SUBCASE("a count too small: QEMU would use a block twice") {
        Damaged image;
        image.put(0x184, 3);
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().corruptions == 1);
        CHECK(image.rig.wait(node->check(Repair::All)).value().corruptions_fixed == 1);
        REQUIRE(image.rig.wait(node->close()));
        CHECK(word(image.disk->bytes(), 0x184) == 16);
    }
    SUBCASE("a gap: the last block moves there") {
        Damaged image;
        image.put(kTableOffset + 3 * 4, vdi::kFree);
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().leaks == 1);
        CHECK(image.rig.wait(node->check(Repair::Leaks)).value().leaks_fixed == 1);
        CHECK(image.rig.wait(node->check(Repair::None)).value().leaks == 0);
        CHECK(image.disk->bytes().size() == (2u << 20) + 15 * 4096);
        std::vector<std::byte> bytes(64u << 10);
        REQUIRE(image.rig.wait(node->read(0, IoBuffer{bytes})));
        CHECK(bytes[3 * 4096] == std::byte{0});
        CHECK(bytes.back() == std::byte{5});
    }
}

TEST_CASE("vdi: a header that lies is one sentence") {
    const auto complaint = [](std::uint64_t at, std::uint32_t value) {
        Damaged image;
        image.put(at, value);
        const auto node = image.open();
        REQUIRE(!node.has_value());
        return node.error().message();
    };
    CHECK(complaint(0x44, 0x00020001).find("version is 2.1") != std::string::npos);
    CHECK(complaint(0x4c, 9).find("type is 9") != std::string::npos);
    CHECK(complaint(0x178, 3000).find("blocks have 3000 bytes") != std::string::npos);
    CHECK(complaint(0x180, 0xffffffff).find("4294967295 blocks") != std::string::npos);
    CHECK(complaint(0x180, 4).find("too few") != std::string::npos);
    CHECK(complaint(0x154, 256).find("header") != std::string::npos);
    CHECK(complaint(0x154, 0xfffffe00).find("passes the end") != std::string::npos);
    CHECK(complaint(0x158, 512).find("behind the beginning") != std::string::npos);
    CHECK(complaint(0x17c, 0xfffffe00).find("in front of each block") != std::string::npos);
}
