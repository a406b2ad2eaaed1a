// SPDX-License-Identifier: Apache-2.0
/// Quoted terms are those of the Intel 8259A data sheet (231468-003).
#include <doctest/doctest.h>

#include "devices/legacy/pic8259.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct Rig {
    test::FakeIrqSink cpu;
    Pic8259 pic{cpu.line()};

    Rig() { init(0x01); }
    void master(unsigned offset, unsigned value) { pic.master().io_write({offset, 1}, value); }
    void slave(unsigned offset, unsigned value) { pic.slave().io_write({offset, 1}, value); }
    unsigned master(unsigned offset) {
        return static_cast<unsigned>(pic.master().io_read({offset, 1}));
    }
    unsigned slave(unsigned offset) {
        return static_cast<unsigned>(pic.slave().io_read({offset, 1}));
    }
    /// As Linux does it: vectors 30h and 38h, all inputs unmasked.
    void init(unsigned icw4) {
        for (const unsigned value : {0x30u, 0x04u, icw4})
            (value == 0x30u ? master(0, 0x11) : void()), master(1, value);
        for (const unsigned value : {0x38u, 0x02u, icw4})
            (value == 0x38u ? slave(0, 0x11) : void()), slave(1, value);
    }
    void raise(unsigned input) { pic.set_irq_level(input, true); }
    void lower(unsigned input) { pic.set_irq_level(input, false); }
    bool intr() { return cpu.level(); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "pic: a rising input interrupts with its vector, EOI ends its service") {
    CHECK(!intr());
    raise(4);
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x34);
    CHECK(!intr());
    master(0, 0x0b); // read ISR
    CHECK(master(0) == 0x10);
    master(0, 0x20);
    CHECK(master(0) == 0);
    CHECK(!intr()); // edge: still high, no second request
    lower(4);
    raise(4);
    CHECK(intr());
}

TEST_CASE_FIXTURE(Rig, "pic: the slave interrupts through input 2 and needs two EOIs") {
    raise(12);
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x3c);
    master(0, 0x0b);
    slave(0, 0x0b);
    CHECK(master(0) == 0x04);
    CHECK(slave(0) == 0x10);
    slave(0, 0x20);
    master(0, 0x20);
    CHECK(master(0) == 0);
    CHECK(slave(0) == 0);
}

TEST_CASE_FIXTURE(Rig, "pic: fully nested mode: only a higher priority interrupts a handler") {
    raise(4);
    pic.acknowledge();
    raise(5);
    CHECK(!intr());
    raise(1);
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x31);
    master(0, 0x20); // ends 1, the highest in service
    CHECK(!intr());
    master(0, 0x20); // ends 4
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x35);
}

TEST_CASE_FIXTURE(Rig, "pic: slave inputs rank between 1 and 3") {
    raise(3);
    raise(8);
    raise(1);
    CHECK(pic.acknowledge() == 0x31);
    master(0, 0x20);
    CHECK(pic.acknowledge() == 0x38);
    slave(0, 0x20);
    master(0, 0x20);
    CHECK(pic.acknowledge() == 0x33);
}

TEST_CASE_FIXTURE(Rig, "pic: a second slave input waits while the first is in service") {
    raise(12);
    pic.acknowledge();
    raise(9); // higher than 12, but the master holds input 2 in service
    CHECK(!intr());
    master(0, 0x20);
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x39);
}

TEST_CASE_FIXTURE(Rig, "pic: special fully nested mode lets the slave interrupt itself") {
    init(0x11);
    raise(12);
    pic.acknowledge();
    raise(9);
    CHECK(intr());
}

TEST_CASE_FIXTURE(Rig, "pic: IMR holds requests back and keeps them") {
    master(1, 0x10);
    raise(4);
    CHECK(!intr());
    master(0, 0x0a);
    CHECK(master(0) == 0x10);
    CHECK(master(1) == 0x10);
    master(1, 0x00);
    CHECK(intr());
}

TEST_CASE_FIXTURE(Rig, "pic: a request that was masked meanwhile gives the spurious IR7") {
    raise(4);
    master(1, 0xff);
    CHECK(!intr());
    CHECK(pic.acknowledge() == 0x37);
    master(0, 0x0b);
    CHECK(master(0) == 0); // ISR untouched
}

TEST_CASE_FIXTURE(Rig, "pic: level inputs request again while they are up (ELCR)") {
    pic.elcr().io_write({1, 1}, 0x0a); // IRQ 9 and 11
    CHECK(pic.elcr().io_read({1, 1}) == 0x0a);
    raise(11);
    CHECK(pic.acknowledge() == 0x3b);
    slave(0, 0x20);
    master(0, 0x20);
    CHECK(intr());
    lower(11);
    CHECK(!intr());
}

TEST_CASE_FIXTURE(Rig, "pic: ELCR cannot change timer, keyboard, cascade, RTC and coprocessor") {
    pic.elcr().io_write({0, 1}, 0xff);
    pic.elcr().io_write({1, 1}, 0xff);
    CHECK(pic.elcr().io_read({0, 1}) == 0xf8);
    CHECK(pic.elcr().io_read({1, 1}) == 0xde);
}

TEST_CASE_FIXTURE(Rig, "pic: a pulse on an edge input is kept") {
    raise(4);
    lower(4);
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x34);
}

TEST_CASE_FIXTURE(Rig, "pic: automatic EOI leaves nothing in service") {
    init(0x03);
    raise(4);
    pic.acknowledge();
    master(0, 0x0b);
    CHECK(master(0) == 0);
    raise(5);
    CHECK(intr());
}

TEST_CASE_FIXTURE(Rig, "pic: specific EOI and rotation") {
    raise(4);
    pic.acknowledge();
    master(0, 0x64); // specific EOI of 4
    master(0, 0x0b);
    CHECK(master(0) == 0);
    master(0, 0xc4); // set priority: 4 lowest, 5 highest
    raise(0);
    raise(5);
    CHECK(pic.acknowledge() == 0x35);
    master(0, 0xa0); // rotate on non-specific EOI: 5 lowest
    raise(6);
    CHECK(pic.acknowledge() == 0x36);
}

TEST_CASE_FIXTURE(Rig, "pic: special mask mode lets lower priorities in") {
    raise(1);
    pic.acknowledge();
    raise(4);
    CHECK(!intr());
    master(1, 0x02);
    CHECK(!intr());
    master(0, 0x68); // ESMM, SMM
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x34);
    master(0, 0x20); // non-specific EOI skips the masked input 1
    master(0, 0x0b);
    CHECK(master(0) == 0x02);
}

TEST_CASE_FIXTURE(Rig, "pic: poll command acknowledges by a read") {
    master(0, 0x0c);
    CHECK(master(0) == 0);
    raise(3);
    master(0, 0x0c);
    CHECK(master(0) == 0x83);
    CHECK(!intr());
}

TEST_CASE_FIXTURE(Rig, "pic: ICW1 clears masks and service, and no interrupt comes before ICW4") {
    raise(4);
    pic.acknowledge();
    master(1, 0xff);
    master(0, 0x11);
    raise(5);
    CHECK(!intr());
    master(1, 0x50);
    master(1, 0x04);
    CHECK(!intr());
    master(1, 0x01);
    CHECK(master(1) == 0);
    CHECK(intr());
    CHECK(pic.acknowledge() == 0x55);
}

TEST_CASE_FIXTURE(Rig, "pic: inputs that do not exist are ignored") {
    raise(2);
    raise(16);
    raise(1000);
    CHECK(!intr());
}
