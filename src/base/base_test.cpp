// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

#include "base/bytes.hpp"
#include "base/clock.hpp"
#include "base/crc32c.hpp"
#include "base/event_loop.hpp"
#include "base/printable.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"

using namespace doppel::base;

namespace {

Result<int> half(int value) {
    if (value % 2 != 0)
        return fail(Errc::InvalidArgument, "value is odd", "give an even one");
    return value / 2;
}

Result<int> quarter(int value) {
    const int once = DOPPEL_TRY(half(value));
    return DOPPEL_TRY(half(once));
}

} // namespace

TEST_CASE("DOPPEL_TRY passes values on and errors up") {
    CHECK(quarter(12).value() == 3);
    REQUIRE(!quarter(6).has_value());
    CHECK(quarter(6).error().message() == "value is odd; give an even one");
}

TEST_CASE("a failed system call names its reason") {
    const Result<int> result = fail_errno(ENOENT, "open 'x'");
    CHECK(result.error().code == Errc::NotFound);
    CHECK(result.error().message() == "open 'x': No such file or directory");
    CHECK(fail_errno(EISDIR, "open 'x'").error().code == Errc::InvalidArgument);
}

TEST_CASE("foreign text is printed on one line and commands no terminal") {
    CHECK(printable("Größe, 'x' \\ 日本") == "Größe, 'x' \\ 日本");
    CHECK(printable("a\n\x1b[31m\x7f") == "a\\x0a\\x1b[31m\\x7f");
    CHECK(printable("\xc2\x9b") == "\xc2\\x9b");
    CHECK(printable(std::string_view{"\0", 1}) == "\\x00");
    CHECK(printable("0123456789abcdef", 9) == "012345 … def");
    CHECK(printable("ééééééééé", 8) == "éé … é");
    const Error error{Errc::Corrupt, 0, "snapshot '" + std::string(70000, '\n') + "' lies", {}, {}};
    CHECK(error.message().size() < 1100);
    CHECK(error.message().find('\n') == std::string::npos);
}

TEST_CASE("byte order") {
    const unsigned char bytes[] = {1, 2, 3, 4};
    CHECK(load_le<std::uint32_t>(bytes) == 0x04030201u);
    CHECK(load_be<std::uint16_t>(bytes) == 0x0102u);
    CHECK(align_up(4097, 4096) == 8192);
    CHECK(align_down(4097, 4096) == 4096);
}

TEST_CASE("manual time fires timers in order of deadline and at their time") {
    ManualTime time;
    std::vector<std::uint64_t> fired;
    auto late = time.create_timer([&] { fired.push_back(time.now_ns()); });
    auto early = time.create_timer([&] { fired.push_back(time.now_ns()); });
    late->arm(200);
    early->arm(100);
    CHECK(time.next_deadline_ns() == 100);
    time.advance_to(99);
    CHECK(fired.empty());
    time.advance_to(1000);
    CHECK(fired == std::vector<std::uint64_t>{100, 200});
    CHECK(time.now_ns() == 1000);
    late->arm(2000);
    late->cancel();
    CHECK(time.next_deadline_ns() == UINT64_MAX);
}

TEST_CASE("a manual timer may arm itself again from its callback") {
    ManualTime time;
    int count = 0;
    std::unique_ptr<Timer> tick;
    tick = time.create_timer([&] {
        ++count;
        tick->arm(time.now_ns() + 10);
    });
    tick->arm(10);
    time.advance_to(100);
    CHECK(count == 10);
}

TEST_CASE("real time stands still while paused, and its timers wait") {
    RealTime time;
    std::atomic<int> fired{0};
    auto timer = time.create_timer([&] {
        ++fired;
        fired.notify_all();
    });
    time.pause();
    const auto frozen = time.now_ns();
    timer->arm(frozen); // due at once, but the VM is paused
    CHECK(time.now_ns() == frozen);
    CHECK(fired == 0);
    time.resume();
    fired.wait(0);
    CHECK(fired == 1);
    CHECK(time.now_ns() >= frozen);
}

TEST_CASE("a saved VM's time is set while paused and goes on from there; a skipped timer fires") {
    RealTime time;
    std::atomic<int> fired{0};
    auto timer = time.create_timer([&] {
        ++fired;
        fired.notify_all();
    });
    time.pause();
    constexpr std::uint64_t kYear = 365ull * 86'400 * 1'000'000'000;
    timer->arm(kYear - 1);
    time.set_now(kYear);
    CHECK(time.now_ns() == kYear);
    time.resume();
    fired.wait(0);
    CHECK(time.now_ns() >= kYear);
    CHECK(time.now_ns() < kYear + 60'000'000'000);
    timer->arm(1); // long before the host began
    fired.wait(1);
    CHECK(fired == 2);
}

TEST_CASE("a timer fires once, at the last deadline it was given; a cancelled one does not") {
    RealTime time;
    std::atomic<int> fired{0}, cancelled{0};
    std::atomic<std::uint64_t> at{0};
    auto timer = time.create_timer([&] {
        at = time.now_ns();
        ++fired;
        fired.notify_all();
    });
    auto other = time.create_timer([&] { ++cancelled; });
    const auto now = time.now_ns();
    constexpr std::uint64_t kMs = 1'000'000;
    timer->arm(now + 1 * kMs);
    for (std::uint64_t i = 2; i <= 20; ++i)
        timer->arm(now + i * kMs); // later and later: it stands where it stood
    other->arm(now + 5 * kMs);
    other->cancel();
    fired.wait(0);
    CHECK(at >= now + 20 * kMs);
    timer->arm(UINT64_MAX);
    timer->arm(time.now_ns() + 3'600'000 * kMs);
    timer->arm(0); // earlier than where it stands
    fired.wait(1);
    CHECK(fired == 2);
    CHECK(cancelled == 0);
}

TEST_CASE("a timer that is armed while its queue falls asleep or wakes up fires all the same") {
    RealTime time;
    std::atomic<int> fired{0};
    const auto create = [&] {
        return time.create_timer([&] {
            ++fired;
            fired.notify_all();
        });
    };
    const auto timer = create(), later = create();
    for (int i = 0; i < 2000; ++i) {
        later->arm(time.now_ns() + 3'600'000'000'000);
        timer->arm(time.now_ns() + static_cast<std::uint64_t>(i % 20) * 1'000);
        fired.wait(i);
    }
    later->cancel();
    CHECK(fired == 2000);
}

TEST_CASE("after a pause of real time no timer's callback runs") {
    RealTime time;
    std::atomic<int> step{0}; // 1: the callback runs, 2: it may end, 3: it has ended
    auto timer = time.create_timer([&] {
        step = 1;
        step.notify_all();
        step.wait(1);
        step = 3;
    });
    timer->arm(0);
    step.wait(0);
    std::thread releaser{[&] {
        step = 2;
        step.notify_all();
    }};
    time.pause();
    CHECK(step == 3);
    releaser.join();
}

TEST_CASE("the event loop runs posted tasks and descriptor callbacks on its own thread") {
    auto loop = EventLoop::create().value();
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const UniqueFd reader{ends[0]};
    const UniqueFd writer{ends[1]};
    std::thread::id seen;
    REQUIRE(loop->add(reader.get(), EPOLLIN, [&](std::uint32_t) {
        seen = std::this_thread::get_id();
        loop->remove(reader.get());
        loop->stop();
    }));
    std::thread other{[&] { loop->post([&] { CHECK(::write(writer.get(), "x", 1) == 1); }); }};
    loop->run();
    other.join();
    CHECK(seen == std::this_thread::get_id());
}

TEST_CASE("CRC-32C as RFC 3720 B.4 has it, whole and in pieces") {
    std::array<std::byte, 32> ascending{};
    for (std::size_t i = 0; i < ascending.size(); ++i)
        ascending[i] = static_cast<std::byte>(i);
    CHECK(crc32c(ascending) == 0x46dd'794e);
    CHECK(crc32c(std::array<std::byte, 32>{}) == 0x8a91'36aa);
    const std::span bytes{ascending};
    CHECK(crc32c(bytes.subspan(5), crc32c(bytes.first(5))) == crc32c(bytes));
}
