// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Configuration space of one function: bytes, which of their bits the guest may write, and which
/// a written one clears (PCI Local Bus 3.0 §6.1, §6.2; PCI Express Base 4.0 §7.5).
/// The owner locks.
#include <array>
#include <cstdint>

#include "state/schema.hpp"

namespace doppel::devices {

// Header fields (PCI Local Bus 3.0 §6.1, type 00h), bytes from the start.
namespace pci {
inline constexpr std::uint16_t kVendorId = 0x00, kDeviceId = 0x02, kCommand = 0x04, kStatus = 0x06,
                               kRevision = 0x08, kClass = 0x09, kHeaderType = 0x0e, kBar0 = 0x10,
                               kSubsystemVendor = 0x2c, kSubsystem = 0x2e, kCapabilities = 0x34,
                               kInterruptLine = 0x3c, kInterruptPin = 0x3d;
// Command register (§6.2.2).
inline constexpr std::uint16_t kCommandIo = 1u << 0, kCommandMemory = 1u << 1,
                               kCommandBusMaster = 1u << 2, kCommandParity = 1u << 6,
                               kCommandSerr = 1u << 8, kCommandIntxDisable = 1u << 10;
// Status register (§6.2.3).
inline constexpr std::uint16_t kStatusInterrupt = 1u << 3, kStatusCapabilities = 1u << 4;
inline constexpr std::uint8_t kCapabilityMsi = 0x05, kCapabilityVendor = 0x09,
                              kCapabilityExpress = 0x10, kCapabilityMsix = 0x11;
} // namespace pci

class PciConfigSpace {
public:
    static constexpr std::size_t kBytes = 4096; // the first 256 by configuration mechanism #1
    using Bytes = std::array<std::uint8_t, kBytes>;

    /// Construction: `size` 1, 2 or 4 bytes at `offset`, the value after reset, the bits a guest
    /// may write, the bits it clears by writing ones.
    void define(std::uint16_t offset, std::uint8_t size, std::uint32_t reset_value,
                std::uint32_t writable = 0, std::uint32_t clears = 0);
    /// Construction: bits that the device itself changes by set().
    void own(std::uint16_t offset, std::uint8_t size, std::uint32_t bits);
    /// Construction: a capability of `length` bytes, header included, linked in behind the others
    /// (PCI Local Bus 3.0 §6.7); its offset.
    std::uint16_t add_capability(std::uint8_t id, std::uint8_t length);

    /// `size` 1, 2 or 4; the access stays within a dword.
    std::uint32_t read(std::uint16_t offset, std::uint8_t size) const;
    void write(std::uint16_t offset, std::uint8_t size, std::uint32_t value);
    /// What the device itself changes, whatever the guest may write.
    void set(std::uint16_t offset, std::uint8_t size, std::uint32_t value);

    void reset() { bytes_ = reset_; }
    const Bytes& bytes() const { return bytes_; }
    /// Corrupt when bits differ from this configuration that nobody could have changed.
    base::Result<void> check(const Bytes& bytes) const;
    void load(const Bytes& bytes) { bytes_ = bytes; }

private:
    Bytes bytes_{};
    Bytes reset_{};
    Bytes writable_{};
    Bytes clears_{};
    Bytes owned_{};
    std::uint16_t last_capability_ = 0;
    std::uint16_t next_capability_ = 0x40;
};

} // namespace doppel::devices
