// SPDX-License-Identifier: Apache-2.0
/// Sections are those of the Intel 82093AA data sheet (290566-001).
#include <doctest/doctest.h>

#include "devices/apic/io_apic.hpp"
#include "devices/apic/local_apic.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct Rig {
    base::ManualTime time;
    ApicBus bus;
    IoApic io{bus};
    LocalApic cpu{{.is_boot_cpu = true}, bus, time, nullptr, nullptr};

    Rig() { cpu.mmio_write(0xf0, 0x1ff); }
    void set(unsigned reg, std::uint32_t value) {
        io.io_write({0x00, 4}, reg);
        io.io_write({0x10, 4}, value);
    }
    std::uint32_t get(unsigned reg) {
        io.io_write({0x00, 4}, reg);
        return static_cast<std::uint32_t>(io.io_read({0x10, 4}));
    }
    void entry(unsigned input, std::uint32_t low, std::uint32_t high = 0) {
        set(0x11 + input * 2, high);
        set(0x10 + input * 2, low);
    }
    int take() {
        const auto vector = cpu.acknowledge_intr();
        return vector ? *vector : -1;
    }
    void eoi() { cpu.mmio_write(0xb0, 0); }
};

constexpr std::uint32_t kLevel = 1u << 15, kMasked = 1u << 16, kRemoteIrr = 1u << 14;

} // namespace

TEST_CASE_FIXTURE(Rig, "ioapic: version, entries and id (3.2)") {
    CHECK(get(1) == 0x0017'0020);
    CHECK(get(0x10) == kMasked);
    set(0, 0x0f00'0000);
    CHECK(get(0) == 0x0f00'0000);
    CHECK(get(2) == 0x0f00'0000);
    CHECK(get(0x0f) == 0);
    CHECK(get(0x40) == 0);
    CHECK(io.io_read({0x00, 4}) == 0x40);
}

TEST_CASE_FIXTURE(Rig, "ioapic: reserved and read-only bits of an entry stay zero (3.2.4)") {
    set(0x10, 0xffff'ffff);
    CHECK(get(0x10) == 0x1'afff);
    set(0x11, 0xffff'ffff);
    CHECK(get(0x11) == 0xff00'0000);
}

TEST_CASE_FIXTURE(Rig, "ioapic: a rising edge interrupts once") {
    entry(4, 0x34);
    io.set_irq_level(4, true);
    io.set_irq_level(4, true);
    CHECK(take() == 0x34);
    eoi();
    CHECK(take() == -1);
    io.set_irq_level(4, false);
    io.set_irq_level(4, true);
    CHECK(take() == 0x34);
}

TEST_CASE_FIXTURE(Rig, "ioapic: a masked edge is lost (3.2.4, bit 16)") {
    entry(4, kMasked | 0x34);
    io.set_irq_level(4, true);
    entry(4, 0x34);
    CHECK(take() == -1);
}

TEST_CASE_FIXTURE(Rig, "ioapic: a level interrupts again after EOI while it is up") {
    entry(5, kLevel | 0x45);
    io.set_irq_level(5, true);
    CHECK((get(0x1a) & kRemoteIrr) != 0);
    CHECK(take() == 0x45);
    io.set_irq_level(5, true); // no second request before EOI
    CHECK(take() == -1);
    eoi();
    CHECK(take() == 0x45);
    io.set_irq_level(5, false);
    eoi();
    CHECK(take() == -1);
    CHECK((get(0x1a) & kRemoteIrr) == 0);
}

TEST_CASE_FIXTURE(Rig, "ioapic: a masked level waits and interrupts when unmasked") {
    entry(5, kLevel | kMasked | 0x45);
    io.set_irq_level(5, true);
    CHECK(take() == -1);
    entry(5, kLevel | 0x45);
    CHECK(take() == 0x45);
}

TEST_CASE_FIXTURE(Rig, "ioapic: the EOI register ends by vector, with broadcasts suppressed") {
    cpu.mmio_write(0xf0, 0x11ff); // SVR bit 12
    entry(5, kLevel | 0x45);
    io.set_irq_level(5, true);
    CHECK(take() == 0x45);
    eoi();
    CHECK((get(0x1a) & kRemoteIrr) != 0);
    io.set_irq_level(5, false);
    io.io_write({0x40, 4}, 0x45);
    CHECK((get(0x1a) & kRemoteIrr) == 0);
    CHECK(take() == -1);
}

TEST_CASE_FIXTURE(Rig, "ioapic: writing an entry as edge clears remote IRR") {
    entry(5, kLevel | 0x45);
    io.set_irq_level(5, true);
    entry(5, kMasked | 0x45);
    CHECK((get(0x1a) & kRemoteIrr) == 0);
}

TEST_CASE_FIXTURE(Rig, "ioapic: one EOI ends all inputs that share the vector") {
    entry(5, kLevel | 0x45);
    entry(6, kLevel | 0x45);
    io.set_irq_level(5, true);
    io.set_irq_level(6, true);
    CHECK(take() == 0x45);
    io.set_irq_level(5, false);
    io.set_irq_level(6, false);
    eoi();
    CHECK((get(0x1a) & kRemoteIrr) == 0);
    CHECK((get(0x1c) & kRemoteIrr) == 0);
}

TEST_CASE_FIXTURE(Rig, "ioapic: NMI delivery and inputs that do not exist") {
    entry(7, 0x400);
    io.set_irq_level(7, true);
    std::uint8_t sipi = 0;
    CHECK(cpu.take_event(false, false, sipi) == cpu::CpuEvent::Nmi);
    io.set_irq_level(24, true);
    io.set_irq_level(~0u, true);
    CHECK(!cpu.has_event());
}
