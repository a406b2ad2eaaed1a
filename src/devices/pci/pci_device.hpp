// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What every PCI function has: configuration space, BARs that follow the command register, INTx,
/// MSI and MSI-X, PCI Express capability, function-level reset. A device derives from
/// StatefulPciDevice<itself>, says in its constructor what it has, and hangs IoHandlers into BARs:
///
///     class Example final : public StatefulPciDevice<Example> {
///     public:
///         Example() : StatefulPciDevice{{.vendor = 0x1af4, .device = 0x10f0, .class_code = 0xff0000}} {
///             add_bar(0, {.bytes = 0x4000, .kind = BarKind::Memory64});
///             add_region(0, {.offset = 0, .bytes = 0x1000, .name = "registers", .handler = &regs_});
///             add_msix(4, 0, 0x2000, 0x3000);
///             add_express();
///         }
///         … struct State, kSchema, state_ as for every StatefulDevice
///
/// Locking: configuration space and interrupts have a lock of their own below the device's mutex_,
/// so signal() and set_intx() may be called with mutex_ held and from any thread. Hooks are called
/// with neither held.
/// Modelled: PCI Local Bus 3.0 §6.1 to §6.8, PCI Express Base 4.0 §7.5.3 (root complex integrated
/// endpoint), §6.6.2 (function-level reset).
/// Not modelled: expansion ROM, power management, vital product data, errors (no SERR#, PERR#).
#include <array>
#include <atomic>
#include <string>
#include <vector>

#include "bus/io_handler.hpp"
#include "devices/device.hpp"
#include "devices/io_range.hpp"
#include "devices/pci/config_space.hpp"
#include "devices/pci/msix_table.hpp"
#include "devices/pci/pci_bus.hpp"

namespace doppel::devices {

struct PciIdentity {
    std::uint16_t vendor = 0xffff;
    std::uint16_t device = 0xffff;
    std::uint32_t class_code = 0; // base class, subclass, programming interface: 24 bits
    std::uint8_t revision = 0;
    std::uint16_t subsystem_vendor = 0;
    std::uint16_t subsystem = 0;
    std::uint8_t interrupt_pin = 0; // 0 none, 1 INTA … 4 INTD
};

enum class BarKind : std::uint8_t { Io, Memory32, Memory64, Prefetchable64 };

struct PciBar {
    std::uint64_t bytes = 0; // power of two; at least 16 (memory) or 4 (I/O)
    BarKind kind = BarKind::Memory32;
};

/// Part of a BAR that answers; the rest reads all ones.
struct PciRegion {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    std::string name;
    bus::AccessRules rules;
    bus::IoHandler* handler = nullptr; // part of the device
};

/// Any thread, unless a function says otherwise.
class PciDevice : public Device {
public:
    static constexpr unsigned kBars = 6;

    struct PciState {
        PciConfigSpace::Bytes config{};
        MsixTable::State msix{};
        bool intx = false; // the device asks for an interrupt
        static constexpr auto kSchema =
            state::schema("pci-function", 1, state::field(1, "config", &PciState::config),
                          state::field(2, "msix", &PciState::msix),
                          state::field(3, "intx", &PciState::intx));
    };

    explicit PciDevice(const PciIdentity& identity);

    /// Board reset; the device's own part is reset_device().
    void reset() final;

    /// Configuration cycles of the bus; `size` 1, 2 or 4, within a dword.
    std::uint32_t config_read(std::uint16_t offset, std::uint8_t size);
    void config_write(std::uint16_t offset, std::uint8_t size, std::uint32_t value);

    /// Bus master enable: without it a function may not touch guest memory. Lock-free.
    bool may_use_dma() const noexcept { return bus_master_.load(std::memory_order_acquire); }

protected:
    // --- construction ---
    void add_bar(unsigned index, PciBar bar);
    void add_region(unsigned bar, PciRegion region);
    void add_msi(unsigned vectors); // 1, 2, 4 … 32; 64-bit address, maskable
    void add_msix(unsigned vectors, unsigned bar, std::uint64_t table, std::uint64_t pending);
    void add_express(); // PCI Express capability with function-level reset
    PciConfigSpace& config() { return config_; }

    // --- interrupts; any thread, mutex_ may be held ---
    /// Sends message `vector` by MSI-X or MSI; false when the guest uses neither (then INTx).
    bool signal(unsigned vector);
    /// The level-triggered wire, if the function has a pin.
    void set_intx(bool level);

    // --- hooks; no lock is held ---
    /// Everything of the device's own as after power-on; also for a function-level reset.
    virtual void reset_device() = 0;
    virtual void before_config_read(std::uint16_t /*offset*/, std::uint8_t /*size*/) {}
    virtual void after_config_write(std::uint16_t /*offset*/, std::uint8_t /*size*/) {}

private:
    friend class PciBus;
    mutable base::Mutex pci_mutex_; // below mutex_
    PciConfigSpace config_ DOPPEL_GUARDED_BY(pci_mutex_);
    MsixTable msix_ DOPPEL_GUARDED_BY(pci_mutex_);
    std::atomic<bool> bus_master_{false};
    PciBus* bus_ DOPPEL_GUARDED_BY(pci_mutex_) = nullptr; // owned by the Machine
    PciAddress address_ DOPPEL_GUARDED_BY(pci_mutex_){};
};

} // namespace doppel::devices
