// SPDX-License-Identifier: Apache-2.0
#include "devices/apic/apic_bus.hpp"

#include "devices/apic/local_apic.hpp"

namespace doppel::devices {

namespace {

/// The same request as an MSI (SDM §11.11): IOAPICs' have 8-bit destinations.
bus::MsiMessage msi_of(const ApicMessage& message) {
    const bool to_lowest = message.mode == DeliveryMode::LowestPriority;
    return {.address = 0xfee0'0000 | (message.destination & 0xff) << 12 |
                       (to_lowest ? 1u << 3 : 0) | (message.is_logical ? 1u << 2 : 0),
            .data = message.vector | static_cast<std::uint32_t>(message.mode) << 8 | 1u << 14 |
                    (message.is_level ? 1u << 15 : 0)};
}

} // namespace

void ApicBus::host_in(cpu::ApicHost& engine) {
    host_ = &engine;
    engine.set_eoi_sink(*this);
}

void ApicBus::set_level_route(std::uint32_t input,
                              const std::optional<ApicMessage>& message) noexcept {
    if (host_ != nullptr)
        host_->set_level_route(input, message ? std::optional{msi_of(*message)} : std::nullopt);
}

void ApicBus::deliver(const ApicMessage& message) noexcept {
    if (host_ != nullptr) {
        host_->send_msi(msi_of(message));
        return;
    }
    if (message.mode == DeliveryMode::LowestPriority) {
        deliver_to_lowest(message);
        return;
    }
    // Nearly every message is for one CPU, and that one stands at the index of its id.
    if (!message.is_logical && message.destination < apics_.size() &&
        apics_[message.destination]->is_addressed_alone(message)) {
        apics_[message.destination]->accept(message);
        return;
    }
    for (auto* const apic : apics_)
        if (apic->is_addressed(message))
            apic->accept(message);
}

void ApicBus::deliver_to_all(const ApicMessage& message, const LocalApic* except) noexcept {
    for (auto* const apic : apics_)
        if (apic != except && apic->is_enabled())
            apic->accept(message);
}

void ApicBus::deliver_to_lowest(const ApicMessage& message) noexcept {
    LocalApic* best = nullptr;
    const auto count = apics_.size();
    const auto first = next_.fetch_add(1, std::memory_order_relaxed);
    for (std::size_t i = 0; i < count; ++i) {
        auto* const apic = apics_[(first + i) % count];
        if (!apic->is_addressed(message) || !apic->is_software_enabled())
            continue;
        if (best == nullptr || apic->priority() < best->priority())
            best = apic;
    }
    if (best != nullptr)
        best->accept(message);
}

void ApicBus::broadcast_eoi(std::uint8_t vector) noexcept {
    for (auto* const listener : listeners_)
        listener->end_of_interrupt(vector);
}

/// Address fee00000h to feefffffh: destination in bits 19:12, RH bit 3, DM bit 2; data as §11.11.2
/// says.
void ApicBus::send_msi(bus::MsiMessage message) noexcept {
    if ((message.address & ~0xf'ffffull) != 0xfee0'0000)
        return;
    if (host_ != nullptr) {
        host_->send_msi(message);
        return;
    }
    ApicMessage request;
    request.destination = static_cast<std::uint32_t>(message.address >> 12) & 0xff;
    request.is_logical = (message.address & 1u << 2) != 0;
    request.mode = static_cast<DeliveryMode>(message.data >> 8 & 7);
    request.vector = static_cast<std::uint8_t>(message.data);
    request.is_level = (message.data & 1u << 15) != 0;
    if (request.mode == DeliveryMode::Startup || request.mode == DeliveryMode::Reserved)
        return;
    deliver(request);
}

} // namespace doppel::devices
