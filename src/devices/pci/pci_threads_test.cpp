// SPDX-License-Identifier: Apache-2.0
/// What vCPUs and I/O workers do to the bus at once; meant for the thread sanitizer.
#include <doctest/doctest.h>

#include <array>
#include <thread>

#include "devices/pci/test_function.hpp"

using namespace doppel;
using namespace doppel::devices;
using test::TestFunction;

namespace {

struct AtomicIrqSink final : bus::IrqSink {
    std::array<std::atomic<bool>, 32> levels{};
    void set_irq_level(std::uint32_t input, bool level) noexcept override {
        levels[input].store(level);
    }
};

struct CountingMsiSink final : bus::MsiSink {
    std::atomic<int> sent{0};
    void send_msi(bus::MsiMessage) noexcept override { sent.fetch_add(1); }
};

struct Rig {
    bus::AddressSpace pio{bus::AddressSpace::Kind::Pio};
    bus::AddressSpace mmio{bus::AddressSpace::Kind::Mmio};
    AtomicIrqSink irqs;
    CountingMsiSink msis;
    PciBus bus{pio, mmio, irqs, 16, msis};
    TestFunction first;
    TestFunction second;
    Rig() {
        REQUIRE(bus.add({0, 1, 0}, first));
        REQUIRE(bus.add({0, 5, 0}, second)); // the same wire
        for (const auto slot : {std::uint8_t{1}, std::uint8_t{5}}) {
            bus.config_write({0, slot, 0}, pci::kBar0, 4, base_of(slot));
            bus.config_write({0, slot, 0}, pci::kCommand, 2, 7);
        }
    }
    static std::uint32_t base_of(std::uint8_t slot) { return 0xc000'0000u + slot * 0x10'0000u; }
    void set_intx(std::uint8_t slot, bool level) { mmio.write(base_of(slot) + 12, 4, level); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "pci: a shared wire ends as its functions left it") {
    for (const bool last : {true, false}) {
        const auto worker = [&](std::uint8_t slot) {
            for (int i = 0; i < 2000; ++i)
                set_intx(slot, i % 2 == 0);
            set_intx(slot, last);
        };
        std::jthread one{worker, std::uint8_t{1}};
        std::jthread two{worker, std::uint8_t{5}};
        one.join();
        two.join();
        CHECK(irqs.levels[17].load() == last);
    }
}

TEST_CASE_FIXTURE(Rig, "pci: BARs move and vectors are masked while others use them") {
    bus.config_write({0, 1, 0}, TestFunction::kMsix + 2, 2, 0x8000);
    std::atomic<bool> is_done{false};
    std::jthread mover{[&] {
        for (std::uint32_t i = 0; !is_done; ++i) {
            bus.config_write({0, 5, 0}, pci::kBar0, 4, i % 2 == 0 ? 0xd000'0000 : base_of(5));
            bus.config_write({0, 1, 0}, TestFunction::kMsix + 2, 2, i % 2 == 0 ? 0xc000 : 0x8000);
        }
        bus.config_write({0, 5, 0}, pci::kBar0, 4, base_of(5));
    }};
    std::jthread user{[&] {
        const auto entry = base_of(1) + TestFunction::kTable;
        for (std::uint32_t i = 0; i < 1000; ++i) {
            mmio.write(entry + 12, 4, i % 2);
            mmio.write(base_of(1) + 8, 4, 0); // signal
            mmio.read(base_of(5), 4);
        }
        mmio.write(entry + 12, 4, 0);
        is_done = true;
    }};
    mover.join();
    user.join();
    bus.config_write({0, 1, 0}, TestFunction::kMsix + 2, 2, 0x8000);
    CHECK(msis.sent.load() > 0);
    CHECK(mmio.read(base_of(1) + TestFunction::kPending, 8) == 0);
    CHECK(mmio.is_mapped(base_of(5)));
}
