// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Guest RAM in a file: every page has its own fixed place, zero pages are holes. So a page can be
/// written again (a round of a dirty log), and the file could be mapped instead of read.
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::vmm {

/// Told how many bytes of RAM are done; false stops the work (Errc::Interrupted).
using RamProgress = std::function<bool(std::uint64_t done_bytes)>;

/// One thread at a time. The guest may run meanwhile if a dirty log is kept: what it changes comes
/// with the next round, the last of which is written with the VM paused.
class RamWriter {
public:
    /// Page i of the memory goes to `file_offset` + i pages. The memory outlives the writer, the
    /// descriptor stays the caller's.
    RamWriter(const memory::GuestMemory& memory, int fd, std::uint64_t file_offset);

    /// All pages, into a part of the file that has never been written. Errors: of the host.
    base::Result<void> write_all(const RamProgress& progress);
    /// The pages whose bit is set (GuestMemory::harvest_dirty_log()), over what is there.
    base::Result<void> write_pages(std::span<const std::uint64_t> bitmap);

    /// What went into the file so far, without the holes.
    std::uint64_t written_bytes() const { return written_bytes_; }

private:
    enum class Zeros : std::uint8_t { Skip, Punch };
    base::Result<void> write_range(std::uint64_t offset, std::uint64_t length, Zeros zeros);
    base::Result<void> write_used(std::uint64_t offset, std::span<const std::byte> bytes);
    base::Result<void> punch(std::uint64_t offset, std::span<const std::byte> zeros);

    const memory::GuestMemory& memory_;
    const int fd_;
    const std::uint64_t file_offset_;
    std::vector<std::byte> buffer_;
    std::uint64_t written_bytes_ = 0;
};

/// Fills fresh memory (all zero) from such a part of a file, past its holes. Errors: of the host;
/// Corrupt when the file ends early.
base::Result<void> read_ram(memory::GuestMemory& memory, int fd, std::uint64_t file_offset);

} // namespace doppel::vmm
