// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>
#include <string_view>

#include "memory/guest_ranges.hpp"

using namespace doppel::memory;

namespace {

constexpr std::uint64_t kHigh = 0x1'0000'0000;

std::unique_ptr<GuestMemory> two_regions() {
    const std::array regions{RamRegion{{0}, 4 * kPageBytes}, RamRegion{{kHigh}, 2 * kPageBytes}};
    return std::move(GuestMemory::create(regions)).value();
}

struct CountingWatcher final : CodeWatcher {
    int calls = 0;
    void on_code_write(Gpa, std::uint64_t, Moment) noexcept override { ++calls; }
};

std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span{text});
}

} // namespace

TEST_CASE("ranges are one row of bytes, whatever their order in memory") {
    const auto memory = two_regions();
    const std::array ranges{GuestRange{{kHigh}, 3}, GuestRange{{0x10}, 0}, GuestRange{{0x20}, 4}};
    CHECK(total_bytes(ranges) == 7);
    CHECK(write_ranges(*memory, ranges, 1, bytes_of("abcdefgh")) == 6);
    std::array<std::byte, 8> back{};
    CHECK(read_ranges(*memory, ranges, 2, back) == 5);
    CHECK(memory->load<char>({kHigh + 1}) == 'a');
    CHECK(memory->load<char>({0x23}) == 'f');
    CHECK(static_cast<char>(back[0]) == 'b');
}

TEST_CASE("copying ends where memory ends") {
    const auto memory = two_regions();
    const std::array ranges{GuestRange{{0}, 2}, GuestRange{{8 * kPageBytes}, 2}};
    CHECK(write_ranges(*memory, ranges, 0, bytes_of("abcd")) == 2);
    CHECK(!PinnedBuffer::pin(*memory, ranges, PinnedBuffer::Access::KernelReads));
}

TEST_CASE("slice: the stretches of a part") {
    const std::array ranges{GuestRange{{0x100}, 8}, GuestRange{{0x200}, 8}};
    const auto part = slice(ranges, 6, 5);
    REQUIRE(part.size() == 2);
    CHECK(part[0].gpa.value == 0x106);
    CHECK(part[0].bytes == 2);
    CHECK(part[1].gpa.value == 0x200);
    CHECK(part[1].bytes == 3);
}

TEST_CASE("a pinned destination is dirty after completion, even if harvested meanwhile") {
    const auto memory = two_regions();
    memory->start_dirty_log();
    const std::array ranges{GuestRange{{kPageBytes - 1}, 2}};
    auto pinned = PinnedBuffer::pin(*memory, ranges, PinnedBuffer::Access::KernelWrites);
    REQUIRE(pinned);
    CHECK(pinned->bytes() == 2);
    CHECK(memory->harvest_dirty_log()[0] == 3);
    pinned->complete();
    CHECK(memory->harvest_dirty_log()[0] == 3);
    CHECK(memory->harvest_dirty_log()[0] == 0);
}

TEST_CASE("a pinned source leaves the dirty log and the code watcher alone") {
    const auto memory = two_regions();
    CountingWatcher watcher;
    memory->set_code_watcher(&watcher);
    memory->set_code_page({0}, true);
    memory->start_dirty_log();
    const std::array ranges{GuestRange{{0}, 16}};
    auto source = PinnedBuffer::pin(*memory, ranges, PinnedBuffer::Access::KernelReads);
    source->complete();
    CHECK(memory->harvest_dirty_log()[0] == 0);
    CHECK(watcher.calls == 0);
    auto destination = PinnedBuffer::pin(*memory, ranges, PinnedBuffer::Access::KernelWrites);
    CHECK(watcher.calls == 2); // before and after nothing, so that no code runs from here
    destination->complete();
    CHECK(watcher.calls == 4);
}
