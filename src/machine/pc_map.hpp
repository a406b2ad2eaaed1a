// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Addresses, ports and interrupt numbers of board pc-1.0: guest ABI, never changed.
#include <cstdint>

namespace doppel::machine::pc {

// --- physical memory ---
inline constexpr std::uint64_t kLowMemoryEnd = 0xa0000;    // conventional memory
inline constexpr std::uint64_t kExtendedBase = 0xc0000;    // RAM again above the VGA hole
inline constexpr std::uint64_t kEbda = 0x9fc00;            // 1 KiB
inline constexpr std::uint64_t kFirmwareArea = 0xe0000;    // ACPI tables, RSDP; 128 KiB
inline constexpr std::uint64_t kHighBase = 0x1'0000'0000;  // RAM above 4 GiB
inline constexpr std::uint64_t kLowRamLimit = 0xc000'0000; // RAM below 4 GiB ends here at most
inline constexpr std::uint64_t kPciWindow = 0xc000'0000;   // 32-bit BARs
inline constexpr std::uint64_t kPciWindowEnd = 0xe000'0000;
inline constexpr std::uint64_t kEcam = 0xe000'0000; // 256 MiB: 256 buses
inline constexpr std::uint64_t kEcamSize = 0x1000'0000;
inline constexpr std::uint64_t kIoApic = 0xfec0'0000;
inline constexpr std::uint64_t kHpet = 0xfed0'0000;
inline constexpr std::uint64_t kLocalApic = 0xfee0'0000;
inline constexpr std::uint64_t kPciWindow64 = 0x80'0000'0000; // 64-bit BARs, 256 GiB
inline constexpr std::uint64_t kPciWindow64Size = 0x40'0000'0000;

// --- ports ---
inline constexpr std::uint16_t kPicMaster = 0x20, kPicSlave = 0xa0, kElcr = 0x4d0, kPit = 0x40,
                               kPortB = 0x61, kI8042Data = 0x60, kI8042Command = 0x64, kRtc = 0x70,
                               kPort92 = 0x92, kCom1 = 0x3f8, kFwCfg = 0x510, kAcpiPm = 0x600,
                               kAcpiGpe0 = 0x620, kReset = 0xcf9, kPciConfig = 0xcf8;

// --- global system interrupts; the 8254 is wired to GSI 2 (ACPI override), the rest 1:1 ---
inline constexpr std::uint32_t kIrqTimer = 0, kIrqKeyboard = 1, kIrqCom1 = 4, kIrqRtc = 8,
                               kIrqAcpi = 9, kIrqMouse = 12;
inline constexpr std::uint32_t kGsiTimer = 2;
/// INTA..INTD of the root bus: GSI 16..19.
inline constexpr std::uint32_t kGsiPci = 16;

} // namespace doppel::machine::pc
