// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <vector>

#include "base/unique_fd.hpp"
#include "block/copy/fresh_pages.hpp"
#include "block/copy/huge_pages.hpp"
#include "block/copy/moving.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

base::UniqueFd file_of(std::size_t bytes) {
    base::UniqueFd fd{::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
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
    constexpr std::size_t kBytes = 9u << 20;
    const auto from = file_of(kBytes);
    for (const Ways allowed : {Ways{}, Ways{false, true, true, false},
                               Ways{false, true, false, false, 1}, Ways{false, false, true, false},
                               Ways{false, false, false, true}, Ways{false, false, false, false}}) {
        for (const std::uint64_t shift : {0u, 1u, 4096u}) {
            INFO("ways " << allowed.share << allowed.huge_pages << allowed.fresh_pages
                         << allowed.in_kernel << ", shift " << shift);
            const auto to = file_of(0);
            const auto half = kBytes / 2 + 512;
            const std::vector<Move> moves{
                {from.get(), to.get(), shift, 4096 + shift * 2, half},
                {from.get(), to.get(), shift + half, 4096 + shift * 2 + half,
                 kBytes - shift - half},
                {from.get(), to.get(), 0, 3 * kBytes, 1000}}; // behind a gap
            auto ways = allowed;
            REQUIRE(move_data(moves, ways).has_value());
            CHECK(content_of(to.get(), 4096 + shift * 2, kBytes - shift) ==
                  content_of(from.get(), shift, kBytes - shift));
            CHECK(content_of(to.get(), kBytes + 8192, 4096) == std::vector<std::byte>(4096));
            CHECK(content_of(to.get(), 3 * kBytes, 1000) == content_of(from.get(), 0, 1000));
        }
    }
}

TEST_CASE("huge pages hold what came before around them, and no byte more") {
    const auto from = file_of(4 * kHugePage);
    const auto to = file_of(4 * kHugePage);
    const auto old = content_of(to.get(), 0, 4 * kHugePage);
    const std::vector<Move> moves{{from.get(), to.get(), 77, kHugePage, kHugePage + 5},
                                  {from.get(), to.get(), 0, 2 * kHugePage + 5, kHugePage - 5}};
    if (!move_by_huge_pages(moves, kHugePage, 3 * kHugePage)) {
        MESSAGE("this kernel makes no huge pages in files: only the way around them is tested");
        return;
    }
    CHECK(content_of(to.get(), 0, kHugePage) == std::vector(old.begin(), old.begin() + kHugePage));
    CHECK(content_of(to.get(), kHugePage, kHugePage + 5) ==
          content_of(from.get(), 77, kHugePage + 5));
    CHECK(content_of(to.get(), 2 * kHugePage + 5, kHugePage - 5) ==
          content_of(from.get(), 0, kHugePage - 5));
    CHECK(content_of(to.get(), 3 * kHugePage, kHugePage) ==
          content_of(from.get(), 3 * kHugePage, kHugePage));
}

TEST_CASE("fresh pages are made where there are none, and nothing else of the file is touched") {
    constexpr std::uint64_t kBytes = 1u << 20;
    const auto from = file_of(2 * kBytes);
    const auto to = file_of(0);
    REQUIRE(::ftruncate(to.get(), 4 * kBytes) == 0);
    const Move move{from.get(), to.get(), 77, kBytes + 5, kBytes};
    FreshPages pages{{&move, 1}};
    const auto filled = pages.fill(move);
    if (pages.refused()) {
        MESSAGE("this kernel gives us no userfaultfd: only the way around it is tested");
        return;
    }
    CHECK(filled.to_offset == kBytes + kPage);
    CHECK(filled.to_end() == 2 * kBytes);
    CHECK(content_of(to.get(), filled.to_offset, filled.length) ==
          content_of(from.get(), 77 + kPage - 5, filled.length));
    CHECK(content_of(to.get(), 0, kBytes + kPage) == std::vector<std::byte>(kBytes + kPage));
    CHECK(content_of(to.get(), 2 * kBytes, 2 * kBytes) == std::vector<std::byte>(2 * kBytes));
    CHECK(pages.fill(move).length == 64 * kPage); // there already: a few are written
    CHECK(pages.refused());
}

TEST_CASE("a few pages that are there already are written, and no reason to give up") {
    constexpr std::uint64_t kBytes = 1u << 20;
    const auto from = file_of(kBytes);
    const auto to = file_of(0);
    for (const std::uint64_t page : {0, 1, 100})
        REQUIRE(write_all(to.get(), std::vector(1, std::byte{255}), page * kPage + 5).has_value());
    REQUIRE(::ftruncate(to.get(), kBytes) == 0);
    const Move move{from.get(), to.get(), 0, 0, kBytes};
    FreshPages pages{{&move, 1}};
    if (pages.refused())
        return;
    CHECK(pages.fill(move).length == kBytes);
    CHECK(!pages.refused());
    CHECK(content_of(to.get(), 0, kBytes) == content_of(from.get(), 0, kBytes));
}

TEST_CASE("a source with holes keeps them, and what is between them is moved all the same") {
    constexpr std::uint64_t kBytes = 1u << 20;
    const auto from = file_of(3 * kBytes);
    REQUIRE(::ftruncate(from.get(), 4 * kBytes) == 0);
    for (const std::uint64_t hole : {40 * kPage, 42 * kPage, 300 * kPage, kBytes * 2})
        REQUIRE(::fallocate(from.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                            static_cast<off_t>(hole), kPage) == 0);
    struct stat before{};
    REQUIRE(::fstat(from.get(), &before) == 0);
    for (const std::uint64_t shift : {std::uint64_t{0}, std::uint64_t{77}, kPage}) {
        const auto to = file_of(0);
        Ways ways{false, false, true, true};
        const Move move{from.get(), to.get(), shift, 512, 4 * kBytes - shift};
        REQUIRE(move_data({&move, 1}, ways).has_value());
        CHECK(content_of(to.get(), 512, move.length) == content_of(from.get(), shift, move.length));
        struct stat after{};
        REQUIRE(::fstat(from.get(), &after) == 0);
        CHECK(after.st_blocks == before.st_blocks);
    }
}

TEST_CASE("a source that ends too early, or a target that cannot grow, ends in no signal") {
    const auto from = file_of(kHugePage - 1);
    const auto to = file_of(0);
    const Move move{from.get(), to.get(), 0, 0, kHugePage};
    CHECK_FALSE(move_by_huge_pages({&move, 1}, 0, kHugePage));
    Ways ways;
    ways.plain_cost = 1;
    REQUIRE(move_data({&move, 1}, ways).has_value());
    CHECK(!ways.huge_pages);
    CHECK(content_of(to.get(), 0, kHugePage - 1) == content_of(from.get(), 0, kHugePage - 1));
    CHECK(content_of(to.get(), kHugePage - 1, 1) == std::vector<std::byte>(1));
    REQUIRE(::fcntl(to.get(), F_ADD_SEALS, F_SEAL_GROW) == 0);
    const Move behind{from.get(), to.get(), 0, kHugePage, kHugePage};
    ways = {};
    CHECK_FALSE(move_by_huge_pages({&behind, 1}, kHugePage, 2 * kHugePage));
    CHECK(!move_data({&behind, 1}, ways).has_value());
}

TEST_CASE("once the cost of plain pages is known, a batch goes by huge ones") {
    const auto from = file_of(8 * kHugePage);
    const auto to = file_of(0);
    const Move move{from.get(), to.get(), 0, 0, 8 * kHugePage};
    if (!move_by_huge_pages({&move, 1}, 0, kHugePage)) {
        MESSAGE("this kernel makes no huge pages in files");
        return;
    }
    Ways ways;
    ways.plain_cost = 1; // a second per byte: whatever huge pages cost, it is less
    const Move odd{from.get(), to.get(), 0, 512, 8 * kHugePage - 4096};
    REQUIRE(move_data({&odd, 1}, ways).has_value());
    CHECK(ways.huge_pages);
    CHECK(ways.plain_cost == 1);
    CHECK(content_of(to.get(), 512, odd.length) == content_of(from.get(), 0, odd.length));
}

TEST_CASE("huge pages that cost more than they save are given up") {
    const auto from = file_of(8 * kHugePage);
    const auto to = file_of(0);
    const Move move{from.get(), to.get(), 0, 0, 8 * kHugePage};
    Ways ways;
    REQUIRE(move_data({&move, 1}, ways).has_value());
    CHECK(ways.plain_cost > 0);
    CHECK(ways.plain_cost < 1e-3);
    ways = {};
    ways.plain_cost = 1e-30;
    REQUIRE(move_data({&move, 1}, ways).has_value());
    CHECK(!ways.huge_pages);
    CHECK(content_of(to.get(), 0, 8 * kHugePage) == content_of(from.get(), 0, 8 * kHugePage));
}

TEST_CASE("past the end of the source lie zeroes") {
    const auto from = file_of(1000);
    const auto to = file_of(8192);
    Ways ways;
    const Move move{from.get(), to.get(), 0, 0, 4096};
    REQUIRE(move_data({&move, 1}, ways).has_value());
    CHECK(content_of(to.get(), 0, 1000) == content_of(from.get(), 0, 1000));
    CHECK(content_of(to.get(), 1000, 3096) == std::vector<std::byte>(3096));
    CHECK(content_of(to.get(), 4096, 100) != std::vector<std::byte>(100));
}

TEST_CASE("a target that cannot be written is the host's error") {
    const auto from = file_of(4096);
    const base::UniqueFd to{::open("/dev/full", O_RDWR | O_CLOEXEC)};
    Ways ways;
    const Move move{from.get(), to.get(), 0, 0, 4096};
    CHECK(!move_data({&move, 1}, ways).has_value());
    CHECK(!ways.in_kernel);
}
