// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <vector>

#include "devices/legacy/i8042.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct Rig {
    test::FakeIrqSink irq;
    int resets = 0;
    std::vector<bool> a20;
    I8042 kbc{
        irq.line(1),
        {.reset_cpu = [this] { ++resets; }, .set_a20 = [this](bool on) { a20.push_back(on); }}};

    void command(unsigned value) { kbc.command().io_write({0, 1}, value); }
    void data(unsigned value) { kbc.data().io_write({0, 1}, value); }
    unsigned status() { return static_cast<unsigned>(kbc.command().io_read({0, 1})); }
    unsigned data() { return static_cast<unsigned>(kbc.data().io_read({0, 1})); }
    bool send(std::initializer_list<std::uint8_t> code) {
        return kbc.send_scan_code({code.begin(), code.size()});
    }
    bool level() { return irq.level(1); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "i8042: self test answers 55h and sets the system flag") {
    command(0xaa);
    CHECK((status() & 0x05) == 0x05);
    CHECK(data() == 0x55);
    CHECK((status() & 0x01) == 0);
    command(0xab);
    CHECK(data() == 0x00);
}

TEST_CASE_FIXTURE(Rig, "i8042: the configuration byte reads back, interrupts follow it") {
    command(0x60);
    data(0x64); // no IRQ 1
    command(0x20);
    CHECK(!level());
    CHECK(data() == 0x64);
    command(0x60);
    data(0x45);
    send({0x1c});
    CHECK(level());
    CHECK(data() == 0x1e); // A in set 1
    CHECK(!level());
}

TEST_CASE_FIXTURE(Rig, "i8042: scan codes are translated, break codes and prefixes too") {
    send({0xf0, 0x1c});
    send({0xe0, 0x75});       // cursor up
    send({0xe0, 0xf0, 0x75}); // released
    CHECK(data() == 0x9e);
    CHECK(data() == 0xe0);
    CHECK(data() == 0x48);
    CHECK(data() == 0xe0);
    CHECK(data() == 0xc8);
    command(0x60);
    data(0x01); // no translation
    send({0xf0, 0x1c});
    CHECK(data() == 0xf0);
    CHECK(data() == 0x1c);
}

TEST_CASE_FIXTURE(Rig, "i8042: each byte of the keyboard interrupts with an edge of its own") {
    send({0xe0, 0x75});
    const int before = irq.rises(1);
    data();
    CHECK(irq.rises(1) == before + 1);
    CHECK(level());
    data();
    CHECK(!level());
}

TEST_CASE_FIXTURE(Rig, "i8042: command FEh and port 92h pulse the CPU's reset") {
    command(0xfe);
    CHECK(resets == 1);
    command(0xff); // pulses nothing
    CHECK(resets == 1);
    kbc.port92().io_write({0, 1}, 0x03);
    CHECK(resets == 2);
    command(0xd1);
    data(0x02); // output port with reset low
    CHECK(resets == 3);
}

TEST_CASE_FIXTURE(Rig, "i8042: A20 by the output port, by commands and by port 92h") {
    CHECK(kbc.port92().io_read({0, 1}) == 0x02);
    command(0xd1);
    data(0x01);
    CHECK(a20 == std::vector{false});
    CHECK(kbc.port92().io_read({0, 1}) == 0x00);
    kbc.port92().io_write({0, 1}, 0x02);
    CHECK(a20.back());
    kbc.port92().io_write({0, 1}, 0x02); // no change
    CHECK(a20.size() == 2);
    command(0xdd);
    CHECK(!a20.back());
    command(0xdf);
    CHECK(a20.back());
    command(0xd0);
    CHECK((data() & 0x03) == 0x03);
}

TEST_CASE_FIXTURE(Rig, "i8042: keyboard identify, reset, LEDs and echo as Linux's atkbd asks") {
    data(0xf2);
    CHECK(data() == 0xfa);
    CHECK(data() == 0xab);
    CHECK(data() == 0x41);
    data(0xff);
    CHECK(data() == 0xfa);
    CHECK(data() == 0xaa);
    data(0xed);
    CHECK(data() == 0xfa);
    data(0x07);
    CHECK(data() == 0xfa);
    data(0xee);
    CHECK(data() == 0xee);
    data(0x12); // unknown
    CHECK(data() == 0xfe);
}

TEST_CASE_FIXTURE(Rig, "i8042: the scan-code set can be set and asked for") {
    command(0x60);
    data(0x01);
    for (const unsigned byte : {0xf0u, 0x03u, 0xf0u, 0x00u})
        data(byte);
    for (int i = 0; i < 4; ++i)
        CHECK(data() == 0xfa);
    CHECK(data() == 3);
}

TEST_CASE_FIXTURE(Rig, "i8042: a disabled keyboard and a full queue refuse input") {
    data(0xf5);
    data();
    CHECK(!send({0x1c}));
    data(0xf4);
    data();
    CHECK(send({0x1c}));
    command(0xad);
    CHECK(!send({0x1c}));
    command(0xae);
    int sent = 1;
    while (send({0x1c}))
        ++sent;
    CHECK(sent == static_cast<int>(I8042::kQueueBytes));
}

TEST_CASE_FIXTURE(Rig, "i8042: the auxiliary port is there and empty") {
    command(0xa9);
    CHECK(data() == 0x00);
    command(0xd4);
    data(0xff);
    CHECK((status() & 0x21) == 0x21);
    CHECK(!level());
    CHECK(data() == 0xfe);
    command(0xd3); // loopback, as Linux tests for an AUX port
    data(0x5a);
    CHECK((status() & 0x20) != 0);
    CHECK(data() == 0x5a);
}
