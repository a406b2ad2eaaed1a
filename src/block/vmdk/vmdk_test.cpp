// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "base/bytes.hpp"
#include "block/clustered/test_rig.hpp"
#include "block/codec/codec.hpp"
#include "block/vmdk/vmdk_node.hpp"

using namespace doppel;
using namespace doppel::block;

TEST_CASE("vmdk: random operations agree with a plain array, whatever the image's form") {
    test::random_operations(vmdk::format(), {{"usual", 5u << 20, {}},
                                             {"zero", 3u << 20, {{"zeroed_grain", "on"}}},
                                             {"child", 3u << 20, {}, true}});
}

TEST_CASE("vmdk: a power cut at any moment leaves an image without corruption or foreign data") {
    constexpr std::uint64_t kTwoGib = std::uint64_t{2} << 30;
    test::power_cuts(vmdk::format(),
                     {{"usual", 768u << 10, {}},
                      {"zero", 768u << 10, {{"zeroed_grain", "on"}}},
                      {"child", 512u << 10, {}, true},
                      {"zero-child", 512u << 10, {{"zeroed_grain", "on"}}, true},
                      {"flat", 256u << 10, {{"subformat", "monolithicFlat"}}},
                      {"split-flat", 256u << 10, {{"subformat", "twoGbMaxExtentFlat"}}},
                      {"split",
                       kTwoGib + (256u << 10),
                       {{"subformat", "twoGbMaxExtentSparse"}},
                       false,
                       kTwoGib - (256u << 10)}});
}

TEST_CASE("vmdk: a disk that fails or fills up is an error, and what was flushed stays") {
    test::failing_disk(vmdk::format(), {"usual", 768u << 10, {}});
}

TEST_CASE("vmdk: after a resize that failed nothing foreign shows") {
    test::failing_resize(vmdk::format(), {"usual", 768u << 10, {}});
    test::failing_resize(vmdk::format(), {"flat", 768u << 10, {{"subformat", "monolithicFlat"}}});
}

namespace {

Result<vmdk::Descriptor> parse(std::string_view text) {
    return vmdk::parse_descriptor(std::as_bytes(std::span{text}));
}
std::string complaint(std::string_view text) {
    const auto descriptor = parse(text);
    return descriptor ? "fine" : descriptor.error().message();
}

/// A stream of 40 grains, of which some are written, and its disk.
struct Stream {
    test::Rig rig{vmdk::format()};
    SimDisk disk;
    std::vector<std::byte> shown = std::vector<std::byte>(40 * 65536 - 1024);

    Stream() {
        rig.create(disk, {"stream", shown.size(), {{"subformat", "streamOptimized"}}});
        std::mt19937 random{3};
        for (const std::size_t grain : {0, 1, 7, 39}) {
            const auto part = std::span{shown}.subspan(
                grain * 65536, std::min<std::size_t>(65536, shown.size() - grain * 65536));
            if (grain == 1)
                std::ranges::copy(test::random_bytes(random, part.size()), part.begin());
            else
                std::ranges::fill(part, static_cast<std::byte>(grain + 1));
        }
    }
    Result<void> write() {
        auto node = DOPPEL_TRY(rig.open(disk));
        for (const std::size_t grain : {0, 1, 7, 39}) {
            std::vector<std::byte> whole(65536);
            const auto part = std::span{shown}.subspan(
                grain * 65536, std::min<std::size_t>(65536, shown.size() - grain * 65536));
            std::ranges::copy(part, whole.begin());
            DOPPEL_TRY_VOID(rig.wait(
                node->write_compressed(grain * 65536, codec::zlib(whole, codec::Effort::Fast))));
        }
        return rig.wait(node->close());
    }
};

} // namespace

TEST_CASE("vmdk: a stream that was written is read, sound and written no more") {
    Stream stream;
    REQUIRE(stream.write());
    auto node = stream.rig.open(stream.disk, Access::ReadOnly).value();
    std::vector<std::byte> got(stream.shown.size());
    REQUIRE(stream.rig.wait(node->read(0, IoBuffer{got})));
    CHECK(got == stream.shown);
    const auto checked = stream.rig.wait(node->check(Repair::None)).value();
    CHECK(checked.corruptions == 0);
    CHECK(checked.compressed_clusters == 4);
    const auto again = stream.write();
    REQUIRE(!again.has_value());
    CHECK(again.error().message().find("written once") != std::string::npos);
    auto writer = stream.rig.open(stream.disk).value();
    CHECK(!stream.rig.wait(writer->write(0, IoBuffer{got}, Durability::Cached)));
    CHECK(!stream.rig.wait(writer->resize(1u << 20)));
}

TEST_CASE("vmdk: a stream that is cut short or damaged is told from a sound one") {
    Stream stream;
    REQUIRE(stream.write());
    auto bytes = stream.disk.bytes();
    SUBCASE("cut") {
        bytes.resize(bytes.size() - 512);
        const auto cut = SimDisk::with(bytes);
        const auto node = stream.rig.open(*cut);
        REQUIRE(!node.has_value());
        CHECK(node.error().message().find("footer") != std::string::npos);
    }
    SUBCASE("a byte of the second grain") {
        bytes[65536 + 512 + 300] ^= std::byte{1};
        const auto damaged = SimDisk::with(bytes);
        auto node = stream.rig.open(*damaged, Access::ReadOnly).value();
        CHECK(stream.rig.wait(node->check(Repair::None)).value().corruptions == 1);
        std::vector<std::byte> got(65536);
        CHECK(!stream.rig.wait(node->read(65536, IoBuffer{got})));
    }
}

TEST_CASE("vmdk: grains of a stream ascend") {
    Stream stream;
    auto node = stream.rig.open(stream.disk).value();
    const auto grain = codec::zlib(std::vector<std::byte>(65536), codec::Effort::Fast);
    REQUIRE(stream.rig.wait(node->write_compressed(2 * 65536, grain)));
    CHECK(!stream.rig.wait(node->write_compressed(2 * 65536, grain)));
    CHECK(!stream.rig.wait(node->write_compressed(0, grain)));
    CHECK(!stream.rig.wait(node->write_compressed(40 * 65536, grain)));
}

TEST_CASE("vmdk: a descriptor is read whatever its letters and line ends, and keeps what it has") {
    const std::string text = "# disk descriptorFILE\r\nversion=1\r\nencoding=\"UTF-8\"\r\n"
                             "cid=0000ABCD\r\nParentCID=ffffffff\r\nCREATETYPE=\"vmfs\"\r\n\r\n"
                             "rw 2048 flat \"a b-flat.vmdk\" 8\r\nddb.uuid = \"60 00\"\r\n";
    const auto descriptor = parse(text).value();
    CHECK(descriptor.cid == 0xabcd);
    CHECK(descriptor.parent_cid == vmdk::kNoParent);
    REQUIRE(descriptor.extents.size() == 1);
    CHECK(descriptor.extents[0].file == "a b-flat.vmdk");
    CHECK(descriptor.extents[0].type == "FLAT");
    CHECK(descriptor.extents[0].offset_sectors == 8);
    const auto changed = vmdk::with_value(vmdk::with_value(text, "CID", "00000001"),
                                          "parentFileNameHint", "\"base.vmdk\"");
    CHECK(parse(changed).value().cid == 1);
    CHECK(parse(changed).value().parent == "base.vmdk");
    CHECK(changed.find("ddb.uuid = \"60 00\"") != std::string::npos);
    CHECK(vmdk::without(changed, "parentFileNameHint").find("base.vmdk") == std::string::npos);
}

TEST_CASE("vmdk: a descriptor that lies is one sentence") {
    const std::string head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n";
    CHECK(complaint("hello") == "there is no VMDK descriptor");
    CHECK(complaint(head).find("no createType") != std::string::npos);
    CHECK(complaint(head + "createType=\"x\"\nCID=zz\n").find("'zz'") != std::string::npos);
    CHECK(complaint(head + "createType=\"x\"\nRW many FLAT \"a\"\n").find("RW many FLAT") !=
          std::string::npos);
    CHECK(complaint(head + "createType=\"x\"\nRW 99999999999999999999 ZERO\n") != "fine");
    CHECK(complaint(head + "createType=\"x\"\nRW 8 SPARSE\n") != "fine");
}

namespace {

/// 1 MiB, the first two grains written, then changed by the caller.
struct Image {
    test::Rig rig{vmdk::format()};
    std::vector<std::byte> bytes;
    std::unique_ptr<SimDisk> disk;
    vmdk::Header header;

    Image() {
        SimDisk fresh;
        rig.create(fresh, {"image", 1u << 20, {}});
        auto node = rig.open(fresh).value();
        const std::vector<std::byte> data(100000, std::byte{5});
        REQUIRE(rig.wait(node->write(0, IoBuffer::of(data), Durability::Cached)));
        REQUIRE(rig.wait(node->close()));
        bytes = fresh.bytes();
        header = vmdk::parse_header(std::span{bytes}.first(512)).value();
    }
    void put(std::uint64_t at, std::uint32_t value) { base::store_le(bytes.data() + at, value); }
    std::uint64_t table() const { return header.directory_at + header.directory_bytes(); }
    Result<std::unique_ptr<ImageNode>> open() {
        disk = SimDisk::with(bytes);
        return rig.open(*disk);
    }
    std::string first_finding() {
        auto node = open().value();
        const auto result = rig.wait(node->check(Repair::None)).value();
        std::byte byte{};
        const bool written{rig.wait(node->write(0, IoBuffer{&byte, 1}, Durability::Cached))};
        CHECK(written == (result.corruptions == 0)); // what is corrupt is not written
        return result.findings.empty() ? "" : result.findings.front();
    }
};

} // namespace

TEST_CASE("vmdk: what a check finds, and what is refused") {
    Image image;
    SUBCASE("nothing") { CHECK(image.first_finding().empty()); }
    SUBCASE("a grain past the end") {
        image.put(image.table(), 100000);
        CHECK(image.first_finding() == "grain 0 lies past the end of the file");
    }
    SUBCASE("two in one place") {
        image.put(image.table() + 8, base::load_le<std::uint32_t>(&image.bytes[image.table()]));
        CHECK(image.first_finding().starts_with("two grains overlap"));
    }
    SUBCASE("on the tables") {
        image.put(image.table(), 1);
        CHECK(image.first_finding().starts_with("a grain lies on tables"));
    }
    SUBCASE("a table in the directory") {
        image.put(image.header.directory_at,
                  static_cast<std::uint32_t>(image.header.directory_at / 512));
        CHECK(image.first_finding().starts_with("two tables overlap"));
    }
    SUBCASE("a redundant table that is stale is put right") {
        image.put(image.header.redundant_at + image.header.directory_bytes(), 0);
        auto node = image.open().value();
        CHECK(image.rig.wait(node->check(Repair::None)).value().leaks == 1);
        CHECK(image.rig.wait(node->check(Repair::Leaks)).value().leaks_fixed == 1);
        CHECK(image.rig.wait(node->check(Repair::None)).value().leaks == 0);
    }
    SUBCASE("damaged by a transfer as text") {
        image.bytes[75] = std::byte{'\n'};
        CHECK(image.open().error().message().find("as text") != std::string::npos);
    }
}
