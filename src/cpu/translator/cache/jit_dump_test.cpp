// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/cache/jit_dump.hpp"

#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <iterator>

#include <doctest/doctest.h>

#include "base/test_folder.hpp"

namespace doppel::cpu::translator {
namespace {

std::string contents(const std::string& path) {
    std::ifstream file{path, std::ios::binary};
    return {std::istreambuf_iterator<char>{file}, {}};
}

template <typename T> T at(const std::string& bytes, std::size_t offset) {
    T value{};
    REQUIRE(offset + sizeof value <= bytes.size());
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

TEST_CASE("a jitdump has a header and a record for each piece of code") {
    const base::TestFolder folder{"doppel-jit-dump"};
    const std::string directory = folder.path();
    const std::array<std::uint8_t, 3> code{0x90, 0x90, 0xc3};
    std::string path;
    {
        auto dump = JitDump::create(directory);
        REQUIRE(dump);
        path = (*dump)->path();
        CHECK(path == directory + "/jit-" + std::to_string(::getpid()) + ".dump");
        (*dump)->add("user:401000", code);
        (*dump)->add("kernel:0", code);
    }
    const std::string bytes = contents(path);
    CHECK(at<std::uint32_t>(bytes, 0) == 0x4a695444); // the specification's numbers
    CHECK(at<std::uint32_t>(bytes, 4) == 1);
    CHECK(at<std::uint32_t>(bytes, 8) == 40);
    CHECK(at<std::uint32_t>(bytes, 12) == 62);
    CHECK(at<std::uint32_t>(bytes, 40) == 0);
    CHECK(at<std::uint32_t>(bytes, 44) == 56 + 12 + 3);
    CHECK(at<std::uint64_t>(bytes, 72) == reinterpret_cast<std::uintptr_t>(code.data()));
    CHECK(at<std::uint64_t>(bytes, 80) == code.size());
    CHECK(bytes.substr(96, 12) == std::string("user:401000", 12));
    CHECK(bytes.substr(108, 3) == "\x90\x90\xc3");
    CHECK(at<std::uint64_t>(bytes, 111 + 48) == 1); // the second one's index
    CHECK(bytes.size() == 111 + 56 + 9 + 3);
}

TEST_CASE("a jitdump that cannot be made names its path") {
    const auto dump = JitDump::create("/nowhere/at/all");
    REQUIRE_FALSE(dump);
    CHECK(dump.error().text.find("/nowhere/at/all/jit-") != std::string::npos);
}

} // namespace
} // namespace doppel::cpu::translator
