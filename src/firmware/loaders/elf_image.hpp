// SPDX-License-Identifier: Apache-2.0
#pragma once
/// ELF executables for x86, 32 and 64 bits (System V gABI, chapters 4 and 5), loaded by physical
/// address. Foreign bytes: every offset is checked against the file. Owner thread only.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/result.hpp"
#include "firmware/loaders/loader.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::firmware {

class ElfImage {
public:
    /// Errors: Corrupt, Unsupported (other machine or byte order).
    static base::Result<ElfImage> parse(std::span<const std::byte> file);
    static bool is_elf(std::span<const std::byte> file);

    std::uint64_t entry() const { return entry_; }
    /// Entry point of the Xen PVH note (XEN_ELFNOTE_PHYS32_ENTRY), if the file has one.
    std::optional<std::uint32_t> pvh_entry() const;
    /// Copies the segments to where their physical addresses say, clears the rest of each. Returns
    /// the end of the highest one. Errors: OutOfRange when a segment is not RAM of `request.map`.
    base::Result<std::uint64_t> load(memory::GuestMemory& memory, const BootRequest& request) const;

private:
    struct Segment {
        std::uint32_t type;
        std::uint64_t offset, physical, file_bytes, memory_bytes;
    };
    base::Result<Segment> segment(std::size_t index) const;

    std::span<const std::byte> file_;
    bool is_64_ = false;
    std::uint64_t entry_ = 0;
    std::uint64_t table_ = 0; // program headers
    std::size_t count_ = 0, entry_bytes_ = 0;
};

} // namespace doppel::firmware
