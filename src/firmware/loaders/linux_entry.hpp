// SPDX-License-Identifier: Apache-2.0
#pragma once
/// How the Linux boot protocol enters a kernel: GDT and page tables, below 64 KiB of guest RAM.
#include "firmware/loaders/loader.hpp"

namespace doppel::firmware {

/// Writes both and returns a Long64 state with everything set but rip and the arguments. Maps the
/// low 4 GiB with 2 MiB pages; selectors 10h (code) and 18h (data), as the Linux boot protocol
/// asks.
base::Result<BootState> enter_long_mode(memory::GuestMemory& memory);

/// The same for the 32-bit entry: Protected32, no page tables, the same selectors.
base::Result<BootState> enter_flat_mode(memory::GuestMemory& memory);

} // namespace doppel::firmware
