// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Where loaders put what is not the kernel itself. Owner thread only.
#include <cstdint>
#include <span>
#include <string_view>

#include "firmware/loaders/loader.hpp"

namespace doppel::firmware {

/// All of [address, address + bytes) is RAM of one entry of the map.
bool is_ram(std::span<const MemoryMapEntry> map, std::uint64_t address, std::uint64_t bytes);

/// Bump allocator of boot data in conventional memory, [64 KiB, 576 KiB).
class LowArea {
public:
    explicit LowArea(memory::GuestMemory& memory) : memory_{memory} {}
    /// Some of [address, address + bytes) is where boot data may be put.
    static bool overlaps(std::uint64_t address, std::uint64_t bytes);
    /// Copies, 16-byte aligned, and returns the address. Errors: OutOfRange.
    base::Result<std::uint64_t> put(std::span<const std::byte> bytes);
    /// With a terminating NUL.
    base::Result<std::uint64_t> put(std::string_view text);
    /// Leaves room to be written later.
    base::Result<std::uint64_t> reserve(std::uint64_t bytes);

private:
    memory::GuestMemory& memory_;
    static constexpr std::uint64_t kStart = 0x10000, kEnd = 0x90000;
    std::uint64_t next_ = kStart;
};

/// Copies modules one after the other, page-aligned, from `from` upwards in RAM below 4 GiB.
struct PlacedModule {
    std::uint64_t address, bytes, command_line;
};
base::Result<std::vector<PlacedModule>> place_modules(memory::GuestMemory& memory,
                                                      const BootRequest& request,
                                                      std::uint64_t from, LowArea& low);

/// Flat 32-bit entry: writes a GDT (code 08h, data 10h) and fills in everything but rip and the
/// registers.
base::Result<BootState> enter_protected_mode(LowArea& low);

} // namespace doppel::firmware
