// SPDX-License-Identifier: Apache-2.0
/// Sections are those of ACPI 6.5.
#include <doctest/doctest.h>

#include "devices/legacy/acpi_pm.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct Rig {
    base::ManualTime time;
    test::FakeIrqSink irq;
    int power_offs = 0;
    AcpiPm pm{irq.line(9), time, AcpiPm::TimerWidth::Bits24, [this] { ++power_offs; }};

    void out(std::uint64_t offset, std::uint8_t size, std::uint64_t value) {
        pm.block().io_write({offset, size}, value);
    }
    std::uint64_t in(std::uint64_t offset, std::uint8_t size) {
        return pm.block().io_read({offset, size});
    }
    bool sci() { return irq.level(9); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "acpi: the PM timer counts 3.579545 MHz in 24 bits (4.8.3.3)") {
    CHECK(in(8, 4) == 0);
    time.advance_to(1'000'000'000);
    CHECK(in(8, 4) == 3'579'545);
    time.advance_to(10'000'000'000);
    CHECK(in(8, 4) == (35'795'450 & 0xff'ffff));
    AcpiPm wide{irq.line(), time, AcpiPm::TimerWidth::Bits32, {}};
    CHECK(wide.block().io_read({8, 4}) == 35'795'450);
}

TEST_CASE_FIXTURE(Rig, "acpi: a change of the timer's highest bit sets TMR_STS and interrupts") {
    out(2, 2, 0x0001);
    const auto half_wrap = AcpiPm::kTimerFrequency.ns_at(1 << 23);
    time.advance_to(half_wrap - 1);
    CHECK(!sci());
    time.advance_to(half_wrap);
    CHECK(sci());
    CHECK((in(0, 2) & 1) == 1);
    out(0, 2, 1); // write one to clear
    CHECK(!sci());
    time.advance_to(2 * half_wrap + 1);
    CHECK(sci());
}

TEST_CASE_FIXTURE(Rig, "acpi: the power button sets its status; SCI follows the enable (4.8.3.1)") {
    pm.press_power_button();
    CHECK(!sci());
    CHECK(in(0, 2) == 0x0100);
    out(2, 2, 0x0100);
    CHECK(sci());
    out(0, 2, 0x0100);
    CHECK(!sci());
}

TEST_CASE_FIXTURE(Rig, "acpi: status bits clear by bytes, too") {
    pm.press_power_button();
    out(0, 1, 0xff);
    CHECK(in(0, 2) == 0x0100);
    out(1, 1, 0x01);
    CHECK(in(0, 2) == 0);
}

TEST_CASE_FIXTURE(Rig, "acpi: SCI_EN is always set; SLP_EN with the type of S5 powers off") {
    CHECK(in(4, 2) == 0x0001);
    out(4, 2, 0x2000 | 1 << 10); // another sleep type
    CHECK(power_offs == 0);
    out(4, 2, 5 << 10); // type alone
    CHECK(power_offs == 0);
    CHECK(in(4, 2) == (5 << 10 | 1));
    out(4, 2, 0x2000 | 5 << 10);
    CHECK(power_offs == 1);
    CHECK((in(4, 2) & 0x2000) == 0); // write-only
}

TEST_CASE_FIXTURE(Rig, "acpi: general-purpose events interrupt when enabled (4.8.4.1)") {
    pm.raise_gpe(9);
    CHECK(!sci());
    CHECK(pm.gpe0().io_read({0, 4}) == 0x200);
    pm.gpe0().io_write({5, 1}, 0x02);
    CHECK(sci());
    pm.gpe0().io_write({1, 1}, 0x02);
    CHECK(!sci());
    pm.raise_gpe(99); // no such event
    CHECK(!sci());
}

TEST_CASE_FIXTURE(Rig, "acpi: accesses across fields are answered byte by byte") {
    out(2, 2, 0x0120);
    CHECK(in(0, 4) == 0x0120'0000);
    CHECK(in(3, 1) == 0x01);
    CHECK(in(3, 2) == 0x0101);
}
