// SPDX-License-Identifier: Apache-2.0
#include "devices/apic/io_apic.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint64_t kSelectOffset = 0x00;
constexpr std::uint64_t kWindowOffset = 0x10;
constexpr std::uint64_t kEoiOffset = 0x40;

constexpr std::uint8_t kIdRegister = 0;
constexpr std::uint8_t kVersionRegister = 1;
constexpr std::uint8_t kArbitrationRegister = 2;
constexpr std::uint8_t kTableRegister = 0x10;

constexpr std::uint32_t kVersion = 0x20 | (IoApic::kInputs - 1) << 16;

// Redirection entry (82093AA §3.2.4).
constexpr std::uint64_t kRemoteIrr = 1u << 14;
constexpr std::uint64_t kLevel = 1u << 15;
constexpr std::uint64_t kMasked = 1u << 16;
constexpr std::uint32_t kWritableLow = 0x1'afff; // all but delivery status and remote IRR
constexpr std::uint32_t kWritableHigh = 0xff00'0000;

ApicMessage message_of(std::uint64_t entry) {
    ApicMessage message;
    message.vector = static_cast<std::uint8_t>(entry);
    message.mode = static_cast<DeliveryMode>(entry >> 8 & 7);
    message.is_logical = (entry & 1u << 11) != 0;
    message.is_level = (entry & kLevel) != 0;
    message.destination = static_cast<std::uint32_t>(entry >> 56);
    return message;
}

} // namespace

IoApic::IoApic(ApicBus& bus) : bus_{bus} { bus.add(*this); }

void IoApic::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
    publish_all();
}

// --- inputs -----------------------------------------------------------------------------------

void IoApic::send(std::uint64_t entry) { bus_.deliver(message_of(entry)); }

/// Masked or not: a masked input's interrupt may still be in service.
void IoApic::publish(std::size_t input) const {
    const auto entry = state_.table[input];
    const auto number = static_cast<std::uint32_t>(input);
    bus_.set_level_route(number,
                         (entry & kLevel) != 0 ? std::optional{message_of(entry)} : std::nullopt);
}

void IoApic::publish_all() const {
    for (std::size_t input = 0; input < kInputs; ++input)
        publish(input);
}

void IoApic::publish_routes() noexcept {
    const base::MutexLock lock{mutex_};
    publish_all();
}

void IoApic::service_level(std::size_t input) {
    auto& entry = state_.table[input];
    if ((entry & (kLevel | kMasked | kRemoteIrr)) != kLevel || (state_.levels >> input & 1) == 0)
        return;
    entry |= kRemoteIrr;
    send(entry);
}

/// A masked edge is lost, a masked level waits (82093AA §3.2.4, bit 16).
void IoApic::set_irq_level(std::uint32_t input, bool level) noexcept {
    if (input >= kInputs)
        return;
    const base::MutexLock lock{mutex_};
    const std::uint32_t bit = 1u << input;
    const bool rose = level && (state_.levels & bit) == 0;
    state_.levels = level ? state_.levels | bit : state_.levels & ~bit;
    const auto entry = state_.table[input];
    if ((entry & kLevel) != 0)
        service_level(input);
    else if (rose && (entry & kMasked) == 0)
        send(entry);
}

void IoApic::end_of_interrupt(std::uint8_t vector) noexcept {
    const base::MutexLock lock{mutex_};
    end_level(vector);
}

void IoApic::end_level(std::uint8_t vector) {
    for (std::size_t input = 0; input < kInputs; ++input) {
        auto& entry = state_.table[input];
        if ((entry & (kLevel | kRemoteIrr)) != (kLevel | kRemoteIrr) || (entry & 0xff) != vector)
            continue;
        entry &= ~kRemoteIrr;
        service_level(input); // still up: again
    }
}

// --- registers --------------------------------------------------------------------------------

std::uint64_t IoApic::io_read(bus::IoAccess io) {
    const base::MutexLock lock{mutex_};
    switch (io.offset & ~3ull) {
    case kSelectOffset: return state_.select;
    case kWindowOffset: return read_register() >> (io.offset & 3) * 8;
    default: return 0;
    }
}

void IoApic::io_write(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    switch (io.offset) {
    case kSelectOffset: state_.select = static_cast<std::uint8_t>(value); break;
    case kWindowOffset: write_register(static_cast<std::uint32_t>(value)); break;
    case kEoiOffset: end_level(static_cast<std::uint8_t>(value)); break;
    default: break;
    }
}

std::uint32_t IoApic::read_register() const {
    switch (state_.select) {
    case kIdRegister:
    case kArbitrationRegister: return static_cast<std::uint32_t>(state_.id) << 24;
    case kVersionRegister: return kVersion;
    default: break;
    }
    const auto input = static_cast<std::size_t>(state_.select - kTableRegister) / 2;
    if (state_.select < kTableRegister || input >= kInputs)
        return 0;
    const auto entry = state_.table[input];
    return static_cast<std::uint32_t>((state_.select & 1) != 0 ? entry >> 32 : entry);
}

void IoApic::write_register(std::uint32_t value) {
    if (state_.select == kIdRegister) {
        state_.id = value >> 24 & 0x0f;
        return;
    }
    const auto input = static_cast<std::size_t>(state_.select - kTableRegister) / 2;
    if (state_.select >= kTableRegister && input < kInputs)
        write_entry(input, (state_.select & 1) != 0, value);
}

/// Writing an entry as edge-triggered clears its remote IRR: what Linux does to chips that have no
/// EOI register.
void IoApic::write_entry(std::size_t input, bool is_high, std::uint32_t value) {
    auto& entry = state_.table[input];
    if (is_high) {
        entry = (entry & 0xffff'ffff) | std::uint64_t{value & kWritableHigh} << 32;
        publish(input);
        return;
    }
    entry = (entry & ~std::uint64_t{kWritableLow}) | (value & kWritableLow);
    if ((entry & kLevel) == 0)
        entry &= ~kRemoteIrr;
    publish(input);
    service_level(input);
}

} // namespace doppel::devices
