// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <vector>

#include "machine/virtual_time.hpp"

using namespace doppel;
using machine::VirtualTime;

TEST_CASE("virtual time: an instruction is a nanosecond, and a deadline limits a grant") {
    cpu::InstructionMeter meter;
    VirtualTime time{meter};
    auto timer = time.create_timer([] {});
    timer->arm(300);
    time.grant(1000);
    CHECK(meter.left() == 300);
    meter.count(300);
    CHECK(time.now_ns() == 300);
    CHECK(time.read() == 300);
    time.fire_due();
    time.grant(1000);
    CHECK(meter.left() == 700);
}

TEST_CASE("virtual time: a timer armed while the guest runs shortens the grant") {
    cpu::InstructionMeter meter;
    VirtualTime time{meter};
    auto timer = time.create_timer([] {});
    time.grant(1000);
    meter.count(100);
    timer->arm(150);
    CHECK(meter.left() == 50);
    timer->arm(90); // in the past: at once
    CHECK(meter.left() == 0);
    meter.count(1); // the instruction that armed it
    CHECK(meter.left() == 0);
}

TEST_CASE("virtual time: timers fire in order of deadline, and may arm others that are due") {
    cpu::InstructionMeter meter;
    VirtualTime time{meter};
    std::vector<int> order;
    auto third = time.create_timer([&] { order.push_back(3); });
    auto second = time.create_timer([&] {
        order.push_back(2);
        third->arm(20);
    });
    auto first = time.create_timer([&] { order.push_back(1); });
    second->arm(20);
    first->arm(10);
    time.grant(100);
    meter.count(20);
    time.fire_due();
    CHECK(order == std::vector{1, 2, 3});
}

TEST_CASE("virtual time: skipping goes to the next deadline and no further") {
    cpu::InstructionMeter meter;
    VirtualTime time{meter};
    int fired = 0;
    auto near = time.create_timer([&] { ++fired; });
    auto far = time.create_timer([&] { ++fired; });
    CHECK(!time.skip_to_next());
    near->arm(5'000);
    far->arm(6'000);
    CHECK(time.skip_to_next());
    CHECK(time.now_ns() == 5'000);
    CHECK(fired == 1);
    CHECK(meter.executed() == 0);
    far->cancel();
    CHECK(!time.skip_to_next());
    CHECK(fired == 1);
}

TEST_CASE("virtual time: the calendar begins where it always begins, and follows the clock") {
    cpu::InstructionMeter meter;
    VirtualTime time{meter};
    const machine::VirtualCalendar calendar{time};
    CHECK(calendar.now().seconds == machine::VirtualCalendar::kStart);
    time.grant(3'000'000'000);
    meter.count(2'000'000'007);
    CHECK(calendar.now().seconds == machine::VirtualCalendar::kStart + 2);
    CHECK(calendar.now().nanoseconds == 7);
}

TEST_CASE("virtual time: random numbers differ from each other and are the same in every run") {
    machine::RepeatableEntropy one;
    machine::RepeatableEntropy two;
    std::uint64_t a = 0;
    std::uint64_t b = 0;
    std::uint64_t c = 0;
    CHECK(one.next(a));
    CHECK(two.next(b));
    CHECK(one.next(c));
    CHECK(a == b);
    CHECK(a != c);
}

TEST_CASE("virtual time: a saved VM's clock goes on from where it was, its timers with it") {
    cpu::InstructionMeter meter;
    VirtualTime time{meter};
    int fired = 0;
    auto timer = time.create_timer([&] { ++fired; });
    time.grant(1000);
    meter.count(400); // what came before does not matter
    time.set_now(1'000'000);
    CHECK(time.now_ns() == 1'000'000);
    timer->arm(1'000'300);
    time.grant(2000);
    CHECK(meter.left() == 300);
    meter.count(300);
    time.fire_due();
    CHECK(fired == 1);
}
