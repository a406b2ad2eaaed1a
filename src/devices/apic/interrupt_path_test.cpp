// SPDX-License-Identifier: Apache-2.0
/// PIC, IOAPIC and local APIC together, wired as a PC has them; and many senders at once.
#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "devices/apic/io_apic.hpp"
#include "devices/apic/local_apic.hpp"
#include "devices/legacy/pic8259.hpp"
#include "devices/legacy/pit8254.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

/// ISA wires reach the PIC and the IOAPIC; IRQ 0 stands at input 2 of the latter.
struct Fanout final : bus::IrqSink {
    Pic8259& pic;
    IoApic& io;
    Fanout(Pic8259& p, IoApic& i) : pic{p}, io{i} {}
    void set_irq_level(std::uint32_t input, bool level) noexcept override {
        pic.set_irq_level(input, level);
        io.set_irq_level(input == 0 ? 2 : input, level);
    }
};

/// The PIC and the APIC know each other: the wire goes through here.
struct IntrWire final : bus::IrqSink {
    LocalApic* apic = nullptr;
    void set_irq_level(std::uint32_t, bool level) noexcept override {
        apic->set_irq_level(LocalApic::kLint0Input, level);
    }
};

struct Rig {
    base::ManualTime time;
    ApicBus bus;
    IoApic io{bus};
    IntrWire wire;
    Pic8259 pic{{wire, 0}};
    LocalApic cpu{{.is_boot_cpu = true}, bus, time, nullptr, &pic};
    Fanout isa{pic, io};
    Pit8254 pit{{isa, 0}, time};

    Rig() {
        wire.apic = &cpu;
        pic.master().io_write({0, 1}, 0x11);
        for (const unsigned value : {0x30u, 0x04u, 0x01u})
            pic.master().io_write({1, 1}, value);
        pic.slave().io_write({0, 1}, 0x11);
        for (const unsigned value : {0x38u, 0x02u, 0x01u})
            pic.slave().io_write({1, 1}, value);
    }
    int take() {
        const auto vector = cpu.acknowledge_intr();
        return vector ? *vector : -1;
    }
    void entry(unsigned input, std::uint32_t low) {
        io.io_write({0x00, 4}, 0x10 + input * 2);
        io.io_write({0x10, 4}, low);
    }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "after power-on the PIC is not heard, in virtual wire mode it is") {
    isa.set_irq_level(4, true);
    CHECK(!cpu.has_event());
    cpu.enter_virtual_wire_mode();
    CHECK(cpu.has_event());
    CHECK(cpu.intr_pending());
    CHECK(take() == 0x34);
    CHECK(!cpu.has_event());
}

TEST_CASE_FIXTURE(Rig, "with the APIC disabled by its MSR, LINT0 is the INTR pin") {
    REQUIRE(cpu.write_msr(0x1b, 0xfee0'0000));
    isa.set_irq_level(12, true);
    CHECK(cpu.intr_pending());
    CHECK(take() == 0x3c);
    std::uint8_t sipi = 0;
    cpu.set_irq_level(LocalApic::kLint1Input, true);
    CHECK(cpu.take_event(false, false, sipi) == cpu::CpuEvent::Nmi);
}

TEST_CASE_FIXTURE(Rig, "ExtINT is masked by LVT0 and not by TPR") {
    cpu.enter_virtual_wire_mode();
    cpu.set_cr8(15);
    isa.set_irq_level(4, true);
    CHECK(cpu.intr_pending());
    cpu.mmio_write(0x350, 0x1'0700);
    CHECK(!cpu.intr_pending());
    cpu.mmio_write(0x350, 0x700);
    CHECK(cpu.intr_pending());
}

TEST_CASE_FIXTURE(Rig, "the local APIC's own interrupts come before ExtINT") {
    cpu.enter_virtual_wire_mode();
    isa.set_irq_level(4, true);
    cpu.accept({.vector = 0x41});
    CHECK(take() == 0x41);
    CHECK(take() == 0x34);
}

TEST_CASE_FIXTURE(Rig, "PIT through the PIC: a tick each period, EOI at the PIC") {
    cpu.enter_virtual_wire_mode();
    pit.counters().io_write({3, 1}, 0x34);
    pit.counters().io_write({0, 1}, 0xa9);
    pit.counters().io_write({0, 1}, 0x04); // 1193: 1 kHz
    take();
    pic.master().io_write({0, 1}, 0x20);
    for (int i = 0; i < 10; ++i) {
        time.advance_to(time.now_ns() + 1'000'000);
        CHECK(take() == 0x30);
        CHECK(take() == -1);
        pic.master().io_write({0, 1}, 0x20);
    }
}

TEST_CASE_FIXTURE(Rig, "PIT through the IOAPIC's input 2, as Linux finds it by the MADT") {
    cpu.mmio_write(0xf0, 0x1ff);
    entry(2, 0x30);
    pit.counters().io_write({3, 1}, 0x34);
    pit.counters().io_write({0, 1}, 0xa9);
    pit.counters().io_write({0, 1}, 0x04);
    CHECK(take() == 0x30); // OUT rises with the control word
    cpu.mmio_write(0xb0, 0);
    for (int i = 0; i < 10; ++i) {
        time.advance_to(time.now_ns() + 1'000'000);
        CHECK(take() == 0x30);
        cpu.mmio_write(0xb0, 0);
    }
}

TEST_CASE("many senders: no vector is lost and every request is notified") {
    struct Counter final : cpu::Wakeup {
        std::atomic<bool> flag{false};
        void notify() noexcept override { flag.store(true); }
    };
    base::ManualTime time;
    ApicBus bus;
    LocalApic cpu{{.is_boot_cpu = true}, bus, time, nullptr, nullptr};
    Counter wakeup;
    cpu.attach(&wakeup);
    cpu.mmio_write(0xf0, 0x1ff);
    constexpr int kRounds = 20'000;
    constexpr std::size_t kSenders = 3;
    std::array<std::atomic<int>, kSenders> received{}; // a sender waits for its last one
    std::vector<std::jthread> senders;
    senders.reserve(kSenders);
    for (std::size_t s = 0; s < kSenders; ++s)
        senders.emplace_back([&, s] {
            const auto vector = static_cast<std::uint32_t>(0x40 + 0x10 * s + s);
            for (int i = 0; i < kRounds; ++i) {
                bus.send_msi({0xfee0'0000, vector});
                while (received[s].load() <= i)
                    std::this_thread::yield();
            }
        });
    for (int total = 0; total < kRounds * static_cast<int>(kSenders);) {
        while (!wakeup.flag.exchange(false)) // only the notification may be relied upon
            std::this_thread::yield();
        while (const auto vector = cpu.acknowledge_intr()) {
            ++total;
            cpu.mmio_write(0xb0, 0);
            received[(*vector >> 4) - 4u].fetch_add(1);
        }
    }
    senders.clear();
    CHECK(!cpu.intr_pending());
}
