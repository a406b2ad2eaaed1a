// SPDX-License-Identifier: Apache-2.0
/// Quoted terms are those of the Intel 82C54 data sheet (231244-006).
#include <doctest/doctest.h>

#include "devices/legacy/pit8254.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct Rig {
    base::ManualTime time;
    test::FakeIrqSink irq;
    Pit8254 pit{irq.line(), time};
    std::uint64_t tick = 0;

    void out(unsigned port, unsigned value) { pit.counters().io_write({port & 3, 1}, value); }
    unsigned in(unsigned port) {
        return static_cast<unsigned>(pit.counters().io_read({port & 3, 1}));
    }
    void port61(unsigned value) { pit.port61().io_write({0, 1}, value); }
    bool out2() { return (pit.port61().io_read({0, 1}) & 0x20) != 0; }
    void ticks(std::uint64_t n) {
        tick += n;
        time.advance_to(Pit8254::kFrequency.ns_at(tick));
    }
    void load(unsigned channel, unsigned control, unsigned count) {
        out(3, channel << 6 | control);
        out(channel, count & 0xff);
        out(channel, count >> 8);
    }
    unsigned count(unsigned channel) {
        out(3, channel << 6);
        const unsigned low = in(channel);
        return low | in(channel) << 8;
    }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "pit: mode 2 interrupts once per period and shows N..1") {
    load(0, 0x34, 1000);
    CHECK(irq.rises() == 1); // OUT goes high with the control word
    CHECK(count(0) == 1000);
    ticks(1);
    CHECK(count(0) == 999);
    ticks(998);
    CHECK(count(0) == 1);
    ticks(1);
    CHECK(count(0) == 1000);
    CHECK(irq.rises() == 2);
    ticks(3000);
    CHECK(irq.rises() == 5);
}

TEST_CASE_FIXTURE(Rig, "pit: periods do not drift over an hour") {
    load(0, 0x34, 11932);
    const auto before = irq.rises();
    time.advance_to(3'600'000'000'000);
    const auto expected = Pit8254::kFrequency.ticks_at(3'600'000'000'000) / 11932;
    CHECK(static_cast<std::uint64_t>(irq.rises() - before) == expected);
}

TEST_CASE_FIXTURE(Rig, "pit: mode 0: OUT low until the count is done, then high for good") {
    load(0, 0x30, 100);
    CHECK(!irq.level());
    ticks(99);
    CHECK(!irq.level());
    ticks(1);
    CHECK(irq.level());
    CHECK(irq.rises() == 1);
    ticks(100'000);
    CHECK(irq.rises() == 1);
    CHECK(count(0) == (65536 - 100'000 % 65536)); // counts on below zero
}

TEST_CASE_FIXTURE(Rig, "pit: mode 0: the first of two bytes stops the count") {
    load(0, 0x30, 100);
    ticks(150);
    CHECK(irq.level());
    out(0, 50);
    CHECK(!irq.level());
    ticks(500);
    CHECK(!irq.level());
    out(0, 0);
    ticks(49);
    CHECK(!irq.level());
    ticks(1);
    CHECK(irq.level());
}

TEST_CASE_FIXTURE(Rig, "pit: mode 4 strobes once, as Linux's one-shot clock event uses it") {
    load(0, 0x38, 200);
    const int before = irq.rises();
    ticks(200);
    CHECK(irq.rises() == before);
    ticks(20); // the strobe is one CLK
    CHECK(irq.rises() == before + 1);
    ticks(100'000);
    CHECK(irq.rises() == before + 1);
    out(0, 100);
    out(0, 0);
    ticks(120);
    CHECK(irq.rises() == before + 2);
}

TEST_CASE_FIXTURE(Rig, "pit: mode 3 is a square wave that counts by two") {
    port61(1);
    load(2, 0x36, 10);
    CHECK(out2());
    CHECK(count(2) == 10);
    ticks(1);
    CHECK(count(2) == 8);
    ticks(3);
    CHECK(out2());
    ticks(1);
    CHECK(!out2());
    CHECK(count(2) == 10);
    ticks(4);
    CHECK(!out2());
    ticks(1);
    CHECK(out2());
}

TEST_CASE_FIXTURE(Rig, "pit: odd counts in mode 3 are high for (N+1)/2") {
    port61(1);
    load(2, 0x36, 5);
    ticks(2);
    CHECK(out2());
    ticks(1);
    CHECK(!out2());
    ticks(1);
    CHECK(!out2());
    ticks(1);
    CHECK(out2());
}

TEST_CASE_FIXTURE(Rig, "pit: TSC calibration: gate on, mode 0 on channel 2, wait for OUT2") {
    port61(0x01);
    load(2, 0x30, 59659); // 50 ms
    CHECK(!out2());
    ticks(59658);
    CHECK(!out2());
    ticks(1);
    CHECK(out2());
}

TEST_CASE_FIXTURE(Rig, "pit: gate low holds the count of mode 0, high continues it") {
    port61(1);
    load(2, 0x30, 100);
    ticks(40);
    port61(0);
    ticks(1000);
    CHECK(count(2) == 60);
    CHECK(!out2());
    port61(1);
    ticks(59);
    CHECK(!out2());
    ticks(1);
    CHECK(out2());
}

TEST_CASE_FIXTURE(Rig, "pit: gate low stops mode 2 with OUT high, its rise starts a new period") {
    port61(1);
    load(2, 0x34, 100);
    ticks(99);
    CHECK(!out2());
    port61(0);
    CHECK(out2());
    ticks(50);
    port61(1);
    CHECK(count(2) == 100);
    ticks(99);
    CHECK(!out2());
}

TEST_CASE_FIXTURE(Rig, "pit: mode 1 runs from the rise of the gate, again and again") {
    port61(0);
    load(2, 0x32, 10);
    ticks(20);
    CHECK(out2());
    port61(1);
    CHECK(!out2());
    ticks(5);
    port61(0);
    port61(1); // retrigger
    ticks(9);
    CHECK(!out2());
    ticks(1);
    CHECK(out2());
}

TEST_CASE_FIXTURE(Rig, "pit: a new count in mode 2 holds from the end of the period") {
    load(0, 0x34, 1000);
    const int before = irq.rises();
    ticks(500);
    out(0, 100);
    out(0, 0);
    CHECK(count(0) == 500);
    ticks(499);
    CHECK(irq.rises() == before);
    ticks(1);
    CHECK(irq.rises() == before + 1);
    CHECK(count(0) == 100);
    ticks(100);
    CHECK(irq.rises() == before + 2);
}

TEST_CASE_FIXTURE(Rig, "pit: a latched count stands until it is read, then reads live") {
    load(0, 0x34, 1000);
    ticks(10);
    out(3, 0x00);
    ticks(10);
    out(3, 0x00); // ignored
    CHECK(in(0) == (990 & 0xff));
    CHECK(in(0) == 990 >> 8);
    CHECK(in(0) == (980 & 0xff));
    CHECK(in(0) == 980 >> 8);
}

TEST_CASE_FIXTURE(Rig, "pit: read-back gives status first, then the count") {
    load(0, 0x34, 1000);
    out(3, 0xc2);
    CHECK(in(0) == 0xb4); // OUT high, count loaded, low/high bytes, mode 2
    CHECK(in(0) == (1000 & 0xff));
    CHECK(in(0) == 1000 >> 8);
    out(3, 0x30); // control word alone: null count
    out(3, 0xe2);
    CHECK(in(0) == 0x70);
}

TEST_CASE_FIXTURE(Rig, "pit: BCD counts decimal") {
    load(0, 0x35, 0x0100);
    ticks(1);
    CHECK(count(0) == 0x0099);
    load(0, 0x31, 0x0000); // 10000
    ticks(1);
    CHECK(count(0) == 0x9999);
}

TEST_CASE_FIXTURE(Rig, "pit: a count of one byte, and 0 for 65536") {
    out(3, 0x14); // low byte only, mode 2
    out(0, 0x80);
    ticks(1);
    CHECK(in(0) == 0x7f);
    load(0, 0x34, 0);
    ticks(1);
    CHECK(count(0) == 65535);
}

TEST_CASE_FIXTURE(Rig, "pit: the refresh bit of port 61h toggles every 15 us") {
    const auto bit = [&] { return pit.port61().io_read({0, 1}) & 0x10; };
    const auto first = bit();
    time.advance_to(15'100);
    CHECK(bit() != first);
    time.advance_to(30'200);
    CHECK(bit() == first);
}

TEST_CASE_FIXTURE(Rig, "pit: a count of 1 does not drown the host in timers") {
    load(0, 0x34, 1);
    time.advance_to(1'000'000);
    CHECK(irq.rises() < 200);
}
