// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "block/async_lock.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

struct Rig {
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
};

struct NextRound { // lets the loop run once
    IoContext& context;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) { context.resume_later(waiter); }
    void await_resume() const noexcept {}
};

Task<void> hold(IoContext& context, AsyncMutex& mutex, std::string& order, char name) {
    auto wait = mutex.lock();
    auto guard = co_await wait;
    order += name;
    NextRound pause{context};
    co_await pause;
    order += name;
    co_return {};
}

Task<void> hold_range(IoContext& context, RangeLock& lock, std::uint64_t begin, std::uint64_t end,
                      RangeLock::Mode mode, std::string& order, char name) {
    auto wait = lock.lock(begin, end, mode);
    auto guard = co_await wait;
    order += name;
    NextRound pause{context};
    co_await pause;
    order += name;
    co_return {};
}

} // namespace

TEST_CASE("a coroutine mutex lets one in at a time, in the order of asking") {
    Rig rig;
    AsyncMutex mutex{*rig.context};
    std::string order;
    std::vector<Task<void>> tasks;
    for (const char name : {'a', 'b', 'c'})
        tasks.push_back(hold(*rig.context, mutex, order, name));
    CHECK(rig.context->wait(all_of(std::move(tasks))).has_value());
    CHECK(order == "aabbcc");
}

TEST_CASE("ranges conflict when they overlap and one of them is exclusive") {
    using enum RangeLock::Mode;
    Rig rig;
    RangeLock lock{*rig.context};
    std::string order;
    std::vector<Task<void>> tasks;
    tasks.push_back(hold_range(*rig.context, lock, 0, 10, Shared, order, 'a'));
    tasks.push_back(hold_range(*rig.context, lock, 5, 15, Shared, order, 'b'));
    tasks.push_back(hold_range(*rig.context, lock, 8, 20, Exclusive, order, 'c'));
    tasks.push_back(hold_range(*rig.context, lock, 20, 30, Exclusive, order, 'd'));
    tasks.push_back(hold_range(*rig.context, lock, 9, 10, Shared, order, 'e')); // behind c
    CHECK(rig.context->wait(all_of(std::move(tasks))).has_value());
    CHECK(order == "abdabdccee");
}

TEST_CASE("the first error of several tasks is what all_of yields") {
    Rig rig;
    std::vector<Task<void>> tasks;
    tasks.push_back(ready<void>({}));
    tasks.push_back(ready<void>(base::fail(Errc::Io, "first")));
    tasks.push_back(ready<void>(base::fail(Errc::Io, "second")));
    const auto result = rig.context->wait(all_of(std::move(tasks)));
    REQUIRE(!result.has_value());
    CHECK(result.error().text == "first");
}
