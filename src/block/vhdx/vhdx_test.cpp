// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cstring>
#include <map>

#include "base/bytes.hpp"
#include "block/clustered/test_rig.hpp"
#include "block/vhdx/log.hpp"
#include "block/vhdx/vhdx_node.hpp"

using namespace doppel;
using namespace doppel::block;
using namespace doppel::block::vhdx;

namespace {

constexpr std::uint64_t kTable = 3 * kMib; // of what create() makes

/// An image of 4 MiB in 1 MiB blocks with data in the second one.
struct Image {
    test::Rig rig{vhdx::format()};
    std::vector<std::byte> bytes;
    std::unique_ptr<SimDisk> disk;

    explicit Image(bool closed = true) {
        SimDisk fresh;
        rig.create(fresh, {"image", 4 * kMib, {{"block_size", "1M"}}});
        auto node = rig.open(fresh).value();
        const std::vector<std::byte> data(5000, std::byte{5});
        REQUIRE(rig.wait(node->write(kMib, IoBuffer::of(data), Durability::Durable)));
        if (closed)
            REQUIRE(rig.wait(node->close()));
        bytes = fresh.bytes();
    }
    Result<std::unique_ptr<ImageNode>> open(Access access = Access::ReadWrite) {
        disk = SimDisk::with(bytes);
        return rig.open(*disk, access);
    }
    std::byte first_byte(ImageNode& node, std::uint64_t at) {
        std::byte byte{};
        REQUIRE(rig.wait(node.read(at, IoBuffer{&byte, 1})));
        return byte;
    }
};

/// A ring of 64 KiB with an entry at its beginning that writes 0x77 to page 9.
struct Log {
    std::vector<std::byte> ring{64u << 10};
    Uuid id = random_uuid();
    std::vector<std::byte> page = std::vector<std::byte>(kLogPage, std::byte{0x77});

    Log() { ring.resize(64u << 10); }
    void put(std::uint64_t at, std::uint64_t sequence, std::uint64_t offset) {
        const std::map<std::uint64_t, const std::byte*> pages{{offset, page.data()}};
        const auto entry = log_entry(id, sequence, at, kMib, pages);
        for (std::size_t i = 0; i < entry.size(); ++i)
            ring[(at + i) % ring.size()] = entry[i];
    }
    Result<Replay> read() { return read_log(ring, id, kMib); }
};

} // namespace

TEST_CASE("vhdx: random operations agree with a plain array, whatever the image's form") {
    test::random_operations(
        vhdx::format(),
        {{"small", 5u << 20, {{"block_size", "1M"}}},
         {"usual", 5u << 20, {}},
         {"fixed", 3u << 20, {{"block_size", "1M"}, {"subformat", "fixed"}}},
         {"zero-state", 3u << 20, {{"block_size", "1M"}, {"block_state_zero", "on"}}},
         {"differencing", 3u << 20, {{"block_size", "1M"}}, true}});
}

TEST_CASE("vhdx: a power cut at any moment leaves an image without corruption or foreign data") {
    test::power_cuts(vhdx::format(),
                     {{"dynamic", 3u << 20, {{"block_size", "1M"}}},
                      {"fixed", 1u << 20, {{"block_size", "1M"}, {"subformat", "fixed"}}},
                      {"differencing", 3u << 20, {{"block_size", "1M"}}, true}});
}

TEST_CASE("vhdx: a disk that fails or fills up is an error, and what was flushed stays") {
    test::failing_disk(vhdx::format(), {"small", 2u << 20, {{"block_size", "1M"}}});
}

TEST_CASE("vhdx: after a resize that failed nothing foreign shows") {
    test::failing_resize(vhdx::format(), {"small", 2u << 20, {{"block_size", "1M"}}});
}

TEST_CASE("vhdx: the log's last whole sequence is replayed, and nothing else") {
    Log log;
    CHECK(log.read().value().writes.empty());
    log.put(0, 5, 9 * kLogPage);
    REQUIRE(log.read().value().writes.size() == 1);
    CHECK(log.read().value().writes[0].offset == 9 * kLogPage);
    CHECK(log.read().value().writes[0].page == log.page);
    SUBCASE("a torn newer one") {
        log.put(8192, 6, 10 * kLogPage);
        log.ring[8192 + 5000] ^= std::byte{1};
        CHECK(log.read().value().writes[0].offset == 9 * kLogPage);
    }
    SUBCASE("a newer one elsewhere, around the end") {
        log.put(60u << 10, 7, 11 * kLogPage); // its page lies at 0, where the first entry was
        REQUIRE(log.read().value().writes.size() == 1);
        CHECK(log.read().value().writes[0].offset == 11 * kLogPage);
    }
    SUBCASE("of another opening") {
        log.id = random_uuid();
        CHECK(log.read().value().writes.empty());
    }
    SUBCASE("a file that was cut") { CHECK(!read_log(log.ring, log.id, kMib - 1)); }
}

TEST_CASE("vhdx: entries that overlap without end do not keep us busy") {
    Log log;
    log.ring.assign(16 * kMib, std::byte{0});
    for (std::uint64_t at = 0; at < log.ring.size(); at += kLogPage) {
        base::store_le(log.ring.data() + at, std::uint32_t{0x65676f6c});
        base::store_le(log.ring.data() + at + 8, static_cast<std::uint32_t>(log.ring.size()));
        base::store_le(log.ring.data() + at + 16, std::uint64_t{1});
        std::ranges::copy(log.id, log.ring.begin() + static_cast<std::ptrdiff_t>(at + 32));
    }
    CHECK(!log.read());
}

TEST_CASE("vhdx: an image that was not closed is replayed for readers and writers alike") {
    Image image{false};
    // What was written in place is lost: only the log has it.
    std::fill_n(image.bytes.begin() + kTable, 4096, std::byte{0});
    if (const char* folder = std::getenv("DOPPEL_KEEP_IMAGES")) { // QEMU replays it, too
        std::vector<std::byte> shown(4 * kMib);
        std::fill_n(shown.begin() + kMib, 5000, std::byte{5});
        test::keep(std::string{folder} + "/unclosed.vhdx", image.bytes);
        test::keep(std::string{folder} + "/unclosed.raw", shown);
    }
    auto reader = image.open(Access::ReadOnly).value();
    CHECK(reader->info().dirty);
    CHECK(image.first_byte(*reader, kMib) == std::byte{5});
    CHECK(image.disk->events() == 0);
    auto writer = image.open().value();
    CHECK(!writer->info().dirty);
    CHECK(image.first_byte(*writer, kMib) == std::byte{5});
    CHECK(base::load_le<std::uint64_t>(image.disk->bytes().data() + kTable + 8) != 0);
}

TEST_CASE("vhdx: a table that outgrows its region gets another") {
    Image image;
    auto node = image.open().value();
    REQUIRE(image.rig.wait(node->resize(std::uint64_t{200} << 30))); // 204800 blocks: 1.6 MiB
    const std::vector<std::byte> data(4096, std::byte{6});
    REQUIRE(
        image.rig.wait(node->write((200ull << 30) - 4096, IoBuffer::of(data), Durability::Cached)));
    REQUIRE(image.rig.wait(node->close()));
    node = image.rig.open(*image.disk).value();
    CHECK(node->size() == 200ull << 30);
    CHECK(image.first_byte(*node, kMib) == std::byte{5});
    CHECK(image.first_byte(*node, (200ull << 30) - 1) == std::byte{6});
    CHECK(image.rig.wait(node->check(Repair::None)).value().corruptions == 0);
}

TEST_CASE("vhdx: one damaged copy of the header or the region table is enough") {
    for (const std::uint64_t at :
         {kHeaderOffset[0], kHeaderOffset[1], kRegionOffset[0], kRegionOffset[1]}) {
        Image image;
        image.bytes[at + 100] ^= std::byte{1};
        const bool header = at < kRegionOffset[0];
        auto node = image.open(Access::ReadOnly);
        REQUIRE(node.has_value());
        if (!header) // an older header knows the same places, and perhaps no data yet
            CHECK(image.first_byte(**node, kMib) == std::byte{5});
        image.bytes[(header ? kHeaderOffset[0] + kHeaderOffset[1]
                            : kRegionOffset[0] + kRegionOffset[1]) -
                    at + 100] ^= std::byte{1};
        CHECK(!image.open(Access::ReadOnly));
    }
}

TEST_CASE("vhdx: what a check finds") {
    const auto corruptions = [](std::uint64_t entry, std::uint64_t value) {
        Image image;
        base::store_le(image.bytes.data() + kTable + entry * 8, value);
        auto node = image.open().value();
        std::byte byte{1};
        CHECK(!image.rig.wait(node->write(0, IoBuffer{&byte, 1}, Durability::Cached)));
        return image.rig.wait(node->check(Repair::None)).value().corruptions;
    };
    CHECK(corruptions(0, entry_of(State::Full, 4 * kMib)) == 1);    // in the other block's place
    CHECK(corruptions(0, entry_of(State::Full, 2 * kMib)) == 1);    // on the metadata
    CHECK(corruptions(0, entry_of(State::Full, 900 * kMib)) == 1);  // past the end
    CHECK(corruptions(0, entry_of(State::Partial, 5 * kMib)) == 1); // without a parent
    CHECK(corruptions(0, 5) == 1);                                  // no such state
}

TEST_CASE("vhdx: a parent locator survives the way to bytes and back") {
    Metadata metadata;
    metadata.block_bytes = 2 * kMib;
    metadata.size_bytes = 10 * kMib;
    metadata.has_parent = true;
    metadata.parent.linkage = "{83ed31ef-8aad-4a6c-9e0c-1e5a1f5a2a2b}";
    metadata.parent.relative_path = ".\\Grüße\\båse 💾.vhdx";
    const auto region = serialize_metadata(metadata).value();
    const auto back = parse_metadata(region).value();
    CHECK(back.parent.linkage == metadata.parent.linkage);
    CHECK(back.parent.relative_path == metadata.parent.relative_path);
    CHECK(back.size_bytes == metadata.size_bytes);
    CHECK(back.has_parent);
    CHECK_FALSE(parse_metadata(std::span{region}.first(1000)).has_value());
}
