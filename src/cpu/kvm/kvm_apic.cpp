// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/kvm_apic.hpp"

#include <cstring>

namespace doppel::cpu::kvm {

namespace {

constexpr std::size_t kStride = 16; // bytes from register to register
constexpr std::size_t kPpr = 0x0a, kIsr = 0x10, kIrr = 0x20, kLvtTimer = 0x32, kInitialCount = 0x38,
                      kCurrentCount = 0x39;

bool is_one_shot(const ApicImage& image) { return (image.registers[kLvtTimer] >> 17 & 3) == 0; }

} // namespace

/// The kernel starts the timer from the current count, and takes 0 for "due now": a one-shot count
/// that has expired is not started again, at the price of its initial count, which reads 0.
kvm_lapic_state to_lapic(const ApicImage& image) {
    kvm_lapic_state lapic{};
    for (std::size_t i = 0; i < ApicImage::kRegisters; ++i)
        std::memcpy(lapic.regs + i * kStride, &image.registers[i], sizeof(std::uint32_t));
    if (is_one_shot(image) && image.registers[kCurrentCount] == 0)
        std::memset(lapic.regs + kInitialCount * kStride, 0, sizeof(std::uint32_t));
    return lapic;
}

ApicImage from_lapic(const kvm_lapic_state& lapic) {
    ApicImage image;
    for (std::size_t i = 0; i < ApicImage::kRegisters; ++i)
        std::memcpy(&image.registers[i], lapic.regs + i * kStride, sizeof(std::uint32_t));
    return image;
}

bool take_back(ApicImage& image, std::uint8_t vector) {
    const auto word = static_cast<std::size_t>(vector >> 5);
    const std::uint32_t bit = 1u << (vector & 31);
    if ((image.registers[kIsr + word] & bit) == 0)
        return false;
    image.registers[kIsr + word] &= ~bit;
    image.registers[kIrr + word] |= bit;
    // What is left in service decides the priority again (SDM §11.8.3.1); the reader of the image
    // computes it, so the old value only must not stay.
    image.registers[kPpr] = 0;
    return true;
}

} // namespace doppel::cpu::kvm
