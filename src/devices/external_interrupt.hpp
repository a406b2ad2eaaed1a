// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a local APIC sees behind its LINT0 input: an 8259 pair that answers the INTA cycle.
#include <cstdint>

namespace doppel::devices {

/// Any thread.
class ExternalInterruptSource {
public:
    virtual ~ExternalInterruptSource() = default;
    /// Level of the INTR wire.
    virtual bool is_pending() const noexcept = 0;
    /// INTA cycle: the vector of the interrupt that is now in service.
    virtual std::uint8_t acknowledge() noexcept = 0;
};

} // namespace doppel::devices
