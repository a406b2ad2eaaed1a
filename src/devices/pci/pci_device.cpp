// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/pci_device.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint16_t kCommandWritable = pci::kCommandIo | pci::kCommandMemory |
                                           pci::kCommandBusMaster | pci::kCommandParity |
                                           pci::kCommandSerr | pci::kCommandIntxDisable;
constexpr std::uint16_t kCacheLineSize = 0x0c; // writable, without effect (PCIe 4.0 §7.5.1.1.7)

} // namespace

PciDevice::PciDevice(const PciIdentity& identity) {
    config_.define(pci::kVendorId, 2, identity.vendor);
    config_.define(pci::kDeviceId, 2, identity.device);
    config_.define(pci::kCommand, 2, 0, kCommandWritable);
    config_.define(pci::kRevision, 4, identity.revision | identity.class_code << 8);
    config_.define(kCacheLineSize, 1, 0, 0xff);
    config_.define(pci::kSubsystemVendor, 2, identity.subsystem_vendor);
    config_.define(pci::kSubsystem, 2, identity.subsystem);
    config_.define(pci::kInterruptLine, 1, 0, 0xff);
    config_.define(pci::kInterruptPin, 1, identity.interrupt_pin & 7u);
}

void PciDevice::add_bar(unsigned index, PciBar bar) {
    const base::MutexLock lock{pci_mutex_};
    bars_.add(index, bar, config_);
}

void PciDevice::add_region(unsigned bar, PciRegion region) {
    const base::MutexLock lock{pci_mutex_};
    bars_.add_region(bar, std::move(region));
}

std::uint16_t PciDevice::add_capability(std::uint8_t id, std::uint8_t length) {
    const base::MutexLock lock{pci_mutex_};
    return config_.add_capability(id, length);
}

void PciDevice::define(std::uint16_t offset, std::uint8_t size, std::uint32_t reset_value,
                       std::uint32_t writable) {
    const base::MutexLock lock{pci_mutex_};
    config_.define(offset, size, reset_value, writable);
}

std::uint32_t PciDevice::config_value(std::uint16_t offset, std::uint8_t size) const {
    const base::MutexLock lock{pci_mutex_};
    return config_.read(offset, size);
}

void PciDevice::set_config_value(std::uint16_t offset, std::uint8_t size, std::uint32_t value) {
    const base::MutexLock lock{pci_mutex_};
    config_.set(offset, size, value);
}

// --- bus --------------------------------------------------------------------------------------

void PciDevice::attach(PciBus& bus, PciAddress address, bus::AddressSpace& pio,
                       bus::AddressSpace& mmio) {
    const base::MutexLock lock{pci_mutex_};
    bus_ = &bus;
    address_ = address;
    bars_.attach(pio, mmio);
    update(Wire::Drive);
}

void PciDevice::detach() {
    const base::MutexLock lock{pci_mutex_};
    bars_.detach();
    intx_ = false;
    update_intx(Wire::Drive);
    bus_master_.store(false, std::memory_order_release);
    bus_ = nullptr;
}

void PciDevice::retry_mappings() {
    const base::MutexLock lock{pci_mutex_};
    bars_.retry();
}

std::uint32_t PciDevice::config_read(std::uint16_t offset, std::uint8_t size) {
    before_config_read(offset, size);
    const base::MutexLock lock{pci_mutex_};
    auto value = config_.read(offset, size);
    if (intx_ && offset <= pci::kStatus && offset + size > pci::kStatus)
        value |= std::uint32_t{pci::kStatusInterrupt} << (pci::kStatus - offset) * 8;
    return value;
}

bool PciDevice::config_write(std::uint16_t offset, std::uint8_t size, std::uint32_t value) {
    bool released = false;
    bool is_reset = false;
    {
        const base::MutexLock lock{pci_mutex_};
        is_reset = wants_function_reset(offset, size, value);
        if (is_reset) {
            reset_function(Wire::Drive);
            released = true;
        } else {
            config_.write(offset, size, value);
            released = update(Wire::Drive);
            send_pending();
        }
    }
    if (is_reset)
        reset_device();
    else
        after_config_write(offset, size);
    return released;
}

bool PciDevice::update(Wire wire) {
    const auto command = config_.read(pci::kCommand, 2);
    bus_master_.store((command & pci::kCommandBusMaster) != 0, std::memory_order_release);
    update_intx(wire);
    return bars_.update(config_);
}

// --- reset, save, load ------------------------------------------------------------------------

void PciDevice::reset_function(Wire wire) {
    config_.reset();
    msix_.reset();
    intx_ = false;
    update(wire);
}

void PciDevice::reset() {
    {
        const base::MutexLock lock{pci_mutex_};
        reset_function(Wire::Keep);
    }
    reset_device();
}

PciDevice::PciState PciDevice::pci_state() const {
    const base::MutexLock lock{pci_mutex_};
    return {config_.bytes(), msix_.state(), intx_};
}

base::Result<void> PciDevice::check_pci(const PciState& state) const {
    const base::MutexLock lock{pci_mutex_};
    DOPPEL_TRY_VOID(config_.check(state.config));
    return msix_.check(state.msix);
}

void PciDevice::load_pci(PciState state) {
    const base::MutexLock lock{pci_mutex_};
    config_.load(state.config);
    msix_.load(std::move(state.msix));
    intx_ = state.intx;
    update(Wire::Keep);
}

} // namespace doppel::devices
