// SPDX-License-Identifier: Apache-2.0
/// Local APICs that are an engine's: the board's chips as their façade.
#include <doctest/doctest.h>

#include <map>
#include <memory>

#include "devices/apic/apic_bus.hpp"
#include "devices/apic/io_apic.hpp"
#include "devices/apic/local_apic.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct FakePic final : ExternalInterruptSource {
    bool is_pending() const noexcept override { return true; }
    std::uint8_t acknowledge() noexcept override { return 0x21; }
};

/// The engine's side: one APIC, and what was sent.
struct Engine final : cpu::ApicHost, cpu::HostedApic {
    cpu::ApicImage image;
    unsigned handed_over = 0;
    std::vector<bus::MsiMessage> sent;
    std::map<std::uint32_t, bus::MsiMessage> routes;
    cpu::EoiSink* eoi = nullptr;

    cpu::ApicImage apic() noexcept override { return image; }
    void set_apic(const cpu::ApicImage& next) noexcept override {
        image = next;
        ++handed_over;
    }
    HostedApic& apic(unsigned) override { return *this; }
    void set_eoi_sink(cpu::EoiSink& sink) noexcept override { eoi = &sink; }
    void send_msi(bus::MsiMessage message) noexcept override { sent.push_back(message); }
    void set_level_route(std::uint32_t input,
                         std::optional<bus::MsiMessage> message) noexcept override {
        if (message)
            routes[input] = *message;
        else
            routes.erase(input);
    }
};

struct Rig {
    base::ManualTime time;
    test::FakeTsc tsc{time};
    ApicBus bus;
    IoApic io_apic{bus};
    FakePic pic;
    test::FakeWakeup wakeup;
    LocalApic apic{{.id = 0, .is_boot_cpu = true}, bus, time, &tsc, &pic};
    Engine engine;

    Rig() { apic.attach(&wakeup); }
    void host() {
        bus.host_in(engine);
        apic.host_in(engine);
        io_apic.publish_routes();
    }
    std::uint32_t& reg(std::size_t offset) { return engine.image.registers[offset / 16]; }
    void redirect(std::uint32_t input, std::uint32_t low, std::uint32_t high = 0) {
        io_apic.io_write({0x00, 4}, 0x11 + 2 * input);
        io_apic.io_write({0x10, 4}, high);
        io_apic.io_write({0x00, 4}, 0x10 + 2 * input);
        io_apic.io_write({0x10, 4}, low);
    }
};

std::vector<std::byte> bytes_of(const Device& device) {
    state::Encoder encoder;
    device.save(encoder);
    return {encoder.bytes().begin(), encoder.bytes().end()};
}

void load(Device& device, const std::vector<std::byte>& bytes) {
    state::Decoder decoder{bytes};
    REQUIRE(device.load(decoder));
}

} // namespace

TEST_CASE_FIXTURE(Rig,
                  "hosted apic: the engine gets the registers as they stand, the timer with its "
                  "count") {
    apic.mmio_write(0xf0, 0x1ff);
    apic.mmio_write(0x80, 0x20);
    apic.mmio_write(0x350, 0x700);
    apic.mmio_write(0x3e0, 0xb);
    apic.mmio_write(0x320, 0x51);
    apic.mmio_write(0x380, 1000);
    apic.accept({.vector = 0x41, .is_level = true});
    time.advance_to(400);
    host();
    CHECK(engine.handed_over == 1);
    CHECK(engine.image.base == 0xfee0'0900);
    CHECK(reg(0xf0) == 0x1ff);
    CHECK(reg(0x80) == 0x20);
    CHECK(reg(0x350) == 0x700);
    CHECK(reg(0x320) == 0x51);
    CHECK(reg(0x380) == 1000);
    CHECK(reg(0x390) == 600);
    CHECK(reg(0x220) == 1u << 1);
    CHECK(reg(0x1a0) == 1u << 1);
    time.advance_to(5000);
    CHECK(wakeup.calls <= 1); // our own timer is silent now
    CHECK(time.next_deadline_ns() == UINT64_MAX);
}

TEST_CASE_FIXTURE(Rig, "hosted apic: saved, then loaded into an engine of ours, it goes on there") {
    host();
    reg(0xf0) = 0x1ff;
    reg(0x320) = 0x51 | 1u << 17; // periodic
    reg(0x3e0) = 0xb;
    reg(0x380) = 1000;
    reg(0x390) = 250;
    reg(0x240) = 1u << 4; // 84h requested
    reg(0x120) = 1u << 2; // 42h in service
    engine.image.nmi_pending = true;

    base::ManualTime later;
    test::FakeTsc tsc2{later};
    ApicBus bus2;
    LocalApic ours{{.id = 0, .is_boot_cpu = true}, bus2, later, &tsc2, nullptr};
    load(ours, bytes_of(apic));
    std::uint8_t unused = 0;
    CHECK(ours.take_event(false, false, unused) == cpu::CpuEvent::Nmi);
    CHECK(ours.acknowledge_intr() == 0x84);
    CHECK(ours.mmio_read(0x390) == 250);
    later.advance_to(249);
    CHECK(ours.acknowledge_intr() == std::nullopt);
    later.advance_to(20'000);
    CHECK((ours.mmio_read(0x220) & 1u << 17) != 0); // the timer's 51h
}

TEST_CASE_FIXTURE(Rig, "hosted apic: save, load, save gives the same bytes") {
    host();
    for (std::size_t offset = 0x100; offset < 0x280; offset += 0x10)
        reg(offset) = 0x0101'0000u << (offset / 0x10 % 4);
    reg(0xf0) = 0x1ff;
    reg(0x300) = 0x000c'4051;
    reg(0x310) = 0x0200'0000;
    reg(0x320) = 0x51 | 2u << 17; // TSC deadline
    engine.image.tsc_deadline = 123'456;
    const auto before = bytes_of(apic);
    load(apic, before);
    CHECK(engine.handed_over == 2);
    CHECK(engine.image.tsc_deadline == 123'456);
    CHECK(bytes_of(apic) == before);
}

TEST_CASE_FIXTURE(Rig,
                  "hosted apic: in x2APIC mode the id has 32 bits and the LDR follows from it") {
    host();
    engine.image.base |= 1u << 10;
    reg(0x20) = 0;
    load(apic, bytes_of(apic));
    CHECK((engine.image.base & 1u << 10) != 0);
    CHECK(reg(0xd0) == 1);
}

TEST_CASE_FIXTURE(Rig, "hosted apic: reset and INIT reach the engine") {
    host();
    engine.image.base = 0xfee0'0d00; // x2APIC
    reg(0xf0) = 0x1ff;
    apic.init_reset();
    CHECK(reg(0xf0) == 0xff);
    CHECK(engine.image.base == 0xfee0'0d00); // INIT leaves it
    apic.reset();
    CHECK(engine.image.base == 0xfee0'0900);
    apic.enter_virtual_wire_mode();
    CHECK(reg(0x350) == 0x700);
}

TEST_CASE_FIXTURE(Rig,
                  "hosted apic: INTR of the PIC is offered whatever our copy of the LVT says") {
    host();
    CHECK_FALSE(apic.intr_pending());
    wakeup.calls = 0;
    apic.set_irq_level(LocalApic::kLint0Input, true);
    CHECK(wakeup.calls == 1);
    CHECK(apic.intr_pending());
    CHECK(apic.acknowledge_intr() == 0x21);
    apic.set_irq_level(LocalApic::kLint0Input, false);
    CHECK_FALSE(apic.intr_pending());
    CHECK(apic.acknowledge_intr() == std::nullopt);
}

TEST_CASE_FIXTURE(Rig, "hosted apic: MSIs and IOAPIC messages go to the engine as MSIs") {
    host();
    bus.send_msi({0xfee0'3004, 0x4061});
    bus.send_msi({0xfed0'0000, 0x61}); // not for APICs
    REQUIRE(engine.sent.size() == 1);
    CHECK(engine.sent[0].address == 0xfee0'3004);
    redirect(5, 0x0962, 0x0300'0000); // edge, logical, lowest priority
    io_apic.set_irq_level(5, true);
    REQUIRE(engine.sent.size() == 2);
    CHECK(engine.sent[1].address == 0xfee0'300c);
    CHECK(engine.sent[1].data == 0x4162);
    CHECK(engine.routes.empty());
}

TEST_CASE_FIXTURE(Rig,
                  "hosted apic: level-triggered inputs are published, and their EOI comes back") {
    redirect(9, 0x8071); // level, before the engine is there
    host();
    REQUIRE(engine.routes.contains(9));
    CHECK(engine.routes[9].data == 0xc071);
    io_apic.set_irq_level(9, true);
    CHECK(engine.sent.size() == 1);
    engine.eoi->broadcast_eoi(0x71);
    CHECK(engine.sent.size() == 2); // still up
    io_apic.set_irq_level(9, false);
    engine.eoi->broadcast_eoi(0x71);
    CHECK(engine.sent.size() == 2);
    redirect(9, 0x1'8071); // masked: it may be in service
    CHECK(engine.routes.contains(9));
    redirect(9, 0x0071);
    CHECK(engine.routes.empty());
    redirect(9, 0x8072);
    io_apic.reset();
    CHECK(engine.routes.empty());
}
