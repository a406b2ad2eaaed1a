// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Several stretches of guest RAM taken as one: what a descriptor chain gives a device.
/// Any thread; the guest may write to the bytes meanwhile.
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memory/guest_memory.hpp"

namespace doppel::memory {

struct GuestRange {
    Gpa gpa;
    std::uint64_t bytes = 0;
};

std::uint64_t total_bytes(std::span<const GuestRange> ranges) noexcept;

/// The stretches that hold [offset, offset + bytes) of the whole; shorter where it ends.
std::vector<GuestRange> slice(std::span<const GuestRange> ranges, std::uint64_t offset,
                              std::uint64_t bytes);

/// Copies from `offset` of the whole on; how many bytes, which is less than asked for where the
/// ranges end or are not RAM.
std::size_t read_ranges(const GuestMemory& memory, std::span<const GuestRange> ranges,
                        std::uint64_t offset, std::span<std::byte> to) noexcept;
std::size_t write_ranges(GuestMemory& memory, std::span<const GuestRange> ranges,
                         std::uint64_t offset, std::span<const std::byte> from) noexcept;

/// Guest RAM as the kernel reads or writes it in a system call, without a copy. The addresses are
/// good as long as the GuestMemory; nothing but a system call may use them.
class PinnedBuffer {
public:
    enum class Access : std::uint8_t {
        KernelReads,  // RAM is the source
        KernelWrites, // RAM is the destination
    };

    PinnedBuffer() = default;
    /// Nothing when a byte is not RAM.
    static std::optional<PinnedBuffer> pin(GuestMemory& memory, std::span<const GuestRange> ranges,
                                           Access access);

    std::span<const iovec> pieces() const { return pieces_; }
    std::uint64_t bytes() const { return bytes_; }
    /// The system call is over: what it may have written becomes dirty, and code that was made from
    /// there meanwhile is given up. Once, on any thread.
    void complete() noexcept;

private:
    void announce() noexcept;

    GuestMemory* memory_ = nullptr;
    Access access_ = Access::KernelReads;
    std::uint64_t bytes_ = 0;
    std::vector<GuestRange> ranges_;
    std::vector<iovec> pieces_;
};

} // namespace doppel::memory
