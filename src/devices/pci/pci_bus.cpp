// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/pci_bus.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "devices/pci/pci_device.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint8_t kMultifunction = 0x80; // header type bit 7 (PCI Local Bus 3.0 §6.2.1)

std::size_t index_of(PciAddress address) { return address.device * 8u + address.function; }

std::uint32_t all_ones(std::uint8_t size) { return ~0u >> (4 - size) * 8; }

} // namespace

PciBus::PciBus(bus::AddressSpace& pio, bus::AddressSpace& mmio, bus::IrqSink& interrupts,
               std::uint32_t first_gsi, bus::MsiSink& msi)
    : pio_{pio}, mmio_{mmio}, interrupts_{interrupts}, first_gsi_{first_gsi}, msi_{msi} {}

base::Result<void> PciBus::add(PciAddress address, PciDevice& device) {
    if (address.bus != 0 || address.device > 31 || address.function > 7)
        return base::fail(base::Errc::InvalidArgument,
                          fmt::format("PCI address {:02x}:{:02x}.{} does not exist", address.bus,
                                      address.device, address.function));
    const base::MutexLock lock{mutex_};
    auto& place = functions_[index_of(address)];
    if (std::ranges::find(functions_, &device) != functions_.end())
        return base::fail(base::Errc::AlreadyExists, "PCI function sits elsewhere on this bus");
    if (place != nullptr)
        return base::fail(base::Errc::AlreadyExists,
                          fmt::format("PCI address {:02x}:{:02x}.{} is taken", address.bus,
                                      address.device, address.function));
    place = &device;
    device.attach(*this, address, pio_, mmio_);
    return {};
}

void PciBus::remove(PciDevice& device) {
    const base::MutexLock lock{mutex_};
    for (auto& place : functions_) {
        if (place != &device)
            continue;
        place = nullptr;
        device.detach();
        retry_mappings();
    }
}

void PciBus::retry_mappings() {
    for (auto* const function : functions_) {
        if (function != nullptr)
            function->retry_mappings();
    }
}

PciDevice* PciBus::find(PciAddress address) const {
    const bool exists = address.bus == 0 && address.device < 32 && address.function < 8;
    return exists ? functions_[index_of(address)] : nullptr;
}

bool PciBus::has_more_functions(std::uint8_t device) const {
    for (std::uint8_t function = 1; function < 8; ++function) {
        if (functions_[index_of({0, device, function})] != nullptr)
            return true;
    }
    return false;
}

std::uint32_t PciBus::config_read(PciAddress address, std::uint16_t offset, std::uint8_t size) {
    const base::MutexLock lock{mutex_};
    auto* const function = find(address);
    if (function == nullptr)
        return all_ones(size);
    auto value = function->config_read(offset, size);
    if (offset <= pci::kHeaderType && offset + size > pci::kHeaderType && address.function == 0 &&
        has_more_functions(address.device))
        value |= std::uint32_t{kMultifunction} << (pci::kHeaderType - offset) * 8;
    return value & all_ones(size);
}

void PciBus::config_write(PciAddress address, std::uint16_t offset, std::uint8_t size,
                          std::uint32_t value) {
    const base::MutexLock lock{mutex_};
    auto* const function = find(address);
    if (function != nullptr && function->config_write(offset, size, value))
        retry_mappings();
}

/// The wire's level follows the count even when two functions change it at once: whoever drove last
/// looks again whether the count still agrees.
void PciBus::pull(unsigned wire, bool level, bool drive) noexcept {
    auto& pulled = pulled_[wire];
    if (level)
        pulled.fetch_add(1, std::memory_order_seq_cst);
    else
        pulled.fetch_sub(1, std::memory_order_seq_cst);
    if (!drive)
        return;
    std::uint32_t seen = 0;
    do {
        seen = pulled.load(std::memory_order_seq_cst);
        interrupts_.set_irq_level(first_gsi_ + wire, seen != 0);
    } while ((pulled.load(std::memory_order_seq_cst) != 0) != (seen != 0));
}

} // namespace doppel::devices
