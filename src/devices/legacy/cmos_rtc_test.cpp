// SPDX-License-Identifier: Apache-2.0
/// Quoted terms are those of the Motorola MC146818A data sheet.
#include <doctest/doctest.h>

#include "devices/legacy/cmos_rtc.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

/// The host's calendar runs with VM time, from 2024-02-29 23:59:58.0 UTC on.
struct RunningWallClock final : base::WallClock {
    const base::Clock& clock;
    explicit RunningWallClock(const base::Clock& c) : clock{c} {}
    Time now() const noexcept override {
        const auto ns = clock.now_ns();
        return {static_cast<std::int64_t>(1'709'251'198 + ns / 1'000'000'000),
                static_cast<std::uint32_t>(ns % 1'000'000'000)};
    }
};

struct Rig {
    base::ManualTime time;
    RunningWallClock wall{time};
    test::FakeIrqSink irq;
    CmosRtc rtc{irq.line(8), wall, time};

    unsigned get(unsigned index) {
        rtc.io_write({0, 1}, index);
        return static_cast<unsigned>(rtc.io_read({1, 1}));
    }
    void set(unsigned index, unsigned value) {
        rtc.io_write({0, 1}, index);
        rtc.io_write({1, 1}, value);
    }
    void ms(std::uint64_t n) { time.advance_to(time.now_ns() + n * 1'000'000); }
    bool level() { return irq.level(8); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "rtc: calendar registers read as BCD") {
    CHECK(get(0x00) == 0x58);
    CHECK(get(0x02) == 0x59);
    CHECK(get(0x04) == 0x23);
    CHECK(get(0x06) == 0x05); // Thursday
    CHECK(get(0x07) == 0x29);
    CHECK(get(0x08) == 0x02);
    CHECK(get(0x09) == 0x24);
    CHECK(get(0x32) == 0x20);
    CHECK(get(0x0d) == 0x80);
}

TEST_CASE_FIXTURE(Rig, "rtc: the leap day ends in March") {
    ms(2000);
    CHECK(get(0x00) == 0x00);
    CHECK(get(0x04) == 0x00);
    CHECK(get(0x06) == 0x06);
    CHECK(get(0x07) == 0x01);
    CHECK(get(0x08) == 0x03);
}

TEST_CASE_FIXTURE(Rig, "rtc: binary and 12-hour formats") {
    set(0x0b, 0x06);
    CHECK(get(0x00) == 58);
    CHECK(get(0x04) == 23);
    set(0x0b, 0x04);
    CHECK(get(0x04) == (0x80 | 11));
    set(0x0b, 0x00);
    CHECK(get(0x04) == 0x91);
    ms(2000);
    CHECK(get(0x04) == 0x12); // midnight is 12 AM
}

TEST_CASE_FIXTURE(Rig, "rtc: the guest sets the clock under SET and it runs on from there") {
    set(0x0b, 0x82);
    ms(5000);
    CHECK(get(0x00) == 0x58); // frozen
    set(0x00, 0x30);
    set(0x02, 0x15);
    set(0x04, 0x07);
    set(0x06, 0x02);
    set(0x07, 0x31);
    set(0x08, 0x12);
    set(0x09, 0x99);
    set(0x32, 0x19);
    set(0x0b, 0x02);
    CHECK(get(0x00) == 0x30);
    CHECK(get(0x06) == 0x02);
    ms(29'900);
    CHECK(get(0x00) == 0x59);
    CHECK(get(0x02) == 0x15);
    ms(16ull * 3600 * 1000 + 44ull * 60 * 1000 + 1000);
    CHECK(get(0x04) == 0x00);
    CHECK(get(0x07) == 0x01);
    CHECK(get(0x08) == 0x01);
    CHECK(get(0x09) == 0x00);
    CHECK(get(0x32) == 0x20);
    CHECK(get(0x06) == 0x03);
}

TEST_CASE_FIXTURE(Rig, "rtc: the divider out of reset updates half a second later") {
    set(0x0a, 0x70);
    ms(7300);
    CHECK(get(0x00) == 0x58);
    set(0x0a, 0x26);
    ms(499);
    CHECK(get(0x00) == 0x58);
    ms(2);
    CHECK(get(0x00) == 0x59);
}

TEST_CASE_FIXTURE(Rig, "rtc: UIP announces an update 2.2 ms ahead") {
    CHECK((get(0x0a) & 0x80) == 0);
    ms(997);
    CHECK((get(0x0a) & 0x80) == 0);
    ms(1);
    CHECK((get(0x0a) & 0x80) == 0x80);
    CHECK(get(0x00) == 0x58);
    ms(2);
    CHECK((get(0x0a) & 0x80) == 0);
    CHECK(get(0x00) == 0x59);
}

TEST_CASE_FIXTURE(Rig, "rtc: update-ended interrupt each second, reading register C acknowledges") {
    set(0x0b, 0x12);
    CHECK(!level());
    ms(999);
    CHECK(!level());
    ms(1);
    CHECK(level());
    CHECK((get(0x0c) & 0x90) == 0x90);
    CHECK(!level());
    CHECK((get(0x0c) & 0x90) == 0);
    ms(1000);
    CHECK(level());
}

TEST_CASE_FIXTURE(Rig, "rtc: flags are set without their enables, and then raise the line") {
    ms(1500);
    CHECK(!level());
    set(0x0b, 0x12);
    CHECK(level());
    CHECK((get(0x0c) & 0x10) == 0x10);
}

TEST_CASE_FIXTURE(Rig, "rtc: alarm at a time of day, and with don't-care codes") {
    set(0x01, 0x00);
    set(0x03, 0x00);
    set(0x05, 0x00);
    set(0x0b, 0x22);
    ms(1999);
    CHECK(!level());
    ms(1);
    CHECK(level());
    CHECK((get(0x0c) & 0xa0) == 0xa0);
    set(0x01, 0x30);
    set(0x03, 0xff);
    set(0x05, 0xff); // every minute at :30
    ms(29'999);
    CHECK(!level());
    ms(1);
    CHECK(level());
    get(0x0c);
    ms(60'000);
    CHECK(level());
}

TEST_CASE_FIXTURE(Rig, "rtc: an impossible alarm never comes") {
    set(0x01, 0x77);
    set(0x0b, 0x22);
    ms(3ull * 86'400 * 1000);
    CHECK(!level());
    CHECK((get(0x0c) & 0x20) == 0);
}

TEST_CASE_FIXTURE(Rig, "rtc: periodic interrupt at 1024 Hz") {
    set(0x0b, 0x42);
    int count = 0;
    for (int i = 0; i < 4000; ++i) {
        time.advance_to(time.now_ns() + 250'000);
        if (level()) {
            ++count;
            CHECK((get(0x0c) & 0xc0) == 0xc0);
        }
    }
    CHECK(count == 1024);
}

TEST_CASE_FIXTURE(Rig, "rtc: RAM and time survive reset, interrupt enables and index do not") {
    set(0x40, 0xab);
    set(0x0b, 0x52);
    rtc.reset();
    CHECK(rtc.io_read({1, 1}) == 0x58); // index 0 again
    CHECK(get(0x40) == 0xab);
    CHECK(get(0x0b) == 0x02);
}

TEST_CASE_FIXTURE(Rig, "rtc: registers C and D are read-only, port 70h reads ones") {
    set(0x0d, 0x00);
    set(0x0c, 0xff);
    CHECK(get(0x0d) == 0x80);
    CHECK(get(0x0c) == 0x00);
    CHECK(rtc.io_read({0, 1}) == 0xff);
}

TEST_CASE_FIXTURE(Rig, "rtc: the board fills RAM, not the clock's registers") {
    rtc.set_ram(0x5f, 3);
    rtc.set_ram(0x0b, 0xff);
    CHECK(get(0x5f) == 3);
    CHECK(get(0x0b) == 0x02);
}
