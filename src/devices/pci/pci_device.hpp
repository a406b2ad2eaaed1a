// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What every PCI function has: configuration space, BARs that follow the command register, INTx,
/// MSI and MSI-X, PCI Express capability, function-level reset. A device derives from
/// StatefulPciDevice<itself>, says in its constructor what it has, and hangs IoHandlers into BARs:
///
///     class Example final : public StatefulPciDevice<Example> {
///     public:
///         Example() : StatefulPciDevice{{.vendor = 0x1af4, .device = 0x10f0}} {
///             add_bar(0, {.bytes = 0x4000, .kind = BarKind::Memory64});
///             add_region(0, {.offset = 0, .bytes = 0x1000, .name = "…", .handler = &registers_});
///             add_msix(4, 0, 0x2000, 0x3000);
///             add_express();
///         }
///         … struct State, kSchema and state_ as every StatefulDevice has them
///
/// Locking: configuration space and interrupts have a lock of their own below the device's mutex_,
/// so signal() and set_intx() may be called with mutex_ held and from any thread. Hooks are called
/// with neither held; those of configuration cycles with the bus' own.
/// Modelled: PCI Local Bus 3.0 §6.1 to §6.8, PCI Express Base 4.0 §7.5.3 (root complex integrated
/// endpoint) and §6.6.2 (function-level reset).
/// Not modelled: expansion ROM, power management, vital product data, errors (no SERR#, PERR#).
#include <atomic>

#include "devices/device.hpp"
#include "devices/io_range.hpp"
#include "devices/pci/config_space.hpp"
#include "devices/pci/msix_table.hpp"
#include "devices/pci/pci_bars.hpp"
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

/// Any thread, unless a function says otherwise.
class PciDevice : public Device {
public:
    struct PciState {
        PciConfigSpace::Bytes config{};
        MsixTable::State msix{};
        bool intx = false; // the device asks for an interrupt
        static constexpr auto kSchema = state::schema(
            "pci-function", 1, state::field(1, "config", &PciState::config),
            state::field(2, "msix", &PciState::msix), state::field(3, "intx", &PciState::intx));
    };

    explicit PciDevice(const PciIdentity& identity);

    /// Board reset; the device's own part is reset_device().
    void reset() final;

    /// Bus master enable: without it a function may not touch guest memory. Lock-free.
    bool may_use_dma() const noexcept { return bus_master_.load(std::memory_order_acquire); }

protected:
    // --- construction ---
    void add_bar(unsigned index, PciBar bar);
    /// `region.handler` is part of the device.
    void add_region(unsigned bar, PciRegion region);
    /// 1, 2, 4 … 32 vectors, 64-bit address, maskable (PCI Local Bus 3.0 §6.8.1).
    void add_msi(unsigned vectors);
    /// Table and pending bits at these offsets of a BAR (§6.8.2); multiples of 8.
    void add_msix(unsigned vectors, unsigned bar, std::uint64_t table, std::uint64_t pending);
    /// PCI Express capability with function-level reset.
    void add_express();
    /// A capability of the device's own, `length` bytes with its header; its offset. Fields as in
    /// PciConfigSpace::define().
    std::uint16_t add_capability(std::uint8_t id, std::uint8_t length);
    void define(std::uint16_t offset, std::uint8_t size, std::uint32_t reset_value,
                std::uint32_t writable = 0);

    /// What configuration space holds now; mutex_ may be held.
    std::uint32_t config_value(std::uint16_t offset, std::uint8_t size) const;
    /// Sets what the guest may write too; mutex_ may be held.
    void set_config_value(std::uint16_t offset, std::uint8_t size, std::uint32_t value);

    // --- interrupts; mutex_ may be held ---
    /// Sends message `vector` by MSI-X or MSI; false when the guest uses neither (then INTx).
    bool signal(unsigned vector);
    /// The level-triggered wire, if the function has a pin. It stays low while messages are used.
    void set_intx(bool level);

    // --- hooks; neither mutex_ nor pci_mutex_ is held ---
    /// Everything of the device's own as after power-on; board reset and function-level reset.
    virtual void reset_device() = 0;
    virtual void before_config_read(std::uint16_t /*offset*/, std::uint8_t /*size*/) {}
    virtual void after_config_write(std::uint16_t /*offset*/, std::uint8_t /*size*/) {}

    // --- save and load; the VM is paused ---
    PciState pci_state() const;
    base::Result<void> check_pci(const PciState& state) const;
    void load_pci(PciState state);

private:
    friend class PciBus;
    enum class Wire : std::uint8_t { Drive, Keep }; // Keep: the receiving end has its own state

    void attach(PciBus& bus, PciAddress address, bus::AddressSpace& pio, bus::AddressSpace& mmio);
    void detach();
    std::uint32_t config_read(std::uint16_t offset, std::uint8_t size);
    /// True when something was unmapped.
    bool config_write(std::uint16_t offset, std::uint8_t size, std::uint32_t value);
    void retry_mappings();

    bool wants_function_reset(std::uint16_t offset, std::uint8_t size, std::uint32_t value) const
        DOPPEL_REQUIRES(pci_mutex_);
    void reset_function(Wire wire) DOPPEL_REQUIRES(pci_mutex_);
    /// Spreads configuration space: bus master bit, mappings, interrupt wire; true as above.
    bool update(Wire wire) DOPPEL_REQUIRES(pci_mutex_);
    void update_intx(Wire wire) DOPPEL_REQUIRES(pci_mutex_);
    void send_pending() DOPPEL_REQUIRES(pci_mutex_);
    void send(bus::MsiMessage message) DOPPEL_REQUIRES(pci_mutex_);
    bool is_msi_enabled() const DOPPEL_REQUIRES(pci_mutex_);
    bool is_msix_enabled() const DOPPEL_REQUIRES(pci_mutex_);
    bool is_msix_masked() const DOPPEL_REQUIRES(pci_mutex_);
    bus::MsiMessage msi_message(unsigned vector) const DOPPEL_REQUIRES(pci_mutex_);

    std::uint64_t read_msix_table(bus::IoAccess io);
    void write_msix_table(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_msix_pending(bus::IoAccess io);
    void ignore_write(bus::IoAccess, std::uint64_t) {}

    mutable base::Mutex pci_mutex_; // below mutex_
    PciConfigSpace config_ DOPPEL_GUARDED_BY(pci_mutex_);
    PciBars bars_ DOPPEL_GUARDED_BY(pci_mutex_);
    MsixTable msix_ DOPPEL_GUARDED_BY(pci_mutex_);
    bool intx_ DOPPEL_GUARDED_BY(pci_mutex_) = false;
    bool pulls_wire_ DOPPEL_GUARDED_BY(pci_mutex_) = false;
    std::uint16_t msi_ = 0;                               // offsets of capabilities,
    std::uint16_t msix_capability_ = 0;                   // 0: none;
    std::uint16_t express_ = 0;                           // fixed after construction
    PciBus* bus_ DOPPEL_GUARDED_BY(pci_mutex_) = nullptr; // owned by the Machine
    PciAddress address_ DOPPEL_GUARDED_BY(pci_mutex_){};
    std::atomic<bool> bus_master_{false};
    IoRange<PciDevice> msix_table_io_{*this, &PciDevice::read_msix_table,
                                      &PciDevice::write_msix_table};
    IoRange<PciDevice> msix_pending_io_{*this, &PciDevice::read_msix_pending,
                                        &PciDevice::ignore_write};
};

/// save() and load() of a PCI function: its PCI part, then D's own from D::kSchema, with the hooks
/// of StatefulDevice.
template <typename D> class StatefulPciDevice : public PciDevice {
public:
    using PciDevice::PciDevice;

    std::string_view state_kind() const final { return D::kSchema.kind; }

    void save(state::Encoder& to) const final {
        const auto& self = static_cast<const D&>(*this);
        const base::MutexLock lock{self.mutex_};
        auto copy = self.state_;
        self.capture(copy);
        state::encode(to, PciState::kSchema, pci_state());
        state::encode(to, D::kSchema, copy);
    }

    base::Result<void> load(state::Decoder& from) final {
        auto& self = static_cast<D&>(*this);
        PciState pci;
        typename D::State fresh{};
        DOPPEL_TRY_VOID(state::decode(from, PciState::kSchema, pci));
        DOPPEL_TRY_VOID(state::decode(from, D::kSchema, fresh));
        DOPPEL_TRY_VOID(check_pci(pci));
        DOPPEL_TRY_VOID(self.check(fresh));
        const base::MutexLock lock{self.mutex_};
        load_pci(std::move(pci));
        self.state_ = std::move(fresh);
        self.state_loaded();
        return {};
    }

protected:
    template <typename S> void capture(S&) const {}
    template <typename S> base::Result<void> check(const S&) const { return {}; }
    void state_loaded() {}
};

} // namespace doppel::devices
