// SPDX-License-Identifier: Apache-2.0
/// Section numbers are those of PCI Local Bus 3.0 unless they name PCI Express Base 4.0.
#include <doctest/doctest.h>

#include "devices/pci/test_function.hpp"

using namespace doppel;
using namespace doppel::devices;
using test::TestFunction;

namespace {

constexpr std::uint32_t kBase = 0xd000'0000;

struct Rig : test::PciRig {
    TestFunction device;
    static constexpr PciAddress kAt{0, 5, 0}; // INTA of device 5: wire 1, GSI 17
    Rig() { REQUIRE(bus.add(kAt, device)); }

    std::uint32_t get(std::uint16_t offset, std::uint8_t size = 4) {
        return read(kAt, offset, size);
    }
    void put(std::uint16_t offset, std::uint32_t value, std::uint8_t size = 4) {
        write(kAt, offset, value, size);
    }
    void enable(std::uint32_t command = 7) {
        put(pci::kBar0, kBase);
        put(pci::kBar0 + 4, 0);
        put(pci::kCommand, command, 2);
    }
    std::uint64_t in(std::uint64_t offset, std::uint8_t size = 4) {
        return mmio.read(kBase + offset, size);
    }
    void out(std::uint64_t offset, std::uint64_t value, std::uint8_t size = 4) {
        mmio.write(kBase + offset, size, value);
    }
    void signal(unsigned vector) { out(8, vector); }
    void set_intx(bool level) { out(12, level); }
    void set_vector(unsigned vector, std::uint64_t address, std::uint32_t data, bool masked) {
        const auto entry = TestFunction::kTable + vector * MsixTable::kEntryBytes;
        out(entry, address, 8);
        out(entry + 8, data);
        out(entry + 12, masked);
    }
    void enable_msix(std::uint32_t control = 0x8000) { put(TestFunction::kMsix + 2, control, 2); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "pci: the header shows who it is and cannot be written") {
    CHECK(get(0x00) == 0x5678'1234);
    CHECK(get(0x08) == 0xff12'3409);
    CHECK(get(0x2c) == 0xef01'abcd);
    CHECK(get(0x3d, 1) == 1);
    CHECK(get(0x06, 2) == 0x0010); // capabilities list
    put(0x00, 0xffff'ffff);
    put(0x08, 0xffff'ffff);
    put(0x2c, 0xffff'ffff);
    CHECK(get(0x00) == 0x5678'1234);
    CHECK(get(0x08) == 0xff12'3409);
    CHECK(get(0x2c) == 0xef01'abcd);
    put(0x3c, 0x5a, 1);
    CHECK(get(0x3c) == 0x0000'015a);
    put(0x04, 0xffff, 2);
    CHECK(get(0x04, 2) == 0x0547); // §6.2.2: the bits that a device may leave out are left out
}

TEST_CASE_FIXTURE(Rig, "pci: the capabilities are a list that ends (§6.7)") {
    CHECK(get(0x34, 1) == TestFunction::kMsi);
    CHECK(get(TestFunction::kMsi, 2) == (0x05 | TestFunction::kMsix << 8));
    CHECK(get(TestFunction::kMsix, 2) == (0x11 | TestFunction::kExpress << 8));
    CHECK(get(TestFunction::kExpress, 2) == 0x10);
    CHECK(get(TestFunction::kExpress + 2, 2) == 0x92); // integrated endpoint, version 2
}

TEST_CASE_FIXTURE(Rig, "pci: BARs are sized by writing ones (§6.2.5.1)") {
    const auto size = [&](std::uint16_t offset) {
        put(offset, 0xffff'ffff);
        return get(offset);
    };
    CHECK(size(0x10) == 0xffff'c004);
    CHECK(size(0x14) == 0xffff'ffff);
    CHECK(size(0x18) == 0xffff'ffe1);
    CHECK(size(0x1c) == 0xffff'f000);
    CHECK(size(0x20) == 0);
    CHECK(size(0x24) == 0);
    CHECK(size(0x30) == 0); // no expansion ROM
}

TEST_CASE_FIXTURE(Rig, "pci: nothing decodes while a BAR holds ones, even with decoding on") {
    put(pci::kCommand, 3, 2);
    for (std::uint16_t bar = 0x10; bar < 0x28; bar = static_cast<std::uint16_t>(bar + 4))
        put(bar, 0xffff'ffff);
    CHECK(mmio.mappings().empty());
    CHECK(pio.mappings().empty());
}

TEST_CASE_FIXTURE(Rig, "pci: BARs decode when the command register says so") {
    put(0x10, kBase);
    put(0x18, 0xc000);
    CHECK(in(0) == 0xffff'ffff);
    put(pci::kCommand, 2, 2);
    out(0, 0x1122'3344);
    CHECK(in(0) == 0x1122'3344);
    CHECK(pio.read(0xc000, 4) == 0xffff'ffff);
    put(pci::kCommand, 1, 2);
    CHECK(in(0) == 0xffff'ffff);
    CHECK(pio.read(0xc000, 4) == 0x1122'3344);
    put(pci::kCommand, 0, 2);
    CHECK(pio.mappings().empty());
    CHECK(mmio.mappings().empty());
}

TEST_CASE_FIXTURE(Rig, "pci: a BAR moves while it decodes, above 4 GiB too") {
    enable();
    out(0, 77);
    put(0x10, 0xd100'0000);
    CHECK(in(0) == 0xffff'ffff);
    CHECK(mmio.read(0xd100'0000, 4) == 77);
    put(0x14, 0x80);
    CHECK(mmio.read(0xd100'0000, 4) == 0xffff'ffff);
    CHECK(mmio.read(0x80'd100'0000, 4) == 77);
    CHECK(mmio.read(0x80'd100'0010, 4) == 0xffff'ffff); // no region there
}

TEST_CASE_FIXTURE(Rig, "pci: a register write that moves its own BAR") {
    // configuration space seen through the very function's BAR would do this: the bus allows it
    struct Mover final : bus::IoHandler {
        Rig& rig;
        explicit Mover(Rig& r) : rig{r} {}
        std::uint64_t io_read(bus::IoAccess) override { return 0; }
        void io_write(bus::IoAccess, std::uint64_t value) override {
            rig.put(0x10, static_cast<std::uint32_t>(value));
        }
    } mover{*this};
    REQUIRE(mmio.map({0x1000, 4, "mover", {4, 4, false}, &mover}));
    enable();
    mmio.write(0x1000, 4, 0xd200'0000);
    CHECK(mmio.read(0xd200'0000, 4) == 0);
}

TEST_CASE_FIXTURE(Rig, "pci: who overlaps waits until the place is free") {
    TestFunction second;
    REQUIRE(bus.add({0, 6, 0}, second));
    enable();
    out(0, 1);
    const PciAddress other{0, 6, 0};
    write(other, 0x10, kBase);
    write(other, pci::kCommand, 2, 2);
    CHECK(in(0) == 1);
    put(0x10, 0xd800'0000);
    CHECK(in(0) == 0); // the second one's register now
    out(0, 2);
    bus.remove(second);
    CHECK(in(0) == 0xffff'ffff);
    CHECK(read(other, 0) == 0xffff'ffff);
    CHECK(mmio.read(0xd800'0000, 4) == 1);
}

TEST_CASE_FIXTURE(Rig, "pci: INTx drives its swizzled wire, command and status tell of it") {
    enable();
    set_intx(true);
    CHECK(irqs.level(17));
    CHECK(get(0x06, 2) == 0x0018);
    CHECK((get(0x04) >> 16) == 0x0018);
    put(pci::kCommand, 0x407, 2);
    CHECK(!irqs.level(17));
    CHECK(get(0x06, 1) == 0x18); // status shows it all the same (§6.2.3)
    put(pci::kCommand, 7, 2);
    CHECK(irqs.level(17));
    set_intx(false);
    CHECK(!irqs.level(17));
    CHECK(get(0x06, 2) == 0x0010);
}

TEST_CASE_FIXTURE(Rig, "pci: two functions share a wire") {
    TestFunction second;
    const PciAddress other{0, 9, 0}; // INTA of device 9: wire 1 as well
    REQUIRE(bus.add(other, second));
    write(other, 0x10, 0xd900'0000);
    write(other, pci::kCommand, 2, 2);
    enable();
    set_intx(true);
    mmio.write(0xd900'000c, 4, 1);
    set_intx(false);
    CHECK(irqs.level(17));
    CHECK(irqs.rises(17) == 1);
    bus.remove(second); // unplugged with the wire up
    CHECK(!irqs.level(17));
}

TEST_CASE_FIXTURE(Rig, "pci: MSI sends what the guest wrote, and INTx falls silent (§6.8.1)") {
    enable();
    signal(2);
    CHECK(!device.used_message);
    set_intx(true);
    CHECK(get(TestFunction::kMsi + 2, 2) == 0x0184); // 4 vectors, 64 bits, maskable
    put(TestFunction::kMsi + 4, 0xfee0'1003);
    put(TestFunction::kMsi + 8, 0x1);
    put(TestFunction::kMsi + 12, 0x4041, 2);
    put(TestFunction::kMsi + 2, 0x0021, 2); // enable, 4 vectors
    CHECK(!irqs.level(17));
    signal(2);
    REQUIRE(msis.sent.size() == 1);
    CHECK(msis.sent[0].address == 0x1'fee0'1000);
    CHECK(msis.sent[0].data == 0x4042);
    CHECK(device.used_message);
    put(TestFunction::kMsi + 2, 0x0001, 2); // one vector granted
    signal(2);
    CHECK(msis.sent[1].data == 0x4041);
    put(TestFunction::kMsi + 2, 0x0000, 2);
    CHECK(irqs.level(17));
}

TEST_CASE_FIXTURE(Rig, "pci: a masked MSI waits and goes out once when unmasked (§6.8.1.7)") {
    enable();
    put(TestFunction::kMsi + 2, 0x0021, 2);
    put(TestFunction::kMsi + 16, 0xffff'ffff);
    CHECK(get(TestFunction::kMsi + 16) == 0xf);
    signal(1);
    signal(1);
    signal(3);
    CHECK(msis.sent.empty());
    CHECK(get(TestFunction::kMsi + 20) == 0xa);
    put(TestFunction::kMsi + 20, 0); // read-only
    put(TestFunction::kMsi + 16, 0x8);
    REQUIRE(msis.sent.size() == 1);
    CHECK(msis.sent[0].data == 1);
    CHECK(get(TestFunction::kMsi + 20) == 0x8);
}

TEST_CASE_FIXTURE(Rig, "pci: the MSI-X table lies in its BAR, masked after reset (§6.8.2)") {
    enable();
    CHECK(get(TestFunction::kMsix + 2, 2) == TestFunction::kVectors - 1);
    CHECK(get(TestFunction::kMsix + 4) == 0x2000);
    CHECK(get(TestFunction::kMsix + 8) == 0x3000);
    for (unsigned i = 0; i < TestFunction::kVectors; ++i)
        CHECK(in(0x2000 + i * 16 + 12) == 1);
    CHECK(in(0x2000 + TestFunction::kVectors * 16) == 0xffff'ffff);
    set_vector(69, 0x1'fee0'2003, 0x99, false);
    CHECK(in(0x2000 + 69 * 16, 8) == 0x1'fee0'2000);
    CHECK(in(0x2000 + 69 * 16 + 8, 8) == 0x99);
    CHECK(in(0x2000, 2) == 0xffff); // only dwords and qwords
}

TEST_CASE_FIXTURE(Rig, "pci: MSI-X vectors go out, or wait while masked (§6.8.2.4)") {
    enable();
    set_vector(0, 0xfee0'0000, 0x30, false);
    set_vector(66, 0xfee0'1000, 0x31, true);
    enable_msix(0xc000); // function mask
    signal(0);
    signal(66);
    CHECK(device.used_message);
    CHECK(msis.sent.empty());
    CHECK(in(0x3000, 8) == 1);
    CHECK(in(0x3008) == 4);
    CHECK(in(0x300c) == 0);
    enable_msix();
    REQUIRE(msis.sent.size() == 1);
    CHECK(msis.sent[0].data == 0x30);
    CHECK(in(0x3000) == 0);
    out(0x2000 + 66 * 16 + 12, 0);
    REQUIRE(msis.sent.size() == 2);
    CHECK(msis.sent[1].address == 0xfee0'1000);
    CHECK(in(0x3008) == 0);
    signal(66);
    CHECK(msis.sent.size() == 3);
    signal(70); // no such vector
    signal(0xffff'ffff);
    CHECK(msis.sent.size() == 3);
    out(0x3000, 0xffff'ffff); // read-only
    CHECK(in(0x3000) == 0);
}

TEST_CASE_FIXTURE(Rig, "pci: without bus master enable no message leaves (§6.8.3)") {
    enable(2);
    CHECK(!device.may_use_dma());
    set_vector(0, 0xfee0'0000, 0x30, false);
    enable_msix();
    signal(0);
    CHECK(msis.sent.empty());
    put(pci::kCommand, 6, 2);
    CHECK(device.may_use_dma());
    signal(0);
    CHECK(msis.sent.size() == 1);
}

TEST_CASE_FIXTURE(Rig, "pci: function-level reset (PCI Express Base 4.0 §6.6.2)") {
    enable();
    out(0, 5);
    set_intx(true);
    set_vector(0, 0xfee0'0000, 0x30, false);
    put(0x3c, 0x0b, 1);
    CHECK((get(TestFunction::kExpress + 4) & 1u << 28) != 0);
    put(TestFunction::kExpress + 8, 0x2810, 2);
    CHECK(device.resets == 0);
    put(TestFunction::kExpress + 9, 0x80, 1);
    CHECK(device.resets == 1);
    CHECK(!irqs.level(17));
    CHECK(mmio.mappings().empty());
    CHECK(get(0x04, 2) == 0);
    CHECK(get(0x10) == 0x4);
    CHECK(get(0x3c, 1) == 0);
    CHECK(get(TestFunction::kExpress + 8, 2) == 0x2810);
    CHECK(!device.may_use_dma());
    enable();
    CHECK(in(0) == 0);
    CHECK(in(0x200c) == 1);
}

TEST_CASE_FIXTURE(Rig, "pci: the device hears of configuration writes") {
    put(0x3c, 1, 1);
    put(0x40, 0, 2);
    CHECK(device.config_writes == std::vector<std::uint16_t>{0x3c, 0x40});
}

TEST_CASE_FIXTURE(Rig, "pci: a loaded function decodes and interrupts where the saved one did") {
    enable();
    out(0, 4711);
    set_vector(3, 0xfee0'3000, 0x33, true);
    enable_msix();
    signal(3);
    state::Encoder encoder;
    device.save(encoder);

    test::PciRig there;
    TestFunction copy;
    REQUIRE(there.bus.add(kAt, copy));
    state::Decoder decoder{encoder.bytes()};
    REQUIRE(copy.load(decoder));
    CHECK(there.mmio.read(kBase, 4) == 4711);
    CHECK(there.irqs.inputs.empty());
    there.mmio.write(kBase + 0x2000 + 3 * 16 + 12, 4, 0);
    REQUIRE(there.msis.sent.size() == 1);
    CHECK(there.msis.sent[0].data == 0x33);
}

TEST_CASE_FIXTURE(Rig, "pci: a wire that was up when saved goes down after loading") {
    enable();
    set_intx(true);
    state::Encoder encoder;
    device.save(encoder);
    test::PciRig there;
    TestFunction copy;
    REQUIRE(there.bus.add(kAt, copy));
    there.irqs.set_irq_level(17, true); // as the I/O APIC's own state says
    state::Decoder decoder{encoder.bytes()};
    REQUIRE(copy.load(decoder));
    CHECK(there.irqs.level(17));
    there.mmio.write(kBase + 12, 4, 0);
    CHECK(!there.irqs.level(17));
}

TEST_CASE_FIXTURE(Rig, "pci: the state of another function is refused") {
    TestFunction other{0x5679};
    state::Encoder encoder;
    other.save(encoder);
    state::Decoder decoder{encoder.bytes()};
    const auto loaded = device.load(decoder);
    REQUIRE(!loaded);
    CHECK(loaded.error().code == base::Errc::Corrupt);
}

TEST_CASE("MSI-X: a saved table of another size is refused") {
    const MsixTable table{4};
    auto state = table.state();
    REQUIRE(table.check(state));
    state.entries.resize(4);
    CHECK(!table.check(state));
    state = table.state();
    state.pending.clear();
    CHECK(!table.check(state));
}
