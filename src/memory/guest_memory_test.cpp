// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>

#include <array>
#include <tuple>
#include <vector>

#include "memory/guest_memory.hpp"

using namespace doppel::memory;

namespace {

constexpr std::uint64_t kHigh = 0x1'0000'0000;

std::unique_ptr<GuestMemory> two_regions() {
    const std::array regions{RamRegion{{0}, 4 * kPageBytes}, RamRegion{{kHigh}, 2 * kPageBytes}};
    return std::move(GuestMemory::create(regions)).value();
}

struct Recorder final : CodeWatcher {
    std::vector<std::tuple<std::uint64_t, std::uint64_t, Moment>> seen;
    void on_code_write(Gpa gpa, std::uint64_t length, Moment moment) noexcept override {
        seen.emplace_back(gpa.value, length, moment);
    }
};

} // namespace

TEST_CASE("what is written is read back, across pages") {
    const auto memory = two_regions();
    REQUIRE(memory->store<std::uint64_t>({kPageBytes - 3}, 0x1122334455667788u));
    CHECK(memory->load<std::uint64_t>({kPageBytes - 3}) == 0x1122334455667788u);
    CHECK(memory->load<std::uint8_t>({kPageBytes}) == 0x55);
}

TEST_CASE("addresses outside RAM are refused, whole accesses only") {
    const auto memory = two_regions();
    CHECK(!memory->load<std::uint32_t>({4 * kPageBytes - 2}));
    CHECK(!memory->store<std::uint32_t>({4 * kPageBytes - 2}, 1));
    CHECK(memory->load<std::uint8_t>({4 * kPageBytes - 2}) == 0); // nothing half-written
    CHECK(!memory->contains({~0ull - 1}, 8));
    CHECK(!memory->contains({0}, ~0ull));
    CHECK(memory->contains({kHigh}, 2 * kPageBytes));
    CHECK(memory->engine_page({5 * kPageBytes}) == nullptr);
}

TEST_CASE("overlapping or unaligned regions are refused") {
    const std::array overlap{RamRegion{{0}, 2 * kPageBytes}, RamRegion{{kPageBytes}, kPageBytes}};
    CHECK(!GuestMemory::create(overlap));
    const std::array unaligned{RamRegion{{0}, 100}};
    CHECK(!GuestMemory::create(unaligned));
}

TEST_CASE("the dirty log names exactly the pages written since the last harvest") {
    const auto memory = two_regions();
    memory->start_dirty_log();
    REQUIRE(memory->store<std::uint16_t>({2 * kPageBytes - 1}, 7)); // pages 1 and 2
    REQUIRE(memory->store<std::uint8_t>({kHigh + kPageBytes}, 7));  // page 5
    CHECK(memory->harvest_dirty_log() == std::vector<std::uint64_t>{0b100110});
    CHECK(memory->harvest_dirty_log() == std::vector<std::uint64_t>{0});
    memory->stop_dirty_log();
    CHECK(memory->page_state({0}) == 0);
}

TEST_CASE("the code watcher is told before and after a write to a code page, and only then") {
    const auto memory = two_regions();
    Recorder recorder;
    memory->set_code_watcher(&recorder);
    memory->set_code_page({kPageBytes}, true);
    REQUIRE(memory->store<std::uint8_t>({0}, 1));
    CHECK(recorder.seen.empty());
    REQUIRE(memory->fill({kPageBytes - 4}, 8, std::byte{9}));
    REQUIRE(recorder.seen.size() == 2);
    CHECK(recorder.seen[0] == std::tuple{kPageBytes, 4ull, CodeWatcher::Moment::Before});
    CHECK(recorder.seen[1] == std::tuple{kPageBytes, 4ull, CodeWatcher::Moment::After});
    memory->set_code_page({kPageBytes}, false);
    REQUIRE(memory->store<std::uint8_t>({kPageBytes}, 1));
    CHECK(recorder.seen.size() == 2);
}

TEST_CASE("RAM cannot be shrunk behind our back") {
    const auto memory = two_regions();
    CHECK((::fcntl(memory->fd(), F_GET_SEALS) & F_SEAL_SHRINK) != 0);
}

TEST_CASE("RAM is one linear range as well, its regions in order") {
    const std::array<RamRegion, 2> regions{{{{0x1000}, 0x2000}, {{0x10000}, 0x3000}}};
    auto memory = GuestMemory::create(regions).value();
    CHECK(memory->next_used(0) == memory->size_bytes()); // nothing was ever written
    std::array<std::byte, 0x1000> pattern{};
    for (std::size_t i = 0; i < pattern.size(); ++i)
        pattern[i] = static_cast<std::byte>(i * 7);
    REQUIRE(memory->write_linear(0x1800, pattern)); // the end of one region, the start of the next
    CHECK(memory->load<std::uint8_t>({0x2800}) == static_cast<std::uint8_t>(pattern[0]));
    CHECK(memory->load<std::uint8_t>({0x10000}) == static_cast<std::uint8_t>(pattern[0x800]));
    CHECK(memory->next_used(0) == 0x1000);
    std::array<std::byte, 0x1000> back{};
    REQUIRE(memory->read_linear(0x1800, back));
    CHECK(back == pattern);
    CHECK(!memory->read_linear(0x4001, back)); // one byte behind the end
    CHECK(!memory->write_linear(UINT64_MAX, back));
}

namespace {

/// An engine whose guest wrote page 1 of the first region and page 2 of the second.
struct FakeWriteLog final : WriteLog {
    int running = 0, collected = 0;
    void start() noexcept override { ++running; }
    void stop() noexcept override { --running; }
    void collect(GuestMemory& memory) noexcept override {
        ++collected;
        const std::uint64_t first = 0b10, second = ~std::uint64_t{0} << 2; // pages behind it, too
        memory.note_engine_writes({0}, {&first, 1});
        memory.note_engine_writes({0x10'0000}, {&second, 1});
        memory.note_engine_writes({0x5000'0000}, {&first, 1}); // no such region
    }
};

} // namespace

TEST_CASE("what an engine wrote by itself is in the dirty log, and nothing beyond its region") {
    const std::array regions{RamRegion{{0}, 3 * kPageBytes},
                             RamRegion{{0x10'0000}, 3 * kPageBytes}};
    auto memory = std::move(*GuestMemory::create(regions));
    FakeWriteLog log;
    memory->set_write_log(&log);
    memory->start_dirty_log();
    CHECK(log.running == 1);
    CHECK(memory->store<std::uint8_t>({0x2000}, 1));
    CHECK(memory->harvest_dirty_log() == std::vector<std::uint64_t>{0b100110});
    memory->start_dirty_log(); // once more changes nothing
    CHECK(log.running == 1);
    memory->stop_dirty_log();
    CHECK(log.running == 0);
    const auto collected = log.collected;
    memory->harvest_dirty_log();
    CHECK(log.collected == collected);
    memory->set_write_log(nullptr);
}
