// SPDX-License-Identifier: Apache-2.0
/// Sections are those of the PC16550D data sheet, June 1995.
#include <doctest/doctest.h>

#include "devices/legacy/uart16550.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct Rig {
    base::ManualTime time;
    test::FakeIrqSink irq;
    test::CollectingSink sink;
    test::FakeSource source;
    Uart16550 uart{irq.line(4), sink, &source, time};

    void out(unsigned reg, unsigned value) { uart.io_write({reg, 1}, value); }
    unsigned in(unsigned reg) { return static_cast<unsigned>(uart.io_read({reg, 1})); }
    void type(std::string_view text) { uart.receive(std::as_bytes(std::span{text})); }
    bool irq_level() { return irq.level(4); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "uart: characters written to THR reach the sink, THR stays empty") {
    for (const char c : std::string{"hello"})
        out(0, static_cast<unsigned char>(c));
    CHECK(sink.text == "hello");
    CHECK(in(5) == 0x60);
}

TEST_CASE("uart: it is its source's receiver as long as it lives") {
    base::ManualTime time;
    test::CollectingSink sink;
    test::FakeSource source;
    {
        Uart16550 uart{{}, sink, &source, time};
        CHECK(source.receiver == &uart);
    }
    CHECK(source.receiver == nullptr);
}

TEST_CASE_FIXTURE(Rig, "uart: input waits in the source while the VM is paused") {
    uart.pause();
    CHECK(uart.can_receive() == 0);
    const auto calls = source.ready_calls;
    uart.resume();
    CHECK(uart.can_receive() != 0);
    CHECK(source.ready_calls == calls + 1);
}

TEST_CASE_FIXTURE(Rig, "uart: DLAB switches offsets 0 and 1 to the divisor (8.1)") {
    out(3, 0x83);
    out(0, 0x0c);
    out(1, 0x01);
    CHECK(in(0) == 0x0c);
    CHECK(in(1) == 0x01);
    out(3, 0x03);
    CHECK(in(1) == 0);
    CHECK(sink.text.empty());
}

TEST_CASE_FIXTURE(Rig, "uart: a fresh chip shows no interrupt, FIFO bits follow FCR0 (8.5)") {
    CHECK(in(2) == 0x01);
    out(2, 0x01);
    CHECK(in(2) == 0xc1);
    out(2, 0x00);
    CHECK(in(2) == 0x01);
}

TEST_CASE_FIXTURE(Rig, "uart: enabling the THRE interrupt raises it, reading IIR acknowledges it") {
    out(1, 0x02);
    CHECK(irq_level());
    CHECK(in(2) == 0x02);
    CHECK(!irq_level());
    CHECK(in(2) == 0x01);
    out(1, 0x02); // no edge of the enable bit
    CHECK(!irq_level());
    out(1, 0x00);
    out(1, 0x02);
    CHECK(irq_level());
}

TEST_CASE_FIXTURE(Rig, "uart: each character sent gives a THRE edge") {
    out(1, 0x02);
    const int before = irq.rises(4);
    out(0, 'x');
    out(0, 'y');
    CHECK(irq.rises(4) == before + 2);
}

TEST_CASE_FIXTURE(Rig,
                  "uart: interrupts show by priority: line status, data, THRE, modem (table 5)") {
    out(2, 0x01);
    out(4, 0x10); // loopback, modem inputs fall: deltas
    out(4, 0x00);
    uart.receive_break();
    out(1, 0x0f);
    CHECK((in(2) & 0xf) == 0x6);
    CHECK((in(5) & 0x90) == 0x90); // BI and error-in-FIFO
    CHECK((in(5) & 0x90) == 0);    // reading cleared them
    CHECK((in(2) & 0xf) == 0x4);
    CHECK(in(0) == 0);
    CHECK((in(2) & 0xf) == 0x2);
    CHECK((in(2) & 0xf) == 0x0);
    CHECK((in(6) & 0x0f) != 0);
    CHECK((in(2) & 0xf) == 0x1);
    CHECK(!irq_level());
}

TEST_CASE_FIXTURE(Rig, "uart: without FIFOs one byte is kept, a second overruns it (8.4)") {
    CHECK(uart.can_receive() == 1);
    type("a");
    CHECK(uart.can_receive() == 0);
    type("b");
    CHECK((in(5) & 0x03) == 0x03);
    CHECK((in(5) & 0x02) == 0);
    CHECK(in(0) == 'b');
    CHECK((in(5) & 0x01) == 0);
}

TEST_CASE_FIXTURE(Rig, "uart: the FIFO keeps 16, the 17th is lost and OE set (8.6.4)") {
    out(2, 0x01);
    CHECK(uart.can_receive() == 16);
    type("0123456789abcdefX");
    CHECK((in(5) & 0x02) == 0x02);
    std::string read;
    while ((in(5) & 1) != 0)
        read.push_back(static_cast<char>(in(0)));
    CHECK(read == "0123456789abcdef");
}

TEST_CASE_FIXTURE(Rig, "uart: the source hears when a full receiver is empty again") {
    out(2, 0x01);
    const int before = source.ready_calls;
    type("0123456789abcdef");
    for (int i = 0; i < 15; ++i)
        in(0);
    CHECK(source.ready_calls == before);
    in(0);
    CHECK(source.ready_calls == before + 1);
    type("x");
    in(0); // was not full: nobody waits
    CHECK(source.ready_calls == before + 1);
}

TEST_CASE_FIXTURE(Rig, "uart: data interrupt at the trigger level, timeout below it (8.4)") {
    out(2, 0x81); // trigger at 8
    out(1, 0x01);
    type("1234567");
    CHECK(!irq_level());
    type("8");
    CHECK(in(2) == 0xc4);
    in(0);
    CHECK(!irq_level());
    // 8N1 would be 10 bits; the reset value 5N1 has 7: 4 · 7 · 16 / 1.8432 MHz = 243 us
    time.advance_to(time.now_ns() + 243'000);
    CHECK(!irq_level());
    time.advance_to(time.now_ns() + 1'000);
    CHECK(irq_level());
    CHECK(in(2) == 0xcc);
    in(0); // reading restarts the timeout
    CHECK(in(2) == 0xc1);
    time.advance_to(time.now_ns() + 244'000);
    CHECK(in(2) == 0xcc);
}

TEST_CASE_FIXTURE(Rig, "uart: loopback sends to the receiver and nothing out (8.7)") {
    out(4, 0x1f);
    CHECK((in(6) & 0xf0) == 0xf0); // all four outputs come back
    out(0, 0xa5);
    CHECK(sink.text.empty());
    CHECK(in(0) == 0xa5);
    CHECK(uart.can_receive() == 0);
    out(4, 0x12); // RTS → CTS only
    CHECK((in(6) & 0xf0) == 0x10);
    const int before = source.ready_calls;
    out(4, 0x0b);
    CHECK((in(6) & 0xf0) == 0xb0);
    CHECK(source.ready_calls == before + 1);
}

TEST_CASE_FIXTURE(Rig, "uart: RI sets its delta only when it ends (8.8)") {
    out(4, 0x10);
    in(6);
    out(4, 0x14);
    CHECK((in(6) & 0x04) == 0);
    out(4, 0x10);
    CHECK((in(6) & 0x04) == 0x04);
    CHECK((in(6) & 0x0f) == 0); // reading clears the deltas
}

TEST_CASE_FIXTURE(Rig, "uart: scratch register keeps its byte, IER and MCR their defined bits") {
    out(7, 0x5a);
    CHECK(in(7) == 0x5a);
    out(1, 0xff);
    CHECK(in(1) == 0x0f);
    out(4, 0xef);
    CHECK(in(4) == 0x0f);
}

TEST_CASE_FIXTURE(Rig, "uart: a timeout that was pending survives save and load") {
    out(2, 0x81);
    out(1, 0x01);
    type("x");
    state::Encoder encoder;
    uart.save(encoder);
    test::FakeIrqSink other_irq;
    Uart16550 copy{other_irq.line(), sink, nullptr, time};
    state::Decoder decoder{encoder.bytes()};
    REQUIRE(copy.load(decoder));
    time.advance_to(time.now_ns() + 1'000'000);
    CHECK(other_irq.level());
}
