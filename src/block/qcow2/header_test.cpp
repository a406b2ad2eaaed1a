// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <string>

#include "block/qcow2/layout.hpp"

using namespace doppel::block::qcow2;

namespace {

constexpr std::size_t kRead = 4096; // as much as opening reads at first

Header header_of(std::uint32_t version) {
    Header header;
    header.version = version;
    header.cluster_bits = 16;
    header.size_bytes = 1u << 20;
    header.refcount_order = 4;
    header.reftable_offset = 1u << 16;
    header.reftable_clusters = 1;
    header.l1_offset = 3u << 16;
    header.l1_entries = 1;
    return header;
}

/// What is read of the header tells what the whole cluster tells, or that it is too little.
void check(const Header& header, bool ends_early) {
    const auto cluster = serialize_header(header);
    REQUIRE(cluster.has_value());
    const auto head = std::span{*cluster}.first(kRead);
    CHECK(header_ends_within(head) == ends_early);
    CHECK(header_ends_within(*cluster));
    const auto parsed = parse_header(ends_early ? head : std::span{*cluster}, 1u << 20);
    REQUIRE(parsed.has_value());
    CHECK(parsed->backing_file == header.backing_file);
    CHECK(parsed->unknown_extensions.size() == header.unknown_extensions.size());
}

} // namespace

TEST_CASE("where a header ends") {
    for (const std::uint32_t version : {2u, 3u}) {
        INFO("version " << version);
        auto header = header_of(version);
        check(header, true);
        header.backing_file = "base";
        check(header, true);
        header.unknown_extensions.push_back({0x12345678, std::vector<std::byte>(kRead)});
        check(header, false);
        header.backing_file.clear();
        check(header, false);
    }
}

TEST_CASE("a header that is cut or lies ends nowhere in what there is") {
    const auto header = header_of(3);
    auto cluster = *serialize_header(header);
    CHECK(!header_ends_within(std::span{cluster}.first(100)));
    CHECK(!header_ends_within({}));
    cluster[100] = std::byte{0xff}; // the header's length
    CHECK(!header_ends_within(cluster));
    cluster = *serialize_header(header);
    cluster[8] = std::byte{0x80}; // where the backing file's name is
    CHECK(!header_ends_within(cluster));
}
