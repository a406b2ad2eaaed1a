// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a device shows to the bus: offsets and values, never addresses. One interface for PIO and
/// MMIO. The bus has already checked size and alignment against the mapping's AccessRules.
#include <cstdint>

namespace doppel::bus {

struct IoAccess {
    std::uint64_t offset; // from the start of the mapping, bytes
    std::uint8_t size;    // 1, 2, 4 or 8 bytes
};

class IoHandler {
public:
    virtual ~IoHandler() = default;
    /// Called on the accessing vCPU's thread; several vCPUs may call at once: the device locks.
    virtual std::uint64_t io_read(IoAccess io) = 0;
    /// Bits of `value` above the size are zero.
    virtual void io_write(IoAccess io, std::uint64_t value) = 0;
};

/// Sizes a mapping takes. A wider access is split into pieces of `max_size` in ascending order, a
/// narrower or (unless `unaligned`) misaligned one is refused: reads all ones, writes are dropped.
struct AccessRules {
    std::uint8_t min_size = 1;
    std::uint8_t max_size = 8;
    bool unaligned = false;
};

} // namespace doppel::bus
