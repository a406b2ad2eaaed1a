// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What stands at address 0 of a PC without a BIOS.
#include "base/result.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::firmware {

/// The handlers are the last 16 bytes below 1 MiB.
inline constexpr std::uint64_t kRealModeHandlersEnd = 0x10'0000, kRealModeHandlerBytes = 16;

struct BiosData {
    std::uint64_t ebda = 0; // paragraph-aligned, below 1 MiB; conventional memory ends there
    std::uint16_t com1 = 0; // port
};

/// Interrupt vectors and BIOS data area (IBM PC/AT Technical Reference, "System BIOS"), for kernels
/// that look there although their loader has told them everything; Xen does. A service interrupt
/// answers as a BIOS does that does not have it: AH = 86h, carry set. Exceptions and the PICs'
/// interrupts only return. Owner thread only. Errors: OutOfRange.
base::Result<void> write_real_mode_area(memory::GuestMemory& memory, const BiosData& data);

} // namespace doppel::firmware
