// SPDX-License-Identifier: Apache-2.0
/// Interrupts of a PCI function and its PCI Express capability.
#include <algorithm>
#include <bit>

#include "base/verify.hpp"
#include "devices/pci/pci_device.hpp"

namespace doppel::devices {

namespace {

// MSI capability, 64-bit and maskable (PCI Local Bus 3.0 §6.8.1): offsets from its start.
constexpr std::uint16_t kMsiControl = 2, kMsiAddress = 4, kMsiAddressHigh = 8, kMsiData = 0x0c,
                        kMsiMask = 0x10, kMsiPending = 0x14;
constexpr std::uint8_t kMsiBytes = 0x18;
constexpr std::uint32_t kMsiEnable = 1u << 0, kMsi64Bit = 1u << 7, kMsiMaskable = 1u << 8;
constexpr unsigned kMsiCapableShift = 1, kMsiEnabledShift = 4; // log2 of vectors

// MSI-X capability (§6.8.2.3).
constexpr std::uint16_t kMsixControl = 2, kMsixTable = 4, kMsixPending = 8;
constexpr std::uint8_t kMsixBytes = 0x0c;
constexpr std::uint32_t kMsixEnable = 1u << 15, kMsixFunctionMask = 1u << 14;

// PCI Express capability (PCI Express Base 4.0 §7.5.3), version 2.
constexpr std::uint16_t kExpressFlags = 2, kDeviceCapabilities = 4, kDeviceControl = 8,
                        kDeviceStatus = 0x0a, kDeviceControl2 = 0x28;
constexpr std::uint8_t kExpressBytes = 0x3c;
constexpr std::uint32_t kIntegratedEndpoint = 9u << 4 | 2; // type, version
constexpr std::uint32_t kRoleBasedErrors = 1u << 15, kCanResetFunction = 1u << 28;
constexpr std::uint32_t kResetFunction = 1u << 15;
constexpr std::uint32_t kDeviceControlReset = 0x2810; // relaxed order, no snoop, 512 byte reads
constexpr std::uint32_t kDeviceControlWritable = 0x7fff & ~0x0700u; // no tags, phantoms, aux power
constexpr std::uint32_t kErrorsDetected = 0x0f;
constexpr std::uint32_t kDeviceControl2Writable = 0x1f; // completion timeout

std::uint16_t at(std::uint16_t capability, std::uint16_t offset) {
    return static_cast<std::uint16_t>(capability + offset);
}

} // namespace

// --- construction -----------------------------------------------------------------------------

void PciDevice::add_msi(unsigned vectors) {
    DOPPEL_VERIFY(std::has_single_bit(vectors) && vectors <= 32, "MSI vectors of one function");
    const base::MutexLock lock{pci_mutex_};
    msi_ = config_.add_capability(pci::kCapabilityMsi, kMsiBytes);
    const auto capable = static_cast<std::uint32_t>(std::countr_zero(vectors));
    config_.define(at(msi_, kMsiControl), 2, capable << kMsiCapableShift | kMsi64Bit | kMsiMaskable,
                   kMsiEnable | 7u << kMsiEnabledShift);
    config_.define(at(msi_, kMsiAddress), 4, 0, ~3u);
    config_.define(at(msi_, kMsiAddressHigh), 4, 0, ~0u);
    config_.define(at(msi_, kMsiData), 2, 0, 0xffff);
    const auto all = static_cast<std::uint32_t>((1ull << vectors) - 1);
    config_.define(at(msi_, kMsiMask), 4, 0, all);
    config_.own(at(msi_, kMsiPending), 4, all);
}

void PciDevice::add_msix(unsigned vectors, unsigned bar, std::uint64_t table,
                         std::uint64_t pending) {
    DOPPEL_VERIFY(vectors != 0 && bar < PciBars::kCount, "MSI-X needs vectors and a BAR");
    DOPPEL_VERIFY((table | pending) % 8 == 0, "place of the MSI-X table");
    const base::MutexLock lock{pci_mutex_};
    msix_ = MsixTable{vectors};
    msix_capability_ = config_.add_capability(pci::kCapabilityMsix, kMsixBytes);
    config_.define(at(msix_capability_, kMsixControl), 2, vectors - 1,
                   kMsixEnable | kMsixFunctionMask);
    config_.define(at(msix_capability_, kMsixTable), 4, static_cast<std::uint32_t>(table) | bar);
    config_.define(at(msix_capability_, kMsixPending), 4,
                   static_cast<std::uint32_t>(pending) | bar);
    bars_.add_region(
        bar, {table, msix_.table_bytes(), "msix table", MsixTable::kRules, &msix_table_io_});
    bars_.add_region(bar, {pending, msix_.pending_bytes(), "msix pending", MsixTable::kRules,
                           &msix_pending_io_});
}

void PciDevice::add_express() {
    const base::MutexLock lock{pci_mutex_};
    express_ = config_.add_capability(pci::kCapabilityExpress, kExpressBytes);
    config_.define(at(express_, kExpressFlags), 2, kIntegratedEndpoint);
    config_.define(at(express_, kDeviceCapabilities), 4, kRoleBasedErrors | kCanResetFunction);
    config_.define(at(express_, kDeviceControl), 2, kDeviceControlReset, kDeviceControlWritable);
    config_.define(at(express_, kDeviceStatus), 2, 0, 0, kErrorsDetected);
    config_.define(at(express_, kDeviceControl2), 2, 0, kDeviceControl2Writable);
}

bool PciDevice::wants_function_reset(std::uint16_t offset, std::uint8_t size,
                                     std::uint32_t value) const {
    const unsigned high_byte = express_ + kDeviceControl + 1u; // bit 15 lies there
    if (express_ == 0 || offset > high_byte || offset + size <= high_byte)
        return false;
    const auto shift = (high_byte - offset) * 8;
    return (value >> shift << 8 & kResetFunction) != 0;
}

// --- INTx -------------------------------------------------------------------------------------

void PciDevice::set_intx(bool level) {
    const base::MutexLock lock{pci_mutex_};
    intx_ = level;
    update_intx(Wire::Drive);
}

void PciDevice::update_intx(Wire wire) {
    const auto pin = static_cast<std::uint8_t>(config_.read(pci::kInterruptPin, 1));
    const bool is_disabled = (config_.read(pci::kCommand, 2) & pci::kCommandIntxDisable) != 0;
    const bool pull = intx_ && pin != 0 && !is_disabled && !is_msi_enabled() && !is_msix_enabled();
    if (pull == pulls_wire_ || bus_ == nullptr)
        return;
    pulls_wire_ = pull;
    bus_->pull(PciBus::wire_of(address_.device, pin), pull, wire == Wire::Drive);
}

// --- messages ---------------------------------------------------------------------------------

bool PciDevice::is_msi_enabled() const {
    return msi_ != 0 && (config_.read(at(msi_, kMsiControl), 2) & kMsiEnable) != 0;
}

bool PciDevice::is_msix_enabled() const {
    return msix_capability_ != 0 &&
           (config_.read(at(msix_capability_, kMsixControl), 2) & kMsixEnable) != 0;
}

bool PciDevice::is_msix_masked() const {
    return (config_.read(at(msix_capability_, kMsixControl), 2) & kMsixFunctionMask) != 0;
}

/// A message is a write to memory: it needs bus master enable (PCI Local Bus 3.0 §6.8.3).
void PciDevice::send(bus::MsiMessage message) {
    if (bus_ != nullptr && may_use_dma())
        bus_->msi_.send_msi(message);
}

/// With fewer vectors granted than asked for, higher ones fold onto them; the vector replaces the
/// low bits of the data (§6.8.1.6).
bus::MsiMessage PciDevice::msi_message(unsigned vector) const {
    const auto control = config_.read(at(msi_, kMsiControl), 2);
    const auto capable = control >> kMsiCapableShift & 7;
    const auto granted = std::min(control >> kMsiEnabledShift & 7, capable);
    const auto low = (1u << granted) - 1;
    const auto data = config_.read(at(msi_, kMsiData), 2);
    const auto high = std::uint64_t{config_.read(at(msi_, kMsiAddressHigh), 4)} << 32;
    return {high | config_.read(at(msi_, kMsiAddress), 4), (data & ~low) | (vector & low)};
}

bool PciDevice::signal(unsigned vector) {
    const base::MutexLock lock{pci_mutex_};
    if (is_msix_enabled()) {
        if (const auto message = msix_.signal(vector, is_msix_masked()))
            send(*message);
        return true;
    }
    if (!is_msi_enabled())
        return false;
    const auto message = msi_message(vector);
    const auto bit = 1u << (vector & 31);
    if ((config_.read(at(msi_, kMsiMask), 4) & bit) == 0)
        send(message);
    else
        config_.set(at(msi_, kMsiPending), 4, config_.read(at(msi_, kMsiPending), 4) | bit);
    return true;
}

void PciDevice::send_pending() {
    if (is_msix_enabled() && !is_msix_masked()) {
        while (const auto message = msix_.take_deliverable())
            send(*message);
    }
    if (is_msix_enabled() || !is_msi_enabled())
        return;
    const auto pending = config_.read(at(msi_, kMsiPending), 4);
    auto ready = pending & ~config_.read(at(msi_, kMsiMask), 4);
    config_.set(at(msi_, kMsiPending), 4, pending & ~ready);
    for (; ready != 0; ready &= ready - 1)
        send(msi_message(static_cast<unsigned>(std::countr_zero(ready))));
}

std::uint64_t PciDevice::read_msix_table(bus::IoAccess io) {
    const base::MutexLock lock{pci_mutex_};
    return msix_.read_table(io);
}

void PciDevice::write_msix_table(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{pci_mutex_};
    msix_.write_table(io, value);
    send_pending();
}

std::uint64_t PciDevice::read_msix_pending(bus::IoAccess io) {
    const base::MutexLock lock{pci_mutex_};
    return msix_.read_pending(io);
}

} // namespace doppel::devices
