// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>

#include "base/bytes.hpp"
#include "block/qed/qed_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

/// 4 KiB clusters, tables of one, the L1 table in the second one.
std::array<std::byte, 64> head() {
    std::array<std::byte, 64> bytes{};
    base::store_le(bytes.data(), qed::QED_MAGIC);
    base::store_le(bytes.data() + 4, std::uint32_t{4096});
    base::store_le(bytes.data() + 8, std::uint32_t{1});
    base::store_le(bytes.data() + 12, std::uint32_t{1});
    base::store_le(bytes.data() + 40, std::uint64_t{4096});
    base::store_le(bytes.data() + 48, std::uint64_t{1u << 20});
    return bytes;
}

template <typename T> std::string complaint(std::size_t at, T value) {
    auto bytes = head();
    base::store_le(bytes.data() + at, value);
    const auto header = qed::parse_header(bytes, 8192);
    return header ? "fine" : header.error().message();
}

} // namespace

TEST_CASE("qed: a header that lies is one sentence") {
    CHECK(qed::parse_header(head(), 8192).value().size_bytes == 1u << 20);
    CHECK(complaint(0, 0u).find("magic number") != std::string::npos);
    CHECK(complaint(4, 3000u).find("3000 bytes") != std::string::npos);
    CHECK(complaint(8, 32u).find("32 clusters") != std::string::npos);
    CHECK(complaint(16, std::uint64_t{0x10}).find("0x10") != std::string::npos);
    CHECK(complaint(40, std::uint64_t{1} << 40).find("L1 table") != std::string::npos);
    CHECK(complaint(48, std::uint64_t{1} << 50).find("disk's size") != std::string::npos);
    CHECK(complaint(48, std::uint64_t{1000}).find("disk's size") != std::string::npos);
}
