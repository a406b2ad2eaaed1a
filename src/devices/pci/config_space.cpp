// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/config_space.hpp"

#include "base/verify.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint16_t kEndOfCapabilities = 0x100; // extended ones follow

std::uint8_t byte_of(std::uint32_t value, unsigned index) {
    return static_cast<std::uint8_t>(value >> index * 8);
}

} // namespace

void PciConfigSpace::define(std::uint16_t offset, std::uint8_t size, std::uint32_t reset_value,
                            std::uint32_t writable, std::uint32_t clears) {
    DOPPEL_VERIFY(std::size_t{offset} + size <= kBytes, "a register of configuration space");
    for (unsigned i = 0; i < size; ++i) {
        reset_[offset + i] = bytes_[offset + i] = byte_of(reset_value, i);
        writable_[offset + i] = byte_of(writable, i);
        clears_[offset + i] = byte_of(clears, i);
    }
}

void PciConfigSpace::own(std::uint16_t offset, std::uint8_t size, std::uint32_t bits) {
    DOPPEL_VERIFY(std::size_t{offset} + size <= kBytes, "a register of configuration space");
    for (unsigned i = 0; i < size; ++i)
        owned_[offset + i] |= byte_of(bits, i);
}

std::uint16_t PciConfigSpace::add_capability(std::uint8_t id, std::uint8_t length) {
    const auto offset = next_capability_;
    DOPPEL_VERIFY(offset + length <= kEndOfCapabilities, "room for one more capability");
    const auto link = last_capability_ == 0 ? pci::kCapabilities
                                            : static_cast<std::uint16_t>(last_capability_ + 1);
    define(link, 1, offset);
    define(offset, 1, id);
    define(static_cast<std::uint16_t>(offset + 1), 1, 0);
    last_capability_ = offset;
    next_capability_ = static_cast<std::uint16_t>((offset + length + 3) & ~3); // dwords
    define(pci::kStatus, 2, reset_[pci::kStatus] | pci::kStatusCapabilities);
    return offset;
}

std::uint32_t PciConfigSpace::read(std::uint16_t offset, std::uint8_t size) const {
    std::uint32_t value = 0;
    for (unsigned i = 0; i < size && offset + i < kBytes; ++i)
        value |= std::uint32_t{bytes_[offset + i]} << i * 8;
    return value;
}

void PciConfigSpace::write(std::uint16_t offset, std::uint8_t size, std::uint32_t value) {
    for (unsigned i = 0; i < size && offset + i < kBytes; ++i) {
        const auto at = offset + i;
        const auto byte = byte_of(value, i);
        const auto kept = (bytes_[at] & ~writable_[at]) | (byte & writable_[at]);
        bytes_[at] = static_cast<std::uint8_t>(kept & ~(byte & clears_[at]));
    }
}

void PciConfigSpace::set(std::uint16_t offset, std::uint8_t size, std::uint32_t value) {
    for (unsigned i = 0; i < size && offset + i < kBytes; ++i)
        bytes_[offset + i] = byte_of(value, i);
}

base::Result<void> PciConfigSpace::check(const Bytes& bytes) const {
    for (std::size_t at = 0; at < kBytes; ++at) {
        const auto changeable = writable_[at] | clears_[at] | owned_[at];
        if (((bytes[at] ^ reset_[at]) & ~changeable) != 0)
            return base::fail(base::Errc::Corrupt, "configuration space is another function's");
    }
    return {};
}

} // namespace doppel::devices
