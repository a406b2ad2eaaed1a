// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>
#include <cstring>

#include "base/bytes.hpp"
#include "block/parallels/parallels_node.hpp"
#include "block/test_rig.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

/// Tracks of 3 sectors, 4 of them; the second one lies behind the third.
std::vector<std::byte> image(const char* magic) {
    std::vector<std::byte> bytes(6 * 1536);
    const auto word = [&](std::size_t at, std::uint32_t value) {
        base::store_le(bytes.data() + at, value);
    };
    const bool ext = std::string_view{magic}.ends_with("Ext");
    std::memcpy(bytes.data(), magic, 16);
    word(16, 2);
    word(28, 3);
    word(32, 4);
    base::store_le(bytes.data() + 36, std::uint64_t{10});
    if (!ext)
        word(40, 0xffffffff); // not part of the size in the old form
    word(64 + 4, ext ? 3 : 9);
    word(64 + 8, ext ? 2 : 6);
    std::fill_n(bytes.begin() + 3 * 1536, 1536, std::byte{1});
    std::fill_n(bytes.begin() + 2 * 1536, 1536, std::byte{2});
    bytes.resize(4 * 1536);
    return bytes;
}

struct Rig : test::Rig {
    Rig() : test::Rig{parallels::format()} {}
    Result<std::unique_ptr<ImageNode>> open_bytes(std::vector<std::byte> bytes) {
        disk = SimDisk::with(std::move(bytes));
        return open(*disk, Access::ReadOnly);
    }
    std::unique_ptr<SimDisk> disk;
};

} // namespace

TEST_CASE("parallels: both forms are read, whatever a track's size") {
    for (const auto* magic : {"WithoutFreeSpace", "WithouFreSpacExt"}) {
        Rig rig;
        auto node = rig.open_bytes(image(magic)).value();
        REQUIRE(node->size() == 5120);
        std::vector<std::byte> got(5120);
        REQUIRE(rig.wait(node->read(0, IoBuffer{got})));
        for (std::size_t i = 0; i < got.size(); ++i) {
            const auto track = i / 1536;
            REQUIRE(got[i] == static_cast<std::byte>(track == 1 || track == 2 ? track : 0));
        }
        const auto checked = rig.wait(node->check(Repair::None)).value();
        CHECK(checked.corruptions == 0);
        CHECK(checked.leaks == 0);
        CHECK(checked.allocated_clusters == 2);
    }
}

TEST_CASE("parallels: what lies past the end, or twice, is found") {
    Rig rig;
    auto bytes = image("WithouFreSpacExt");
    base::store_le(bytes.data() + 64, std::uint32_t{900});
    base::store_le(bytes.data() + 64 + 4, std::uint32_t{2});
    auto node = rig.open_bytes(bytes).value();
    CHECK(rig.wait(node->check(Repair::None)).value().corruptions == 2);
    std::byte byte{};
    CHECK(!rig.wait(node->read(0, IoBuffer{&byte, 1})));
}

TEST_CASE("parallels: a header that lies is one sentence") {
    const auto complaint = [](std::size_t at, std::uint32_t value) {
        auto bytes = image("WithouFreSpacExt");
        base::store_le(bytes.data() + at, value);
        const auto header = parallels::parse_header(bytes, bytes.size());
        return header ? std::string{"fine"} : header.error().message();
    };
    CHECK(complaint(40, 0) == "fine");
    CHECK(complaint(16, 3).find("magic number") != std::string::npos);
    CHECK(complaint(28, 0).find("0 sectors") != std::string::npos);
    CHECK(complaint(32, 0xffffffff).find("passes the end") != std::string::npos);
    CHECK(complaint(36, 13).find("13 sectors") != std::string::npos);
}
