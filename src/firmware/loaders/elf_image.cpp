// SPDX-License-Identifier: Apache-2.0
#include "firmware/loaders/elf_image.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "firmware/loaders/placement.hpp"

namespace doppel::firmware {

using base::Errc;
using base::load_le;
using base::Result;

namespace {

constexpr std::uint32_t PT_LOAD = 1, PT_NOTE = 4;
constexpr std::uint16_t EM_386 = 3, EM_X86_64 = 62;
constexpr std::uint32_t XEN_ELFNOTE_PHYS32_ENTRY = 18;

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text), "copy or build it again");
}

/// Walks the notes of one segment (gABI chapter 5, Note Section).
std::optional<std::uint32_t> find_pvh_note(std::span<const std::byte> notes) {
    while (notes.size() >= 12) {
        const std::size_t name_bytes = load_le<std::uint32_t>(notes.data());
        const std::size_t value_bytes = load_le<std::uint32_t>(notes.data() + 4);
        const auto type = load_le<std::uint32_t>(notes.data() + 8);
        const auto value_at = 12 + base::align_up(name_bytes, 4);
        const auto next = value_at + base::align_up(value_bytes, 4);
        if (value_at > notes.size() || value_bytes > notes.size() - value_at)
            return std::nullopt;
        if (type == XEN_ELFNOTE_PHYS32_ENTRY && name_bytes == 4 && value_bytes >= 4 &&
            std::memcmp(notes.data() + 12, "Xen", 4) == 0)
            return load_le<std::uint32_t>(notes.data() + value_at);
        notes = notes.subspan(std::min<std::size_t>(next, notes.size()));
    }
    return std::nullopt;
}

} // namespace

bool ElfImage::is_elf(std::span<const std::byte> file) {
    return file.size() >= 4 && std::memcmp(file.data(),
                                           "\x7f"
                                           "ELF",
                                           4) == 0;
}

Result<ElfImage> ElfImage::parse(std::span<const std::byte> file) {
    if (!is_elf(file) || file.size() < 64)
        return corrupt(fmt::format("the ELF file is cut off after {} bytes", file.size()));
    const auto* p = file.data();
    ElfImage image;
    image.file_ = file;
    image.is_64_ = load_le<std::uint8_t>(p + 4) == 2;
    const auto machine = load_le<std::uint16_t>(p + 18);
    if (load_le<std::uint8_t>(p + 5) != 1 || (machine != EM_386 && machine != EM_X86_64))
        return base::fail(Errc::Unsupported,
                          fmt::format("the ELF file is for machine {}, not x86", machine));
    image.entry_ = image.is_64_ ? load_le<std::uint64_t>(p + 24) : load_le<std::uint32_t>(p + 24);
    image.table_ = image.is_64_ ? load_le<std::uint64_t>(p + 32) : load_le<std::uint32_t>(p + 28);
    image.entry_bytes_ = load_le<std::uint16_t>(p + (image.is_64_ ? 54 : 42));
    image.count_ = load_le<std::uint16_t>(p + (image.is_64_ ? 56 : 44));
    const std::size_t least = image.is_64_ ? 56 : 32;
    if (image.count_ == 0 || image.entry_bytes_ < least || image.table_ > file.size() ||
        image.count_ * image.entry_bytes_ > file.size() - image.table_)
        return corrupt("the ELF file's program headers lie outside the file");
    return image;
}

Result<ElfImage::Segment> ElfImage::segment(std::size_t index) const {
    const auto* p = file_.data() + table_ + index * entry_bytes_;
    const auto word = [&](std::size_t at32, std::size_t at64) -> std::uint64_t {
        return is_64_ ? load_le<std::uint64_t>(p + at64) : load_le<std::uint32_t>(p + at32);
    };
    const Segment s{load_le<std::uint32_t>(p), word(4, 8), word(12, 24), word(16, 32),
                    word(20, 40)};
    if (s.offset > file_.size() || s.file_bytes > file_.size() - s.offset ||
        (s.type == PT_LOAD && s.file_bytes > s.memory_bytes))
        return corrupt(fmt::format("segment {} of the ELF file lies outside the file", index));
    return s;
}

std::optional<std::uint32_t> ElfImage::pvh_entry() const {
    for (std::size_t i = 0; i < count_; ++i) {
        const auto s = segment(i);
        if (!s || s->type != PT_NOTE)
            continue;
        if (const auto entry = find_pvh_note(file_.subspan(s->offset, s->file_bytes)))
            return entry;
    }
    return std::nullopt;
}

Result<std::uint64_t> ElfImage::load(memory::GuestMemory& memory,
                                     const BootRequest& request) const {
    std::uint64_t end = 0;
    for (std::size_t i = 0; i < count_; ++i) {
        const auto s = DOPPEL_TRY(segment(i));
        if (s.type != PT_LOAD || s.memory_bytes == 0)
            continue;
        if (LowArea::overlaps(s.physical, s.memory_bytes))
            return base::fail(
                Errc::OutOfRange,
                fmt::format("the kernel's segment at {:#x} of {} bytes lies where the "
                            "boot data goes",
                            s.physical, s.memory_bytes));
        if (!is_ram(request.map, s.physical, s.memory_bytes) ||
            !memory.write({s.physical}, file_.subspan(s.offset, s.file_bytes)) ||
            !memory.fill({s.physical + s.file_bytes}, s.memory_bytes - s.file_bytes, std::byte{0}))
            return base::fail(
                Errc::OutOfRange,
                fmt::format("the kernel's segment at {:#x} of {} bytes lies outside the "
                            "VM's memory",
                            s.physical, s.memory_bytes),
                "give the VM more memory");
        end = std::max(end, s.physical + s.memory_bytes);
    }
    if (end == 0)
        return corrupt("the ELF file has nothing to load");
    return end;
}

} // namespace doppel::firmware
