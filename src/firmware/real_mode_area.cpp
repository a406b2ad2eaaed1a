// SPDX-License-Identifier: Apache-2.0
#include "firmware/real_mode_area.hpp"

#include <array>

namespace doppel::firmware {

namespace {

constexpr std::uint64_t kHandler = kRealModeHandlersEnd - kRealModeHandlerBytes;
constexpr std::uint32_t kSegment = 0xf000, kReturn = 10; // offset of the IRET
constexpr std::uint64_t kSegmentBase = 0xf0000;

constexpr std::array<std::uint8_t, 12> kCode{
    0x55,                   // push bp
    0x89, 0xe5,             // mov bp, sp
    0x80, 0x4e, 0x06, 0x01, // or byte ptr [bp + 6], 1: carry in the caller's flags
    0x5d,                   // pop bp
    0xb4, 0x86,             // mov ah, 86h
    0xcf,                   // iret
    0x90,
};
// Of the BIOS data area.
constexpr std::uint64_t kComPorts = 0x400, kEbdaSegment = 0x40e, kMemoryKib = 0x413;

static_assert(kCode.size() <= kRealModeHandlerBytes);

} // namespace

base::Result<void> write_real_mode_area(memory::GuestMemory& memory, const BiosData& data) {
    std::array<std::uint32_t, 256> vectors{};
    const auto refuse = kSegment << 16 | static_cast<std::uint32_t>(kHandler - kSegmentBase);
    vectors.fill(refuse);
    for (std::size_t i = 0; i < 8; ++i)
        vectors.at(i) = vectors.at(i + 8) = vectors.at(i + 0x70) = refuse + kReturn;
    if (!memory.store({0}, vectors) || !memory.store({kHandler}, kCode) ||
        !memory.store({kComPorts}, data.com1) ||
        !memory.store({kEbdaSegment}, static_cast<std::uint16_t>(data.ebda >> 4)) ||
        !memory.store({kMemoryKib}, static_cast<std::uint16_t>(data.ebda >> 10)))
        return base::fail(base::Errc::OutOfRange, "the VM has no memory below 1 MiB");
    return {};
}

} // namespace doppel::firmware
