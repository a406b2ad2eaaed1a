// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/config_access.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint32_t kEnable = 1u << 31;
constexpr std::uint32_t kAddressBits = 0x80ff'fffc;
constexpr std::uint64_t kResetControl = 1; // port CF9h
constexpr std::uint64_t kData = 4;         // ports CFCh to CFFh

PciAddress to_address(std::uint64_t bus_device_function) {
    return {static_cast<std::uint8_t>(bus_device_function >> 8),
            static_cast<std::uint8_t>(bus_device_function >> 3 & 0x1f),
            static_cast<std::uint8_t>(bus_device_function & 7)};
}

bool is_within_dword(bus::IoAccess io) { return (io.offset & 3) + io.size <= 4; }

} // namespace

base::Result<void> PciConfigPorts::State::validate() const {
    if ((address & ~kAddressBits) != 0)
        return base::fail(base::Errc::Corrupt, "PCI configuration address has reserved bits set");
    return {};
}

PciConfigPorts::PciConfigPorts(PciBus& bus, bus::IoHandler* port_cf9)
    : bus_{bus}, port_cf9_{port_cf9} {}

void PciConfigPorts::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
}

std::uint32_t PciConfigPorts::address() const {
    const base::MutexLock lock{mutex_};
    return state_.address;
}

/// Offset of the access in configuration space.
std::uint16_t PciConfigPorts::target(std::uint32_t address, bus::IoAccess io) {
    return static_cast<std::uint16_t>((address & 0xfc) | (io.offset & 3));
}

std::uint64_t PciConfigPorts::io_read(bus::IoAccess io) {
    if (io.offset >= kData) {
        const auto address = this->address();
        if ((address & kEnable) == 0 || !is_within_dword(io))
            return ~0ull;
        return bus_.config_read(to_address(address >> 8 & 0xffff), target(address, io), io.size);
    }
    if (io.offset == 0 && io.size == 4)
        return address();
    if (io.offset == kResetControl && io.size == 1 && port_cf9_ != nullptr)
        return port_cf9_->io_read({0, 1});
    return ~0ull;
}

void PciConfigPorts::io_write(bus::IoAccess io, std::uint64_t value) {
    if (io.offset >= kData) {
        const auto address = this->address();
        if ((address & kEnable) != 0 && is_within_dword(io))
            bus_.config_write(to_address(address >> 8 & 0xffff), target(address, io), io.size,
                              static_cast<std::uint32_t>(value));
        return;
    }
    if (io.offset == kResetControl && io.size == 1 && port_cf9_ != nullptr) {
        port_cf9_->io_write({0, 1}, value);
    } else if (io.offset == 0 && io.size == 4) {
        const base::MutexLock lock{mutex_};
        state_.address = static_cast<std::uint32_t>(value) & kAddressBits;
    }
}

/// Address bits 27:20 bus, 19:15 device, 14:12 function, 11:0 register.
std::uint64_t PciEcam::io_read(bus::IoAccess io) {
    return bus_.config_read(to_address(io.offset >> 12 & 0xffff),
                            static_cast<std::uint16_t>(io.offset & 0xfff), io.size);
}

void PciEcam::io_write(bus::IoAccess io, std::uint64_t value) {
    bus_.config_write(to_address(io.offset >> 12 & 0xffff),
                      static_cast<std::uint16_t>(io.offset & 0xfff), io.size,
                      static_cast<std::uint32_t>(value));
}

} // namespace doppel::devices
