// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "base/unique_fd.hpp"
#include "block/copy/moving.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

base::UniqueFd file_of(std::size_t bytes) {
    base::UniqueFd fd{::memfd_create("test", MFD_CLOEXEC)};
    std::vector<std::byte> content(bytes);
    for (std::size_t i = 0; i < bytes; ++i)
        content[i] = static_cast<std::byte>(i * 7 + i / 256 + 1);
    REQUIRE(write_all(fd.get(), content, 0).has_value());
    return fd;
}

std::vector<std::byte> content_of(int fd, std::uint64_t offset, std::size_t bytes) {
    std::vector<std::byte> content(bytes);
    REQUIRE(read_all(fd, content, offset).has_value());
    return content;
}

} // namespace

TEST_CASE("whatever the way, the bytes arrive where they belong") {
    constexpr std::size_t kBytes = 3u << 20;
    const auto from = file_of(kBytes);
    for (auto how : {Moving::Share, Moving::InKernel, Moving::Copy}) {
        for (const std::uint64_t shift : {0u, 1u, 4096u}) {
            INFO("way " << static_cast<int>(how) << ", shift " << shift);
            const auto to = file_of(0);
            const Move move{from.get(), to.get(), shift, 4096 + shift * 2, kBytes - shift};
            REQUIRE(move_data(move, how).has_value());
            CHECK(content_of(to.get(), 4096 + shift * 2, kBytes - shift) ==
                  content_of(from.get(), shift, kBytes - shift));
        }
    }
}

TEST_CASE("past the end of the source lie zeroes") {
    const auto from = file_of(1000);
    const auto to = file_of(8192);
    auto how = Moving::Share;
    REQUIRE(move_data({from.get(), to.get(), 0, 0, 4096}, how).has_value());
    CHECK(content_of(to.get(), 0, 1000) == content_of(from.get(), 0, 1000));
    CHECK(content_of(to.get(), 1000, 3096) == std::vector<std::byte>(3096));
    CHECK(content_of(to.get(), 4096, 100) != std::vector<std::byte>(100));
}

TEST_CASE("a target that cannot be written is the host's error") {
    const auto from = file_of(4096);
    const base::UniqueFd to{::open("/dev/full", O_RDWR | O_CLOEXEC)};
    auto how = Moving::Share;
    CHECK(!move_data({from.get(), to.get(), 0, 0, 4096}, how).has_value());
    CHECK(how == Moving::Copy);
}
