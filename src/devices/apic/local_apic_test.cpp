// SPDX-License-Identifier: Apache-2.0
/// Sections are those of the Intel SDM Vol. 3A, September 2023.
#include <doctest/doctest.h>

#include <memory>

#include "devices/apic/apic_bus.hpp"
#include "devices/apic/local_apic.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct EoiLog final : EoiListener {
    std::vector<int> vectors;
    void end_of_interrupt(std::uint8_t vector) noexcept override { vectors.push_back(vector); }
};

/// Four CPUs, software-enabled, with a notification counter each.
struct Rig {
    base::ManualTime time;
    test::FakeTsc tsc{time};
    ApicBus bus;
    EoiLog eois;
    std::array<test::FakeWakeup, 4> wakeups;
    std::vector<std::unique_ptr<LocalApic>> cpus;

    Rig() {
        bus.add(eois);
        for (std::uint32_t id = 0; id < 4; ++id) {
            cpus.push_back(std::make_unique<LocalApic>(
                LocalApic::Config{.id = id, .is_boot_cpu = id == 0}, bus, time, &tsc, nullptr));
            cpus.back()->attach(&wakeups[id]);
            cpus.back()->mmio_write(0xf0, 0x1ff);
        }
        for (auto& wakeup : wakeups)
            wakeup.calls = 0;
    }
    LocalApic& cpu(std::size_t i = 0) { return *cpus[i]; }
    void set(std::uint32_t offset, std::uint32_t value) { cpu().mmio_write(offset, value); }
    std::uint32_t get(std::uint32_t offset) { return cpu().mmio_read(offset); }
    void arrive(std::uint8_t vector, bool is_level = false) {
        cpu().accept({.vector = vector, .is_level = is_level});
    }
    int take(std::size_t i = 0) {
        const auto vector = cpu(i).acknowledge_intr();
        return vector ? *vector : -1;
    }
    /// Takes and ends it.
    int serve(std::size_t i = 0) {
        const int vector = take(i);
        if (vector >= 0 && cpu(i).is_x2apic())
            cpu(i).write_msr(0x80b, 0);
        else if (vector >= 0)
            cpu(i).mmio_write(0xb0, 0);
        return vector;
    }
    void ipi(std::uint32_t high, std::uint32_t low) {
        set(0x310, high << 24);
        set(0x300, low);
    }
    void x2apic(std::size_t i) { REQUIRE(cpu(i).write_msr(0x1b, 0xfee0'0c00)); }
    cpu::CpuEvent event(std::size_t i, bool wait_for_sipi = false) {
        return cpu(i).take_event(false, wait_for_sipi, sipi_vector);
    }
    std::uint8_t sipi_vector = 0;
};

} // namespace

TEST_CASE_FIXTURE(Rig, "apic: power-on values (11.4.7.1)") {
    LocalApic fresh{{.id = 3}, bus, time, nullptr, nullptr};
    CHECK(fresh.mmio_read(0x20) == 0x0300'0000);
    CHECK(fresh.mmio_read(0x30) == 0x0105'0014);
    CHECK(fresh.mmio_read(0xe0) == 0xffff'ffff);
    CHECK(fresh.mmio_read(0xf0) == 0xff);
    for (std::uint32_t lvt = 0x320; lvt <= 0x370; lvt += 0x10)
        CHECK(fresh.mmio_read(lvt) == 0x1'0000);
    CHECK(fresh.read_msr(0x1b) == 0xfee0'0800);
    CHECK(cpu().read_msr(0x1b) == 0xfee0'0900);
    CHECK(fresh.mmio_page() == 0xfee0'0000);
}

TEST_CASE_FIXTURE(Rig, "apic: IRR on arrival, ISR on acknowledge, nothing after EOI (11.8.4)") {
    CHECK(!cpu().has_event());
    arrive(0x41);
    CHECK(wakeups[0].calls == 1);
    CHECK(cpu().has_event());
    CHECK(cpu().intr_pending());
    CHECK(get(0x220) == 1u << 1);
    CHECK(take() == 0x41);
    CHECK(get(0x220) == 0);
    CHECK(get(0x120) == 1u << 1);
    CHECK(!cpu().has_event());
    set(0xb0, 0);
    CHECK(get(0x120) == 0);
    set(0xb0, 0); // nothing in service: no effect
}

TEST_CASE_FIXTURE(Rig, "apic: a request that stands already is merged and not notified again") {
    arrive(0x41);
    arrive(0x41);
    CHECK(wakeups[0].calls == 1);
    CHECK(take() == 0x41);
    CHECK(take() == -1);
    arrive(0x41); // one in service and one requested
    set(0xb0, 0);
    CHECK(take() == 0x41);
}

TEST_CASE_FIXTURE(Rig, "apic: the highest vector first, a higher class nests, its own does not") {
    arrive(0x41);
    arrive(0x83);
    CHECK(take() == 0x83);
    arrive(0x8f); // same class as in service
    CHECK(!cpu().intr_pending());
    arrive(0x90);
    CHECK(take() == 0x90);
    set(0xb0, 0);
    set(0xb0, 0);
    CHECK(take() == 0x8f);
    set(0xb0, 0);
    CHECK(take() == 0x41);
}

TEST_CASE_FIXTURE(Rig, "apic: TPR holds back its class and below, CR8 is its upper half (11.8.6)") {
    set(0x80, 0x55);
    CHECK(get(0xa0) == 0x55);
    CHECK(cpu().cr8() == 5);
    arrive(0x5f);
    CHECK(!cpu().intr_pending());
    CHECK(!cpu().has_event()); // a halted CPU sleeps on
    wakeups[0].calls = 0;
    cpu().set_cr8(4);
    CHECK(wakeups[0].calls == 1);
    CHECK(get(0x80) == 0x40);
    CHECK(take() == 0x5f);
    CHECK(get(0xa0) == 0x50); // class of what is in service
}

TEST_CASE_FIXTURE(Rig, "apic: level interrupts set TMR and broadcast their EOI (11.8.5)") {
    arrive(0x61, true);
    CHECK(get(0x1b0) == 1u << 1);
    take();
    set(0xb0, 0);
    CHECK(eois.vectors == std::vector{0x61});
    arrive(0x61, false);
    CHECK(get(0x1b0) == 0);
    take();
    set(0xb0, 0);
    CHECK(eois.vectors.size() == 1);
    set(0xf0, 0x11ff); // suppress broadcasts
    arrive(0x61, true);
    take();
    set(0xb0, 0);
    CHECK(eois.vectors.size() == 1);
}

TEST_CASE_FIXTURE(Rig, "apic: fixed IPIs by physical id, broadcast and shorthand (11.6.1)") {
    ipi(2, 0x4051);
    CHECK(serve(2) == 0x51);
    CHECK(serve(0) == -1);
    ipi(0xff, 0x4052);
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(serve(i) == 0x52);
    ipi(0, 1u << 18 | 0x4053); // self
    CHECK(serve(0) == 0x53);
    ipi(0, 2u << 18 | 0x4054); // all
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(serve(i) == 0x54);
    ipi(0, 3u << 18 | 0x4055); // all but self
    CHECK(serve(0) == -1);
    for (std::size_t i = 1; i < 4; ++i)
        CHECK(serve(i) == 0x55);
    ipi(9, 0x4056);                      // nobody
    CHECK((get(0x300) & 1u << 12) == 0); // delivery status idle
}

TEST_CASE_FIXTURE(Rig, "apic: logical destinations, flat and cluster (11.6.2.2)") {
    for (std::size_t i = 0; i < 4; ++i)
        cpu(i).mmio_write(0xd0, 1u << (24 + i));
    ipi(0x0a, 0x4861);
    CHECK(serve(0) == -1);
    CHECK(serve(1) == 0x61);
    CHECK(serve(2) == -1);
    CHECK(serve(3) == 0x61);
    for (std::size_t i = 0; i < 4; ++i) {
        cpu(i).mmio_write(0xe0, 0x0fff'ffff);
        cpu(i).mmio_write(0xd0, static_cast<std::uint32_t>((i / 2) << 28 | 1u << (24 + i % 2)));
    }
    ipi(0x13, 0x4862); // cluster 1, both
    CHECK(serve(1) == -1);
    CHECK(serve(2) == 0x62);
    CHECK(serve(3) == 0x62);
    ipi(0xf1, 0x4863); // first of every cluster
    CHECK(serve(0) == 0x63);
    CHECK(serve(2) == 0x63);
    CHECK(serve(3) == -1);
}

TEST_CASE_FIXTURE(Rig, "apic: lowest priority goes to one CPU, the idlest (11.6.2.4)") {
    cpu(0).mmio_write(0x80, 0x20);
    cpu(1).mmio_write(0x80, 0x20);
    cpu(3).mmio_write(0x80, 0x20);
    ipi(0xff, 0x4100 | 0x71);
    CHECK(serve(2) == 0x71);
    CHECK(serve(0) == -1);
    CHECK(serve(1) == -1);
    CHECK(serve(3) == -1);
}

TEST_CASE_FIXTURE(Rig, "apic: INIT, then SIPI to a waiting CPU; a running one drops SIPI") {
    ipi(1, 0x4608);
    CHECK(event(1) == cpu::CpuEvent::None);
    ipi(1, 0xc500);
    ipi(1, 0x8500); // de-assert: ignored
    ipi(1, 0x4608);
    ipi(1, 0x4608);
    CHECK(cpu(1).has_event());
    CHECK(event(1) == cpu::CpuEvent::Init);
    cpu(1).init_reset();
    CHECK(event(1, true) == cpu::CpuEvent::Sipi);
    CHECK(sipi_vector == 8);
    CHECK(event(1, true) == cpu::CpuEvent::None);
}

TEST_CASE_FIXTURE(Rig, "apic: NMI waits while blocked and while the CPU waits for SIPI") {
    ipi(1, 0x4400);
    CHECK(cpu(1).take_event(true, false, sipi_vector) == cpu::CpuEvent::None);
    CHECK(cpu(1).take_event(false, true, sipi_vector) == cpu::CpuEvent::None);
    CHECK(event(1) == cpu::CpuEvent::Nmi);
    CHECK(event(1) == cpu::CpuEvent::None);
}

TEST_CASE_FIXTURE(Rig, "apic: INIT resets all but id and base (11.4.7.3)") {
    arrive(0x41);
    set(0x80, 0x30);
    set(0x350, 0x700);
    set(0x380, 1000);
    cpu().init_reset();
    CHECK(get(0x20) == 0);
    CHECK(get(0xf0) == 0xff);
    CHECK(get(0x80) == 0);
    CHECK(get(0x350) == 0x1'0000);
    CHECK(get(0x220) == 0);
    CHECK(get(0x390) == 0);
    CHECK(!cpu().has_event());
    CHECK(cpu().read_msr(0x1b) == 0xfee0'0900);
}

TEST_CASE_FIXTURE(Rig, "apic: disabled by software it takes NMI and INIT only (11.4.7.2)") {
    arrive(0x41);
    set(0x320, 0x40);
    set(0xf0, 0xff);
    CHECK(!cpu().intr_pending()); // held in IRR
    arrive(0x42);
    CHECK(get(0x220) == 1u << 1);
    CHECK((get(0x320) & 1u << 16) != 0);
    set(0x320, 0x40);
    CHECK((get(0x320) & 1u << 16) != 0); // masks cannot be cleared
    cpu().accept({.mode = DeliveryMode::Nmi});
    CHECK(event(0) == cpu::CpuEvent::Nmi);
    set(0xf0, 0x1ff);
    CHECK(take() == 0x41);
}

TEST_CASE_FIXTURE(Rig, "apic: illegal vectors are errors, shown by a write to ESR (11.5.3)") {
    set(0x370, 0xfe);
    ipi(1, 0x4005);
    CHECK(take(1) == -1);
    CHECK(get(0x280) == 0);
    set(0x280, 0);
    CHECK(get(0x280) == 1u << 5);
    CHECK(take() == 0xfe);
    set(0xb0, 0);
    arrive(3);
    set(0x280, 0);
    CHECK(get(0x280) == 1u << 6);
    set(0x280, 0);
    CHECK(get(0x280) == 0);
    set(0x370, 0x01); // an illegal error vector must not recurse
    arrive(3);
}

TEST_CASE_FIXTURE(Rig, "apic: LVT entries keep their defined bits (figure 11-8)") {
    const std::pair<std::uint32_t, std::uint32_t> bits[] = {{0x320, 0x7'00ff}, {0x330, 0x1'07ff},
                                                            {0x340, 0x1'07ff}, {0x350, 0x1'a7ff},
                                                            {0x360, 0x1'a7ff}, {0x370, 0x1'00ff}};
    for (const auto& [offset, mask] : bits) {
        set(offset, 0xffff'ffff);
        CHECK(get(offset) == mask);
    }
}

TEST_CASE_FIXTURE(Rig, "apic: LINT1 as NMI, LINT0 as fixed vector, by their rise") {
    set(0x360, 0x400);
    set(0x350, 0x37);
    cpu().set_irq_level(1, true);
    CHECK(event(0) == cpu::CpuEvent::Nmi);
    cpu().set_irq_level(1, true);
    CHECK(event(0) == cpu::CpuEvent::None);
    cpu().set_irq_level(0, true);
    CHECK(take() == 0x37);
    set(0xb0, 0);
    CHECK(take() == -1);
}

TEST_CASE_FIXTURE(Rig, "apic: the timer interrupts through its LVT") {
    set(0x320, 0x2'0020); // periodic
    set(0x3e0, 0x0b);
    set(0x380, 1'000'000);
    time.advance_to(1'000'000);
    CHECK(take() == 0x20);
    CHECK(wakeups[0].calls == 1);
    set(0xb0, 0);
    time.advance_to(2'500'000);
    CHECK(get(0x390) == 500'000);
    CHECK(take() == 0x20);
}

TEST_CASE_FIXTURE(Rig, "apic: IA32_APIC_BASE allows only the changes of figure 11-24") {
    CHECK(!cpu().write_msr(0x1b, 0xfee0'0400)); // x2APIC without enable
    CHECK(!cpu().write_msr(0x1b, 0x1'0000'0000'0000 | 0xfee0'0800));
    CHECK(cpu().write_msr(0x1b, 0xfee0'0c00)); // xAPIC → x2APIC
    CHECK(cpu().mmio_page() == UINT64_MAX);
    CHECK(!cpu().write_msr(0x1b, 0xfee0'0800)); // not back at once
    CHECK(cpu().write_msr(0x1b, 0xfee0'0000));
    CHECK(!cpu().write_msr(0x1b, 0xfee0'0c00)); // nor from disabled
    CHECK(cpu().write_msr(0x1b, 0xd000'0800));
    CHECK(cpu().read_msr(0x1b) == 0xd000'0900); // the boot-CPU bit is not the guest's
    CHECK(cpu().mmio_page() == 0xd000'0000);
    CHECK(get(0xf0) == 0xff); // the state was lost
    LocalApic plain{{.has_x2apic = false}, bus, time, nullptr, nullptr};
    CHECK(!plain.write_msr(0x1b, 0xfee0'0c00));
    CHECK(!plain.read_msr(0x6e0)); // no TSC-deadline without a TSC
}

TEST_CASE_FIXTURE(Rig, "x2apic: registers by MSR, reserved bits and read-only ones fault (11.12)") {
    x2apic(2);
    auto& apic = cpu(2);
    CHECK(apic.read_msr(0x802) == 2);
    CHECK(apic.read_msr(0x80d) == 4);
    CHECK(apic.write_msr(0x808, 0x30));
    CHECK(apic.cr8() == 3);
    CHECK(!apic.write_msr(0x808, 0x100));
    CHECK(!apic.write_msr(0x802, 0));
    CHECK(!apic.write_msr(0x80a, 0));
    CHECK(!apic.read_msr(0x80b));
    CHECK(!apic.write_msr(0x80b, 1));
    CHECK(apic.write_msr(0x80b, 0));
    CHECK(!apic.read_msr(0x80e));
    CHECK(!apic.read_msr(0x831));
    CHECK(!apic.write_msr(0x828, 1));
    CHECK(!apic.write_msr(0x80f, 0x400));
    CHECK(!apic.write_msr(0x832, 1u << 20));
    CHECK(!apic.write_msr(0x83e, 4));
    CHECK(!apic.write_msr(0x80f, 0x1'0000'00ff));
    CHECK(!apic.read_msr(0x840));
    CHECK(!cpu(0).read_msr(0x802)); // not in xAPIC mode
}

TEST_CASE_FIXTURE(Rig, "x2apic: ICR is one write of 64 bits; self-IPI; cluster destinations") {
    for (std::size_t i = 0; i < 4; ++i)
        x2apic(i);
    CHECK(cpu(0).write_msr(0x830, 3ull << 32 | 0x4051));
    CHECK(serve(3) == 0x51);
    CHECK(cpu(0).read_msr(0x830) == (3ull << 32 | 0x4051));
    CHECK(cpu(0).write_msr(0x830, 0xffff'ffffull << 32 | 0x4052));
    CHECK(serve(0) == 0x52);
    CHECK(serve(3) == 0x52);
    CHECK(serve(1) == 0x52);
    CHECK(cpu(0).write_msr(0x830, 0xffull << 32 | 0x4053)); // an id, no broadcast
    CHECK(serve(1) == -1);
    CHECK(cpu(0).write_msr(0x830, 0x0000'0006ull << 32 | 0x4854)); // logical: cluster 0, 1 and 2
    CHECK(serve(2) == 0x54);
    CHECK(serve(1) == 0x54);
    CHECK(cpu(0).write_msr(0x83f, 0x61));
    CHECK(serve(0) == 0x61);
    CHECK(!cpu(0).write_msr(0x83f, 0x161));
    CHECK(!cpu(0).write_msr(0x830, 1u << 20));
}

TEST_CASE_FIXTURE(Rig, "msi: address and data name destination, mode and vector (11.11)") {
    bus.send_msi({0xfee0'0000 | 2u << 12, 0x4055});
    CHECK(serve(2) == 0x55);
    x2apic(3);
    cpu(3).write_msr(0x80f, 0x1ff);
    bus.send_msi({0xfeef'f000, 0x0061}); // broadcast reaches x2APIC CPUs, too
    CHECK(serve(3) == 0x61);
    CHECK(serve(0) == 0x61);
    bus.send_msi({0xfee0'0000 | 1u << 12, 0x0400});
    CHECK(event(1) == cpu::CpuEvent::Nmi);
    bus.send_msi({0x1'fee0'0000, 0x77});
    bus.send_msi({0xfed0'0000, 0x77});
    CHECK(serve(0) == -1);
}
