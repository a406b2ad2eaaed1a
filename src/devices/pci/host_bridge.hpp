// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The functions of a board that drivers look for and that do nothing: host bridge and ISA bridge.
/// They have an identity and a command register.
#include "devices/pci/pci_device.hpp"

namespace doppel::devices {

/// A function without registers of its own. Any thread.
class PciBridge final : public StatefulPciDevice<PciBridge> {
public:
    /// 8086:0d57 is Intel's virtual PCI Express host bridge: no driver of Linux or Windows takes
    /// more than its class from it, and no quirk applies.
    static constexpr PciIdentity kHost{
        .vendor = 0x8086, .device = 0x0d57, .class_code = 0x06'00'00};
    /// 8086:7000, the ISA bridge of the 82371SB (PIIX3).
    static constexpr PciIdentity kIsa{.vendor = 0x8086, .device = 0x7000, .class_code = 0x06'01'00};

    struct State {};
    static constexpr auto kSchema = state::schema<State>("pci-bridge", 1);

    explicit PciBridge(const PciIdentity& identity) : StatefulPciDevice{identity} {}

private:
    friend StatefulPciDevice<PciBridge>;
    void reset_device() override {}
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::devices
