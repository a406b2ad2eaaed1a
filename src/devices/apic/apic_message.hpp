// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What travels between interrupt controllers: an IPI, an IOAPIC's or an MSI's request.
#include <cstdint>

namespace doppel::devices {

/// Encoding of ICR, redirection entries, LVT and MSI data alike (Intel SDM Vol. 3A, Sept. 2023,
/// §11.5.1 and §11.6.1).
enum class DeliveryMode : std::uint8_t {
    Fixed = 0,
    LowestPriority = 1,
    Smi = 2,
    Reserved = 3,
    Nmi = 4,
    Init = 5,
    Startup = 6,
    ExtInt = 7,
};

struct ApicMessage {
    std::uint32_t destination = 0;
    bool is_logical = false;
    bool is_wide = false; // 32-bit destination (x2APIC): broadcast is ffffffffh, else ffh
    DeliveryMode mode = DeliveryMode::Fixed;
    std::uint8_t vector = 0;
    bool is_level = false;
};

} // namespace doppel::devices
