// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "devices/legacy/reset_control.hpp"
#include "devices/pci/host_bridge.hpp"
#include "devices/pci/test_function.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

struct Rig : test::PciRig {
    int resets = 0;
    ResetControl reset_control{[this] { ++resets; }};
    PciConfigPorts ports{bus, &reset_control};
    PciBridge host{PciBridge::kHost};
    PciBridge isa{PciBridge::kIsa};
    Rig() {
        REQUIRE(bus.add({0, 0, 0}, host));
        REQUIRE(bus.add({0, 31, 0}, isa));
        REQUIRE(
            pio.map({0xcf8, PciConfigPorts::kPortCount, "pci", PciConfigPorts::kRules, &ports}));
        REQUIRE(mmio.map({0xe000'0000, PciEcam::kBytes, "ecam", PciEcam::kRules, &ecam}));
    }
    std::uint64_t in(std::uint16_t port, std::uint8_t size) { return pio.read(port, size); }
    void out(std::uint16_t port, std::uint8_t size, std::uint64_t v) { pio.write(port, size, v); }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "pci: mechanism #1 is found the way Linux probes for it") {
    out(0xcfb, 1, 1);
    const auto saved = in(0xcf8, 4);
    out(0xcf8, 4, 0x8000'0000);
    CHECK(in(0xcf8, 4) == 0x8000'0000);
    CHECK(in(0xcfc, 4) == 0x0d57'8086);
    CHECK(in(0xcfe, 2) == 0x0d57);
    CHECK(in(0xcff, 1) == 0x0d);
    out(0xcf8, 4, 0x8000'0008);
    CHECK(in(0xcfe, 2) == 0x0600); // class of a host bridge
    out(0xcf8, 4, saved);
    CHECK(in(0xcf8, 4) == 0);
}

TEST_CASE_FIXTURE(Rig, "pci: without enable bit, across dwords and where nobody is, all ones") {
    out(0xcf8, 4, 0);
    CHECK(in(0xcfc, 4) == 0xffff'ffff);
    out(0xcf8, 4, 0x8000'0000);
    CHECK(in(0xcff, 2) == 0xffff);
    CHECK(in(0xcfd, 2) == 0x5780); // within a dword any place will do
    out(0xcf8, 4, 0x8000'0800);    // 00:01.0
    CHECK(in(0xcfc, 4) == 0xffff'ffff);
    CHECK(in(0xcfc, 2) == 0xffff);
    out(0xcf8, 4, 0x8001'0000); // bus 1
    CHECK(in(0xcfc, 4) == 0xffff'ffff);
    out(0xcf8, 4, 0x8000'0100); // 00:00.1
    CHECK(in(0xcfc, 4) == 0xffff'ffff);
}

TEST_CASE_FIXTURE(Rig, "pci: bytes at CF9h are the reset control register's, nothing else is") {
    out(0xcf8, 4, 0x8000'f800);
    out(0xcf9, 1, 0x02);
    CHECK(in(0xcf9, 1) == 0x02);
    CHECK(in(0xcf8, 4) == 0x8000'f800);
    out(0xcf9, 2, 0x0606);
    out(0xcf8, 2, 0x0606);
    CHECK(resets == 0);
    CHECK(in(0xcf8, 2) == 0xffff);
    CHECK(in(0xcf8, 1) == 0xff);
    out(0xcf9, 1, 0x06);
    CHECK(resets == 1);
    CHECK(in(0xcfc, 4) == 0x7000'8086);
}

TEST_CASE_FIXTURE(Rig, "pci: ECAM shows the same functions, with 4 KiB each") {
    CHECK(mmio.read(0xe000'0000, 4) == 0x0d57'8086);
    CHECK(mmio.read(0xe000'0000, 8) == 0x0000'0000'0d57'8086);
    CHECK(mmio.read(0xe00f'8000, 4) == 0x7000'8086);
    CHECK(mmio.read(0xe00f'800a, 2) == 0x0601);
    CHECK(mmio.read(0xe000'0100, 4) == 0); // no extended capabilities
    CHECK(mmio.read(0xe000'0ffc, 4) == 0);
    CHECK(mmio.read(0xe000'8000, 4) == 0xffff'ffff);
    CHECK(mmio.read(0xe010'0000, 4) == 0xffff'ffff); // bus 1
    CHECK(mmio.read(0xefff'fffc, 4) == 0xffff'ffff);
    mmio.write(0xe000'0004, 2, 0x0006);
    out(0xcf8, 4, 0x8000'0004);
    CHECK(in(0xcfc, 2) == 0x0006);
}

TEST_CASE_FIXTURE(Rig, "pci: function 0 is multifunction when there are others") {
    PciBridge other{PciBridge::kIsa};
    CHECK((read({0, 0, 0}, 0x0c) >> 16) == 0x00);
    REQUIRE(bus.add({0, 0, 3}, other));
    CHECK((read({0, 0, 0}, 0x0c) >> 16) == 0x80);
    CHECK(read({0, 0, 0}, 0x0e, 1) == 0x80);
    CHECK(read({0, 0, 0}, 0x0f, 1) == 0x00);
    CHECK(read({0, 0, 3}, 0x0e, 1) == 0x00);
    bus.remove(other);
    CHECK(read({0, 0, 0}, 0x0e, 1) == 0x00);
}

TEST_CASE_FIXTURE(Rig, "pci: places are given once, and only those that exist") {
    PciBridge other{PciBridge::kIsa};
    CHECK(bus.add({0, 0, 0}, other).error().code == base::Errc::AlreadyExists);
    CHECK(bus.add({0, 3, 0}, host).error().code == base::Errc::AlreadyExists);
    CHECK(bus.add({1, 0, 0}, other).error().code == base::Errc::InvalidArgument);
    CHECK(bus.add({0, 32, 0}, other).error().code == base::Errc::InvalidArgument);
    CHECK(bus.add({0, 1, 8}, other).error().code == base::Errc::InvalidArgument);
}
