// SPDX-License-Identifier: Apache-2.0
/// Sections are those of the Intel SDM Vol. 3A, September 2023.
#include <doctest/doctest.h>

#include <vector>

#include "devices/apic/apic_timer.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

constexpr std::uint32_t kPeriodic = 1u << 17, kDeadline = 2u << 17, kMasked = 1u << 16;

struct Rig {
    base::ManualTime time;
    test::FakeTsc tsc{time}; // 2 GHz
    std::vector<int> fired;
    ApicTimer timer{time, 1'000'000'000, &tsc, [this](std::uint8_t v) { fired.push_back(v); }};
    Rig() { timer.set_divide(0x0b); } // by 1: a count is a nanosecond
};

} // namespace

TEST_CASE_FIXTURE(Rig, "apic timer: one-shot fires once when the count is zero (11.5.4)") {
    timer.set_lvt(0x40);
    timer.set_initial_count(100'000);
    time.advance_to(40'000);
    CHECK(timer.current_count() == 60'000);
    time.advance_to(99'999);
    CHECK(fired.empty());
    time.advance_to(100'000);
    CHECK(fired == std::vector{0x40});
    CHECK(timer.current_count() == 0);
    time.advance_to(1'000'000);
    CHECK(fired.size() == 1);
}

TEST_CASE_FIXTURE(Rig, "apic timer: periodic fires each period and does not drift") {
    timer.set_lvt(kPeriodic | 0x41);
    timer.set_initial_count(1'000'000);
    time.advance_to(3'600'000'000'000);
    CHECK(fired.size() == 3'600'000);
    time.advance_to(3'600'000'250'000);
    CHECK(timer.current_count() == 750'000);
}

TEST_CASE_FIXTURE(Rig, "apic timer: the divider counts 2, 4 … 128 and 1 (figure 11-10)") {
    const std::uint8_t codes[] = {0x0, 0x1, 0x2, 0x3, 0x8, 0x9, 0xa, 0xb};
    const std::uint64_t divisors[] = {2, 4, 8, 16, 32, 64, 128, 1};
    for (int i = 0; i < 8; ++i) {
        timer.set_divide(codes[i]);
        CHECK(timer.divide() == codes[i]);
        timer.set_initial_count(1'000'000);
        time.advance_to(time.now_ns() + 128'000);
        CHECK(timer.current_count() == 1'000'000 - 128'000 / divisors[i]);
    }
}

TEST_CASE_FIXTURE(Rig, "apic timer: a new divider keeps the count that is left") {
    timer.set_lvt(0x40);
    timer.set_initial_count(100'000);
    time.advance_to(50'000);
    timer.set_divide(0x0); // by 2
    CHECK(timer.current_count() == 50'000);
    time.advance_to(149'999);
    CHECK(fired.empty());
    time.advance_to(150'000);
    CHECK(fired.size() == 1);
}

TEST_CASE_FIXTURE(Rig, "apic timer: a count of zero stops it") {
    timer.set_lvt(kPeriodic | 0x41);
    timer.set_initial_count(100'000);
    time.advance_to(150'000);
    timer.set_initial_count(0);
    time.advance_to(1'000'000);
    CHECK(fired.size() == 1);
    CHECK(timer.current_count() == 0);
}

TEST_CASE_FIXTURE(Rig, "apic timer: masked it counts silently, unmasked it goes on in step") {
    timer.set_lvt(kPeriodic | kMasked | 0x41);
    timer.set_initial_count(100'000);
    CHECK(time.next_deadline_ns() == UINT64_MAX); // no host timer for nobody
    time.advance_to(250'000);
    timer.set_lvt(kPeriodic | 0x41);
    time.advance_to(299'999);
    CHECK(fired.empty());
    time.advance_to(300'000);
    CHECK(fired.size() == 1);
}

TEST_CASE_FIXTURE(Rig, "apic timer: TSC-deadline fires once and reads zero then (11.5.4.1)") {
    timer.set_lvt(kDeadline | 0x42);
    timer.set_initial_count(1000); // ignored in this mode
    timer.set_tsc_deadline(200'000);
    CHECK(timer.tsc_deadline() == 200'000);
    CHECK(timer.current_count() == 0);
    time.advance_to(99'999);
    CHECK(fired.empty());
    time.advance_to(100'000);
    CHECK(fired == std::vector{0x42});
    CHECK(timer.tsc_deadline() == 0);
}

TEST_CASE_FIXTURE(Rig, "apic timer: a TSC deadline in the past fires at once, zero disarms") {
    timer.set_lvt(kDeadline | 0x42);
    time.advance_to(1'000'000);
    timer.set_tsc_deadline(5);
    CHECK(fired.size() == 1);
    timer.set_tsc_deadline(4'000'000);
    timer.set_tsc_deadline(0);
    time.advance_to(9'000'000);
    CHECK(fired.size() == 1);
}

TEST_CASE_FIXTURE(Rig, "apic timer: changing to or from TSC-deadline mode disarms") {
    timer.set_lvt(0x40);
    timer.set_initial_count(100'000);
    timer.set_lvt(kDeadline | 0x40);
    timer.set_lvt(0x40);
    time.advance_to(1'000'000);
    CHECK(fired.empty());
    timer.set_tsc_deadline(1); // ignored in the other modes
    CHECK(timer.tsc_deadline() == 0);
    CHECK(fired.empty());
}

TEST_CASE_FIXTURE(Rig, "apic timer: between one-shot and periodic the count goes on") {
    timer.set_lvt(0x40);
    timer.set_initial_count(100'000);
    time.advance_to(40'000);
    timer.set_lvt(kPeriodic | 0x40);
    CHECK(timer.current_count() == 60'000);
    time.advance_to(130'000);
    CHECK(fired.size() == 1);
    CHECK(timer.current_count() == 70'000);
    timer.set_lvt(0x40);
    CHECK(timer.current_count() == 70'000);
    time.advance_to(1'000'000);
    CHECK(fired.size() == 2);
    CHECK(timer.current_count() == 0);
    timer.set_lvt(kPeriodic | 0x40); // stopped at zero, it stays there
    time.advance_to(2'000'000);
    CHECK(fired.size() == 2);
    CHECK(timer.current_count() == 0);
    CHECK(timer.initial_count() == 100'000);
}

TEST_CASE_FIXTURE(Rig, "apic timer: the shortest periods do not drown the timer thread") {
    timer.set_lvt(kPeriodic | 0x41);
    timer.set_initial_count(1);
    time.advance_to(1'000'000);
    CHECK(fired.size() <= 100);
    CHECK(fired.size() >= 99);
}

TEST_CASE("apic timer: without a TSC port the mode bit cannot be set") {
    base::ManualTime time;
    ApicTimer timer{time, 1'000'000, nullptr, [](std::uint8_t) {}};
    timer.set_lvt(kDeadline | 0x42);
    CHECK(timer.lvt() == 0x42);
}
