// SPDX-License-Identifier: Apache-2.0
/// Linux/x86 boot protocol, the 64-bit entry where the kernel has one and else the 32-bit one
/// (kernel documentation "x86/boot", version 2.15, sections "The Real-Mode Kernel Header", "64-bit
/// Boot Protocol", "32-bit Boot Protocol"; zero page in "x86/zero-page").
/// Not done: the legacy 16-bit entry, kernels before protocol 2.12.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "firmware/loaders/linux_entry.hpp"
#include "firmware/loaders/loader.hpp"

namespace doppel::firmware {

using base::Errc;
using base::load_le;
using base::Result;
using base::store_le;
using memory::GuestMemory;

namespace {

// Offsets in the file and in the zero page alike.
constexpr std::size_t kSetupSects = 0x1f1, kSyssize = 0x1f4, kJump = 0x200, kVersion = 0x206,
                      kTypeOfLoader = 0x210, kLoadflags = 0x211, kCode32Start = 0x214,
                      kRamdiskImage = 0x218, kRamdiskSize = 0x21c, kCmdLinePtr = 0x228,
                      kInitrdAddrMax = 0x22c, kKernelAlignment = 0x230, kRelocatable = 0x234,
                      kXloadflags = 0x236, kCmdlineSize = 0x238, kPrefAddress = 0x258,
                      kInitSize = 0x260;
// Zero page only.
constexpr std::size_t kAcpiRsdp = 0x070, kExtRamdiskImage = 0x0c0, kExtRamdiskSize = 0x0c4,
                      kE820Entries = 0x1e8, kE820Table = 0x2d0, kE820Max = 128;
constexpr std::uint16_t kXlfKernel64 = 1, kXlfCanBeLoadedAbove4G = 2;
constexpr std::uint8_t kLoadedHigh = 1;
constexpr std::size_t kParagraph = 16; // the header counts in these, the file may end within one
constexpr std::uint64_t kEntry64 = 0x200;
constexpr std::uint64_t kLimit32 = std::uint64_t{1} << 32; // of the 32-bit entry

// Where our pieces stand below 640 KiB.
constexpr std::uint64_t kZeroPage = 0x10000, kCommandLine = 0x20000, kKernelFloor = 1 << 20;

struct Header {
    std::size_t payload_offset;
    std::size_t payload_bytes;
    std::uint64_t preferred;
    std::uint64_t alignment;
    std::uint64_t init_size;
    std::uint64_t initrd_max;
    std::uint32_t cmdline_max;
    bool relocatable;
    bool above_4g;
    bool entry64;
};

Result<Header> parse_header(std::span<const std::byte> file) {
    const auto* p = file.data();
    const auto version = load_le<std::uint16_t>(p + kVersion);
    const auto xloadflags = load_le<std::uint16_t>(p + kXloadflags);
    const bool high = (load_le<std::uint8_t>(p + kLoadflags) & kLoadedHigh) != 0;
    if (version < 0x20c || !high)
        return base::fail(
            Errc::Unsupported,
            fmt::format("the kernel speaks boot protocol {}.{:02} without a 32-bit or "
                        "64-bit entry point",
                        version >> 8, version & 0xff),
            "give a kernel of Linux 3.8 or later");
    Header header{};
    std::size_t sectors = load_le<std::uint8_t>(p + kSetupSects);
    sectors = sectors == 0 ? 4 : sectors; // for very old images, says the protocol
    header.payload_offset = (sectors + 1) * 512;
    header.payload_bytes = std::size_t{load_le<std::uint32_t>(p + kSyssize)} * kParagraph;
    if (header.payload_bytes == 0)
        return base::fail(Errc::Corrupt, "the kernel image's header promises no kernel",
                          "copy it again");
    if (header.payload_offset + header.payload_bytes > base::align_up(file.size(), kParagraph))
        return base::fail(Errc::Corrupt,
                          fmt::format("the kernel image is cut off: its header promises {} bytes, "
                                      "the file has {}",
                                      header.payload_offset + header.payload_bytes, file.size()),
                          "copy it again");
    header.payload_bytes = std::min(header.payload_bytes, file.size() - header.payload_offset);
    header.preferred = load_le<std::uint64_t>(p + kPrefAddress);
    header.alignment = std::max<std::uint64_t>(load_le<std::uint32_t>(p + kKernelAlignment), 4096);
    header.init_size = load_le<std::uint32_t>(p + kInitSize);
    header.initrd_max = load_le<std::uint32_t>(p + kInitrdAddrMax);
    header.cmdline_max = load_le<std::uint32_t>(p + kCmdlineSize);
    header.relocatable = load_le<std::uint8_t>(p + kRelocatable) != 0;
    header.entry64 = (xloadflags & kXlfKernel64) != 0;
    header.above_4g = header.entry64 && (xloadflags & kXlfCanBeLoadedAbove4G) != 0;
    if ((header.alignment & (header.alignment - 1)) != 0)
        return base::fail(Errc::Corrupt, fmt::format("the kernel's alignment {:#x} is not a power "
                                                     "of two",
                                                     header.alignment));
    return header;
}

/// The RAM range of the map that holds `address`, if any.
std::optional<MemoryMapEntry> ram_at(const BootRequest& request, std::uint64_t address) {
    for (const auto& entry : request.map)
        if (entry.type == MemoryMapEntry::Type::Ram && address - entry.base < entry.size)
            return entry;
    return std::nullopt;
}

/// What the kernel occupies before it can read the memory map.
std::uint64_t kernel_bytes(const Header& header) {
    return std::max<std::uint64_t>(header.init_size, header.payload_bytes);
}

/// Names the memory that would do: what lies below the kernel, it, and the initial ramdisk.
std::unexpected<base::Error> no_room(const Header& header, const BootRequest& request,
                                     const GuestMemory& memory) {
    constexpr std::uint64_t kMib = 1 << 20;
    const auto floor = std::max(header.preferred, kKernelFloor);
    const std::uint64_t bytes = kernel_bytes(header) + request.initrd.size();
    const std::string what =
        request.initrd.empty() ? "the kernel needs" : "the kernel and its initial ramdisk need";
    const std::uint64_t needed = base::align_up(floor + bytes, kMib);
    const std::uint64_t given = base::align_up(memory.size_bytes(), kMib); // a PC has a hole
    if (floor >= kLimit32 || needed <= given)
        return base::fail(Errc::OutOfRange,
                          fmt::format("{} {} MiB of memory in one piece from {:#x} on, which "
                                      "the VM does not have",
                                      what, base::align_up(bytes, kMib) / kMib, floor),
                          "give the VM more memory, or another kernel");
    return base::fail(
        Errc::OutOfRange,
        fmt::format("{} {} MiB of memory, the VM has {} MiB", what, needed / kMib, given / kMib),
        fmt::format("give it --memory {}M or more", needed / kMib));
}

/// A relocatable kernel runs where it is loaded, but never below the address it prefers
/// ("x86/boot", field init_size).
std::optional<std::uint64_t> choose_kernel_address(const Header& header,
                                                   const BootRequest& request) {
    const auto need = kernel_bytes(header);
    const auto fits = [&](std::uint64_t at) {
        const auto ram = ram_at(request, at);
        return at >= kKernelFloor && ram && need <= ram->size - (at - ram->base) &&
               (header.entry64 || at + need <= kLimit32);
    };
    if (fits(header.preferred))
        return header.preferred;
    for (const auto& entry : request.map) {
        const auto at = base::align_up(std::max({entry.base, kKernelFloor, header.preferred}),
                                       header.alignment);
        if (header.relocatable && entry.type == MemoryMapEntry::Type::Ram && fits(at))
            return at;
    }
    return std::nullopt;
}

/// As high as the kernel allows, so that it stays out of the way of decompression.
std::optional<std::uint64_t> choose_initrd_address(const Header& header, const BootRequest& request,
                                                   std::uint64_t kernel_end) {
    const auto ram = ram_at(request, kernel_end - 1);
    const auto size = request.initrd.size();
    auto limit = ram ? ram->base + ram->size : 0;
    if (!header.above_4g)
        limit = std::min<std::uint64_t>(limit, header.initrd_max + 1);
    const auto at = limit >= size ? base::align_down(limit - size, memory::kPageBytes) : 0;
    return at < kernel_end ? std::nullopt : std::optional{at};
}

void fill_e820(std::span<std::byte> zero_page, std::span<const MemoryMapEntry> map) {
    const auto count = std::min(map.size(), kE820Max);
    store_le(zero_page.data() + kE820Entries, static_cast<std::uint8_t>(count));
    auto* at = zero_page.data() + kE820Table;
    for (std::size_t i = 0; i < count; ++i, at += 20) {
        store_le(at, map[i].base);
        store_le(at + 8, map[i].size);
        store_le(at + 16, static_cast<std::uint32_t>(map[i].type));
    }
}

void fill_zero_page(std::span<std::byte> page, const BootRequest& request, std::uint64_t initrd) {
    // The setup header ends where its jump at 0x200 goes (protocol 2.02 and later).
    const auto header_end =
        0x202 + std::size_t{load_le<std::uint8_t>(request.kernel.data() + kJump + 1)};
    std::memcpy(page.data() + kSetupSects, request.kernel.data() + kSetupSects,
                std::min<std::size_t>(header_end, 0x290) - kSetupSects);
    auto* p = page.data();
    store_le<std::uint8_t>(p + kTypeOfLoader, 0xff); // no assigned loader number
    store_le<std::uint8_t>(p + kLoadflags, load_le<std::uint8_t>(p + kLoadflags) & 0x7f);
    store_le(p + kCmdLinePtr, static_cast<std::uint32_t>(kCommandLine));
    store_le(p + kRamdiskImage, static_cast<std::uint32_t>(initrd));
    store_le(p + kExtRamdiskImage, static_cast<std::uint32_t>(initrd >> 32));
    store_le(p + kRamdiskSize, static_cast<std::uint32_t>(request.initrd.size()));
    store_le(p + kExtRamdiskSize, static_cast<std::uint32_t>(request.initrd.size() >> 32));
    store_le(p + kAcpiRsdp, request.rsdp);
    fill_e820(page, request.map);
}

bool write_text(GuestMemory& memory, std::uint64_t at, std::string_view text) {
    return memory.write({at}, std::as_bytes(std::span{text})) &&
           memory.fill({at + text.size()}, 1, std::byte{0});
}

} // namespace

Result<BootState> load_linux_bzimage(GuestMemory& memory, const BootRequest& request) {
    const auto header = DOPPEL_TRY(parse_header(request.kernel));
    if (request.command_line.size() > header.cmdline_max)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("the kernel command line has {} bytes, this kernel takes {}",
                                      request.command_line.size(), header.cmdline_max));
    const auto place = choose_kernel_address(header, request);
    if (!place)
        return no_room(header, request, memory);
    const std::uint64_t at = *place;
    std::uint64_t initrd = 0;
    if (!request.initrd.empty()) {
        const auto found = choose_initrd_address(header, request, at + kernel_bytes(header));
        if (!found)
            return no_room(header, request, memory);
        initrd = *found;
    }

    std::array<std::byte, memory::kPageBytes> zero_page{};
    fill_zero_page(zero_page, request, initrd);
    store_le(zero_page.data() + kCode32Start, static_cast<std::uint32_t>(at));
    const auto payload = request.kernel.subspan(header.payload_offset, header.payload_bytes);
    if (!memory.write({at}, payload) || !memory.write({initrd}, request.initrd) ||
        !memory.write({kZeroPage}, zero_page) ||
        !write_text(memory, kCommandLine, request.command_line))
        return base::fail(Errc::OutOfRange,
                          "the VM has too little memory for the kernel's boot data",
                          "give the VM more memory");
    auto state = DOPPEL_TRY(header.entry64 ? enter_long_mode(memory) : enter_flat_mode(memory));
    state.rip = header.entry64 ? at + kEntry64 : at;
    state.rsi = kZeroPage;
    return state;
}

} // namespace doppel::firmware
