// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A PCI function with one of everything, and a root bus for it to sit on. Test code only; owner
/// thread only.
#include <array>
#include <memory>
#include <vector>

#include "devices/pci/config_access.hpp"
#include "devices/pci/pci_device.hpp"
#include "devices/test_rig.hpp"

namespace doppel::devices::test {

struct FakeMsiSink final : bus::MsiSink {
    std::vector<bus::MsiMessage> sent;
    void send_msi(bus::MsiMessage message) noexcept override { sent.push_back(message); }
};

/// Register 0 remembers; a write to 8 signals that vector, to 12 sets INTx to bit 0.
class TestFunction final : public StatefulPciDevice<TestFunction>, public bus::IoHandler {
public:
    static constexpr unsigned kVectors = 70;
    static constexpr std::uint64_t kTable = 0x2000, kPending = 0x3000;
    // where the capabilities are linked in, in order of construction
    static constexpr std::uint16_t kMsi = 0x40, kMsix = 0x58, kExpress = 0x64;

    struct State {
        std::uint32_t scratch = 0;
    };
    static constexpr auto kSchema =
        state::schema("test-function", 1, state::field(1, "scratch", &State::scratch));

    explicit TestFunction(std::uint16_t device_id = 0x5678)
        : StatefulPciDevice{{.vendor = 0x1234,
                             .device = device_id,
                             .class_code = 0xff'12'34,
                             .revision = 9,
                             .subsystem_vendor = 0xabcd,
                             .subsystem = 0xef01,
                             .interrupt_pin = 1}} {
        add_bar(0, {0x4000, BarKind::Memory64});
        add_bar(2, {32, BarKind::Io});
        add_bar(3, {0x1000, BarKind::Memory32});
        add_region(0, {0, 16, "test registers", {1, 4, false}, this});
        add_region(2, {0, 32, "test ports", {1, 4, false}, this});
        add_region(3, {0x10, 16, "test small", {1, 4, false}, this});
        add_msi(4);
        add_msix(kVectors, 0, kTable, kPending);
        add_express();
    }

    std::uint64_t io_read(bus::IoAccess io) override {
        const base::MutexLock lock{mutex_};
        return io.offset == 0 ? state_.scratch : 0;
    }
    void io_write(bus::IoAccess io, std::uint64_t value) override {
        const base::MutexLock lock{mutex_};
        if (io.offset == 0)
            state_.scratch = static_cast<std::uint32_t>(value);
        else if (io.offset == 8)
            used_message = signal(static_cast<unsigned>(value));
        else if (io.offset == 12)
            set_intx((value & 1) != 0);
    }

    bool used_message = false;
    int resets = 0;
    std::vector<std::uint16_t> config_writes;

private:
    friend StatefulPciDevice<TestFunction>;
    void reset_device() override {
        const base::MutexLock lock{mutex_};
        state_ = {};
        ++resets;
    }
    void after_config_write(std::uint16_t offset, std::uint8_t) override {
        config_writes.push_back(offset);
    }
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

struct PciRig {
    bus::AddressSpace pio{bus::AddressSpace::Kind::Pio};
    bus::AddressSpace mmio{bus::AddressSpace::Kind::Mmio};
    FakeIrqSink irqs;
    FakeMsiSink msis;
    PciBus bus{pio, mmio, irqs, 16, msis};
    PciEcam ecam{bus};

    std::uint32_t read(PciAddress at, std::uint16_t offset, std::uint8_t size = 4) {
        return bus.config_read(at, offset, size);
    }
    void write(PciAddress at, std::uint16_t offset, std::uint32_t value, std::uint8_t size = 4) {
        bus.config_write(at, offset, size, value);
    }
};

/// Reaches what function 00:00.0 has mapped by its first BAR, which it programs when need be.
struct BarDoor final : bus::IoHandler {
    static constexpr std::uint32_t kBase = 0xc000'0000;
    PciRig& rig;
    explicit BarDoor(PciRig& r) : rig{r} {}
    void open() {
        if (rig.mmio.is_mapped(kBase))
            return;
        rig.write({}, pci::kBar0, kBase);
        rig.write({}, pci::kBar0 + 4, 0);
        rig.write({}, pci::kCommand, 7, 2);
    }
    std::uint64_t io_read(bus::IoAccess io) override {
        open();
        return rig.mmio.read(kBase + io.offset, io.size);
    }
    void io_write(bus::IoAccess io, std::uint64_t value) override {
        open();
        rig.mmio.write(kBase + io.offset, io.size, value);
    }
};

} // namespace doppel::devices::test
