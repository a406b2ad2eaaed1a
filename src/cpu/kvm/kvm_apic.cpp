// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/kvm_apic.hpp"

#include <cstring>

namespace doppel::cpu::kvm {

namespace {

constexpr std::size_t kStride = 16; // bytes from register to register
constexpr std::size_t kPpr = 0x0a, kIsr = 0x10, kIrr = 0x20, kLvtTimer = 0x32, kInitialCount = 0x38,
                      kCurrentCount = 0x39;

constexpr std::uint32_t kMasked = 1u << 16;

bool is_one_shot(const ApicImage& image) { return (image.registers[kLvtTimer] >> 17 & 3) == 0; }

/// Where IRR (or ISR) has a vector.
std::size_t word_of(std::size_t bits, std::uint8_t vector) { return bits + (vector >> 5); }
std::uint32_t bit_of(std::uint8_t vector) { return 1u << (vector & 31); }
std::uint8_t timer_vector(const ApicImage& image) {
    return static_cast<std::uint8_t>(image.registers[kLvtTimer]);
}

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
    const auto bit = bit_of(vector);
    if ((image.registers[word_of(kIsr, vector)] & bit) == 0)
        return false;
    image.registers[word_of(kIsr, vector)] &= ~bit;
    image.registers[word_of(kIrr, vector)] |= bit;
    // What is left in service decides the priority again (SDM §11.8.3.1); the reader of the image
    // computes it, so the old value only must not stay.
    image.registers[kPpr] = 0;
    return true;
}

bool timer_counts(const ApicImage& image) {
    return is_one_shot(image) && image.registers[kCurrentCount] != 0;
}

bool timer_ended_silently(const ApicImage& image) {
    const auto vector = timer_vector(image);
    const auto taken =
        image.registers[word_of(kIrr, vector)] | image.registers[word_of(kIsr, vector)];
    return is_one_shot(image) && (image.registers[kLvtTimer] & kMasked) == 0 &&
           image.registers[kInitialCount] != 0 && image.registers[kCurrentCount] == 0 &&
           (taken & bit_of(vector)) == 0;
}

void request_timer(ApicImage& image) {
    const auto vector = timer_vector(image);
    image.registers[word_of(kIrr, vector)] |= bit_of(vector);
}

} // namespace doppel::cpu::kvm
