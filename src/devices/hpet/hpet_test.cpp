// SPDX-License-Identifier: Apache-2.0
/// Sections are those of the IA-PC HPET Specification 1.0a.
#include <doctest/doctest.h>

#include "devices/hpet/hpet.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct MsiLog final : bus::MsiSink {
    std::vector<bus::MsiMessage> messages;
    void send_msi(bus::MsiMessage message) noexcept override { messages.push_back(message); }
};

struct Rig {
    base::ManualTime time;
    test::FakeIrqSink gsi;
    test::FakeIrqSink isa;
    MsiLog msi;
    Hpet hpet{{&gsi, 0x00f0'0104, isa.line(0), isa.line(8), &msi}, time};

    void set(std::uint64_t offset, std::uint64_t value) { hpet.io_write({offset, 8}, value); }
    void set32(std::uint64_t offset, std::uint64_t value) { hpet.io_write({offset, 4}, value); }
    std::uint64_t get(std::uint64_t offset) { return hpet.io_read({offset, 8}); }
    std::uint64_t get32(std::uint64_t offset) { return hpet.io_read({offset, 4}) & 0xffff'ffff; }
    void us(std::uint64_t n) { time.advance_to(time.now_ns() + n * 1000); }
};

constexpr std::uint64_t kLevel = 2, kEnable = 4, kPeriodic = 8, kSet = 0x40, k32 = 0x100;
constexpr std::uint64_t kRoute20 = 20 << 9;

} // namespace

TEST_CASE_FIXTURE(Rig, "hpet: capabilities: 10 ns, 64 bits, three timers, legacy route (2.3.4)") {
    CHECK(get(0) == (10'000'000ull << 32 | 0x8086'a201));
    CHECK(get32(4) == 10'000'000);
    CHECK((get(0x100) & 0xff) == 0x30);
    CHECK((get(0x100) >> 32) == 0x00f0'0104);
    CHECK(get(0x160) == 0);
}

TEST_CASE_FIXTURE(Rig, "hpet: the counter runs while enabled and can be set while halted") {
    us(100);
    CHECK(get(0xf0) == 0);
    set(0x10, 1);
    us(1);
    CHECK(get(0xf0) == 100);
    set(0x10, 0);
    us(50);
    CHECK(get(0xf0) == 100);
    set(0xf0, 0xffff'fff0);
    set(0x10, 1);
    us(1);
    CHECK(get(0xf0) == 0x1'0000'0054);
    CHECK(get32(0xf4) == 1);
}

TEST_CASE_FIXTURE(Rig, "hpet: one-shot matches once and interrupts by edge") {
    set(0x10, 1);
    set(0x100, kEnable | kRoute20);
    set(0x108, 10'000); // 100 us
    us(99);
    CHECK(gsi.rises(20) == 0);
    us(1);
    CHECK(gsi.rises(20) == 1);
    CHECK(!gsi.level(20));
    us(10'000);
    CHECK(gsi.rises(20) == 1);
    CHECK(get(0x20) == 0); // edges leave no status
}

TEST_CASE_FIXTURE(Rig, "hpet: periodic as Linux sets it: VAL_SET, first match, then the period") {
    set(0x10, 3);
    us(500);
    set32(0x100, kEnable | kPeriodic | kSet | k32);
    set32(0x108, static_cast<std::uint32_t>(get(0xf0) + 100'000));
    us(1);
    set32(0x108, 100'000); // 1 ms
    us(998);
    CHECK(isa.rises(0) == 0);
    us(1);
    CHECK(isa.rises(0) == 1);
    us(10'000);
    CHECK(isa.rises(0) == 11);
}

TEST_CASE_FIXTURE(Rig, "hpet: a periodic comparator reads the next match and does not drift") {
    set(0x10, 1);
    set(0x120, kEnable | kPeriodic | kSet | kRoute20);
    set(0x128, 33'333);
    us(60'000'000);
    CHECK(gsi.rises(20) == 6'000'000'000 / 33'333);
    CHECK(get(0x128) % 33'333 == 0);
    CHECK(get(0x128) > get(0xf0));
}

TEST_CASE_FIXTURE(Rig, "hpet: 32-bit comparators match the counter's low half and come around") {
    set(0xf0, 0x5'ffff'ff00);
    set(0x100, kEnable | k32 | kRoute20);
    set(0x108, 0x100);
    CHECK(get(0x108) == 0x100);
    set(0x10, 1);
    us(5);
    CHECK(gsi.rises(20) == 0);
    us(1); // 512 ticks
    CHECK(gsi.rises(20) == 1);
    time.advance_to(time.now_ns() + (10ull << 32));
    CHECK(gsi.rises(20) == 2);
}

TEST_CASE_FIXTURE(Rig, "hpet: level interrupts stay up until status is cleared (2.3.6)") {
    set(0x10, 1);
    set(0x140, kEnable | kLevel | kRoute20);
    set(0x148, 1000);
    us(10);
    CHECK(gsi.level(20));
    CHECK(get(0x20) == 4);
    set(0x20, 1); // another comparator's
    CHECK(gsi.level(20));
    set(0x20, 4);
    CHECK(!gsi.level(20));
    CHECK(get(0x20) == 0);
}

TEST_CASE_FIXTURE(Rig, "hpet: legacy replacement cuts PIT and RTC off their lines") {
    hpet.from_pit().set_level(true);
    hpet.from_rtc().set_level(true);
    CHECK(isa.level(0));
    CHECK(isa.level(8));
    set(0x10, 3);
    CHECK(!isa.level(0));
    hpet.from_pit().pulse();
    CHECK(!isa.level(0));
    CHECK(isa.rises(0) == 1);
    set(0x120, kEnable);
    set(0x128, 1000);
    us(10);
    CHECK(isa.rises(8) == 2);
    set(0x10, 1);
    CHECK(!isa.level(0)); // the PIT went down meanwhile
    CHECK(isa.level(8));  // the RTC did not
}

TEST_CASE_FIXTURE(Rig, "hpet: FSB delivery sends address and data (2.3.10)") {
    CHECK((get(0x100) & 0x8000) != 0);
    set(0x10, 1);
    set(0x110, 0xfee0'1000ull << 32 | 0x41);
    set(0x100, kEnable | 0x4000);
    set(0x108, 1000);
    us(20);
    REQUIRE(msi.messages.size() == 1);
    CHECK(msi.messages[0].address == 0xfee0'1000);
    CHECK(msi.messages[0].data == 0x41);
}

TEST_CASE_FIXTURE(Rig, "hpet: routes that are not offered and a period of 1 do no harm") {
    set(0x10, 1);
    set(0x100, kEnable | kPeriodic | kSet | 31 << 9);
    set(0x108, 1);
    us(1000);
    CHECK(gsi.inputs.empty());
}
