// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Root bus of a PCI Express hierarchy: who sits where, configuration cycles, interrupt wires.
/// Functions that are not there read all ones (PCI Local Bus 3.0 §6.1).
/// Modelled: bus 0, 32 devices of 8 functions; INTA..INTD swizzled to four shared wires.
/// Not modelled: bridges to further buses, peer-to-peer, split transactions.
#include <array>
#include <atomic>
#include <cstdint>

#include "base/mutex.hpp"
#include "bus/address_space.hpp"
#include "bus/interrupt.hpp"

namespace doppel::devices {

class PciDevice;

/// Place of a function (PCI Express Base 4.0 §2.2.6.2).
struct PciAddress {
    std::uint8_t bus = 0;
    std::uint8_t device = 0;   // 0 to 31
    std::uint8_t function = 0; // 0 to 7
    constexpr bool operator==(const PciAddress&) const = default;
};

/// Any thread. A configuration cycle runs with the bus lock held: devices must not call add() or
/// remove() from inside one.
class PciBus {
public:
    static constexpr unsigned kWires = 4; // INTA..INTD as the board wires them

    /// `first_gsi`: wire n drives input first_gsi + n of `interrupts`.
    PciBus(bus::AddressSpace& pio, bus::AddressSpace& mmio, bus::IrqSink& interrupts,
           std::uint32_t first_gsi, bus::MsiSink& msi);
    PciBus(const PciBus&) = delete;
    PciBus& operator=(const PciBus&) = delete;

    /// Errors: InvalidArgument (no such place), AlreadyExists (one is there, or the device is
    /// somewhere else). The device outlives its stay.
    base::Result<void> add(PciAddress address, PciDevice& device);
    /// Afterwards nothing of the device is mapped, its interrupt wire is low and no configuration
    /// cycle is inside; accesses to its BARs that had begun may be: destroy it while paused.
    void remove(PciDevice& device);

    /// `offset` below 4096; `size` 1, 2 or 4, within a dword.
    std::uint32_t config_read(PciAddress address, std::uint16_t offset, std::uint8_t size);
    void config_write(PciAddress address, std::uint16_t offset, std::uint8_t size,
                      std::uint32_t value);

    /// Wire of interrupt pin 1 (INTA) to 4 of a device: (device + pin - 1) % 4.
    static constexpr unsigned wire_of(std::uint8_t device, std::uint8_t pin) {
        return (device + pin - 1u) % kWires;
    }

private:
    friend class PciDevice;
    static constexpr std::size_t kFunctions = 256;
    PciDevice* find(PciAddress address) const DOPPEL_REQUIRES(mutex_);
    bool has_more_functions(std::uint8_t device) const DOPPEL_REQUIRES(mutex_);
    void retry_mappings() DOPPEL_REQUIRES(mutex_);
    /// One device more or less pulls `wire`; `drive` is false where wires are not driven (loading,
    /// reset). Lock-free.
    void pull(unsigned wire, bool level, bool drive) noexcept;

    bus::AddressSpace& pio_;
    bus::AddressSpace& mmio_;
    bus::IrqSink& interrupts_;
    const std::uint32_t first_gsi_;
    bus::MsiSink& msi_;
    std::array<std::atomic<std::uint32_t>, kWires> pulled_{}; // devices that pull each wire
    base::Mutex mutex_;
    std::array<PciDevice*, kFunctions> functions_ DOPPEL_GUARDED_BY(mutex_){};
};

} // namespace doppel::devices
