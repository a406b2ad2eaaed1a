// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The two doors to configuration space: mechanism #1, ports CF8h to CFFh (PCI Local Bus 3.0
/// §3.2.2.3.2), and ECAM (PCI Express Base 4.0 §7.2.2).
#include "bus/io_handler.hpp"
#include "devices/device.hpp"
#include "devices/io_range.hpp"
#include "devices/pci/pci_bus.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex, which is free during configuration cycles.
class PciConfigPorts final : public StatefulDevice<PciConfigPorts>, public bus::IoHandler {
public:
    static constexpr std::uint64_t kPortCount = 8;
    static constexpr bus::AccessRules kRules{1, 4, true};

    struct State {
        std::uint32_t address = 0; // CONFIG_ADDRESS: bit 31 enable, bus, device, function, register
        base::Result<void> validate() const;
    };
    static constexpr auto kSchema =
        state::schema("pci-config-ports", 1, state::field(1, "address", &State::address));

    /// Only a dword at CF8h is CONFIG_ADDRESS. `port_cf9` (may be null) gets the bytes at CF9h:
    /// the reset control register of many chip sets lies there.
    PciConfigPorts(PciBus& bus, bus::IoHandler* port_cf9);

    void reset() override;
    /// Offset 0 is port CF8h.
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

private:
    friend StatefulDevice<PciConfigPorts>;
    std::uint32_t address() const;
    static std::uint16_t target(std::uint32_t address, bus::IoAccess io);

    PciBus& bus_;
    bus::IoHandler* const port_cf9_; // owned by the Machine
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

/// 1 MiB for each of 256 buses, 4 KiB for each function. Stateless; any thread.
class PciEcam final : public bus::IoHandler {
public:
    static constexpr std::uint64_t kBytes = 256ull << 20;
    static constexpr bus::AccessRules kRules{1, 4, false};

    explicit PciEcam(PciBus& bus) : bus_{bus} {}
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

private:
    PciBus& bus_;
};

} // namespace doppel::devices
