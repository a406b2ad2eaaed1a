// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <string>

#include "block/drive.hpp"
#include "block/io/io_context.hpp"
#include "block/memory/memory_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

/// Completes a read only when told.
class SlowNode final : public Node {
public:
    std::string driver() const override { return "slow"; }
    std::string name() const override { return "slow"; }
    std::uint64_t size() const override { return 4096; }
    bool read_only() const override { return true; }
    Task<void> read(std::uint64_t, IoBuffer) override {
        std::coroutine_handle<>& waiter = waiter_;
        struct Wait {
            std::coroutine_handle<>& place;
            bool await_ready() const noexcept { return false; }
            void await_suspend(std::coroutine_handle<> handle) const noexcept { place = handle; }
            void await_resume() const noexcept {}
        };
        Wait wait{waiter};
        co_await wait;
        co_return {};
    }
    Task<void> write(std::uint64_t, IoBuffer, Durability) override { return ready<void>({}); }
    Task<void> write_zeroes(std::uint64_t, std::uint64_t, Unmap, Durability) override {
        return ready<void>({});
    }
    Task<void> discard(std::uint64_t, std::uint64_t) override { return ready<void>({}); }
    Task<void> flush() override { return ready<void>({}); }
    Task<Extent> status(std::uint64_t, std::uint64_t) override { return ready<Extent>(Extent{}); }
    Task<void> resize(std::uint64_t) override { return ready<void>({}); }

    std::coroutine_handle<> waiter_;
};

} // namespace

TEST_CASE("a drive refuses what passes its end") {
    Drive drive{std::make_unique<MemoryNode>(std::vector<std::byte>(1000))};
    std::array<std::byte, 16> memory{};
    std::vector<bool> outcomes;
    const auto note = [&](const Result<void>& result) { outcomes.push_back(result.has_value()); };
    drive.write(984, IoBuffer{memory}, Durability::Cached, note);
    drive.write(985, IoBuffer{memory}, Durability::Cached, note);
    drive.read(1001, IoBuffer{}, note);
    drive.discard(~std::uint64_t{0}, 2, note);
    CHECK(outcomes == std::vector<bool>{true, false, false, false});
}

TEST_CASE("after drain nothing is in flight, and what came meanwhile runs on resume") {
    auto owned = std::make_unique<SlowNode>();
    auto& slow = *owned;
    Drive drive{std::move(owned)};
    std::string events;
    std::array<std::byte, 16> memory{};
    drive.read(0, IoBuffer{memory}, [&](const Result<void>&) { events += "first "; });
    drive.drain([&] { events += "drained "; });
    drive.flush([&](const Result<void>&) { events += "held "; });
    CHECK(drive.in_flight() == 1);
    slow.waiter_.resume();
    CHECK(events == "first drained ");
    CHECK(drive.in_flight() == 0);
    drive.resume();
    CHECK(events == "first drained held ");
}

TEST_CASE("a read-only image refuses writes with a sentence that names it") {
    Drive drive{std::make_unique<SlowNode>()};
    std::array<std::byte, 16> memory{};
    std::string text;
    drive.write(0, IoBuffer{memory}, Durability::Cached,
                [&](const Result<void>& result) { text = result.error().message(); });
    CHECK(text == "'slow' is open for reading only");
}
