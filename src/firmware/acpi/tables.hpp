// SPDX-License-Identifier: Apache-2.0
#pragma once
/// ACPI tables of a PC board: RSDP, XSDT, FADT, FACS, MADT, MCFG, HPET, DSDT (ACPI 6.5 §5.2).
/// Owner thread only.
#include <cstdint>
#include <optional>

#include "base/result.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::firmware::acpi {

/// Where the board's chips are; part of the guest ABI of a board version.
struct AcpiBoard {
    unsigned cpus = 1; // local APIC ids 0 … cpus - 1
    std::uint32_t local_apic = 0;
    std::uint32_t io_apic = 0;
    std::uint32_t hpet = 0;
    std::uint32_t ecam = 0;
    std::uint32_t ecam_size = 0;
    std::uint32_t pci_window = 0, pci_window_end = 0; // [first, end)
    std::uint64_t pci_window64 = 0, pci_window64_size = 0;
    std::uint16_t pm1_event = 0, pm1_control = 0, pm_timer = 0, gpe0 = 0;
    std::uint8_t gpe0_bytes = 0;
    std::uint16_t reset_port = 0;
    std::uint8_t reset_value = 0;
    std::uint8_t s5_sleep_type = 0;
    std::uint8_t sci_irq = 9;
    std::uint32_t pci_first_gsi = 16; // INTA..INTD of slot s: first + (s + pin) % 4
    std::uint32_t timer_gsi = 2;      // where ISA interrupt 0 arrives
    std::uint16_t com1 = 0;
    std::uint8_t com1_irq = 0;
    bool has_mouse = false;
};

/// Writes the tables into [area, area + area_bytes), which the memory map reserves and which holds
/// the RSDP at its start (16-byte aligned, below 1 MiB so that a guest also finds it by search).
/// Returns the address of the RSDP. Errors: OutOfRange when they do not fit.
base::Result<std::uint64_t> write_tables(memory::GuestMemory& memory, const AcpiBoard& board,
                                         std::uint64_t area, std::uint64_t area_bytes);

} // namespace doppel::firmware::acpi
