// SPDX-License-Identifier: Apache-2.0
/// Multiboot Specification 0.6.96: ELF kernels and flat ones with address fields, modules, memory
/// map, command line. Not done: video modes, drives, symbol tables.
#include "firmware/loaders/multiboot.hpp"

#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "firmware/loaders/elf_image.hpp"
#include "firmware/loaders/placement.hpp"

namespace doppel::firmware {

using base::Errc;
using base::load_le;
using base::Result;
using base::store_le;

namespace {

constexpr std::uint32_t kHeaderMagic = 0x1badb002, kLoaderMagic = 0x2badb002;
constexpr std::uint32_t kHasAddresses = 1u << 16, kUnknownDemands = 0xfff8; // §3.1.2: bits 0..15
constexpr std::size_t kSearchBytes = 8192, kInfoBytes = 116, kModuleBytes = 16, kMapBytes = 24;

// Flags of the information structure (§3.3).
constexpr std::uint32_t kInfoMemory = 1, kInfoCommandLine = 4, kInfoModules = 8, kInfoMap = 64,
                        kInfoLoaderName = 512;

struct Loaded {
    std::uint64_t entry;
    std::uint64_t end;
};

Result<Loaded> load_flat(memory::GuestMemory& memory, const BootRequest& request,
                         std::size_t header) {
    const auto field = [&](std::size_t at) -> std::uint64_t {
        return load_le<std::uint32_t>(request.kernel.data() + header + at);
    };
    const auto header_address = field(12), load = field(16), load_end = field(20),
               bss_end = field(24), entry = field(28);
    const auto skip = header_address - load; // of the header behind the start of the load
    if (load > header_address || skip > header)
        return base::fail(Errc::Corrupt, "the multiboot header's addresses contradict its place");
    const auto offset = header - skip;
    const auto available = request.kernel.size() - offset;
    const auto bytes = load_end == 0 ? available : load_end - load;
    if (load_end != 0 && (load_end < load || bytes > available))
        return base::fail(Errc::Corrupt, "the multiboot header promises more than the file has",
                          "copy it again");
    const auto end = std::max(bss_end, load + bytes);
    if (LowArea::overlaps(load, end - load) || !is_ram(request.map, load, end - load) ||
        !memory.write({load}, request.kernel.subspan(offset, bytes)) ||
        !memory.fill({load + bytes}, end - load - bytes, std::byte{0}))
        return base::fail(
            Errc::OutOfRange,
            fmt::format("the kernel at {:#x} of {} bytes lies outside the VM's free memory", load,
                        end - load),
            "give the VM more memory");
    return Loaded{entry, end};
}

Result<Loaded> load_image(memory::GuestMemory& memory, const BootRequest& request,
                          std::size_t header) {
    const auto flags = load_le<std::uint32_t>(request.kernel.data() + header + 4);
    if ((flags & kUnknownDemands) != 0)
        return base::fail(
            Errc::Unsupported,
            fmt::format("the multiboot kernel demands features {:#x} that do not exist",
                        flags & kUnknownDemands));
    if ((flags & kHasAddresses) != 0)
        return load_flat(memory, request, header);
    const auto image = DOPPEL_TRY(ElfImage::parse(request.kernel));
    return Loaded{image.entry(), DOPPEL_TRY(image.load(memory, request))};
}

Result<std::uint64_t> put_map(LowArea& low, std::span<const MemoryMapEntry> map) {
    std::vector<std::byte> bytes(map.size() * kMapBytes);
    for (std::size_t i = 0; i < map.size(); ++i) {
        auto* p = bytes.data() + i * kMapBytes;
        store_le<std::uint32_t>(p, kMapBytes - 4); // the size field does not count itself
        store_le(p + 4, map[i].base);
        store_le(p + 12, map[i].size);
        store_le(p + 20, static_cast<std::uint32_t>(map[i].type));
    }
    return low.put(bytes);
}

Result<std::uint64_t> put_modules(LowArea& low, std::span<const PlacedModule> modules) {
    std::vector<std::byte> bytes(modules.size() * kModuleBytes);
    for (std::size_t i = 0; i < modules.size(); ++i) {
        auto* p = bytes.data() + i * kModuleBytes;
        store_le(p, static_cast<std::uint32_t>(modules[i].address));
        store_le(p + 4, static_cast<std::uint32_t>(modules[i].address + modules[i].bytes));
        store_le(p + 8, static_cast<std::uint32_t>(modules[i].command_line));
    }
    return low.put(bytes);
}

/// The kernel's name goes first, as GRUB and QEMU have it: kernels drop the first word.
std::string command_line(const BootRequest& request) {
    std::string text{request.kernel_name};
    if (!request.command_line.empty())
        text.append(" ").append(request.command_line);
    return text;
}

/// KiB of RAM above 1 MiB in one piece.
std::uint32_t upper_kib(std::span<const MemoryMapEntry> map) {
    for (const auto& entry : map)
        if (entry.type == MemoryMapEntry::Type::Ram && entry.base == 1 << 20)
            return static_cast<std::uint32_t>(
                std::min<std::uint64_t>(entry.size >> 10, UINT32_MAX));
    return 0;
}

} // namespace

std::optional<std::size_t> find_multiboot_header(std::span<const std::byte> file) {
    const auto limit = std::min(file.size(), kSearchBytes);
    for (std::size_t at = 0; at + 12 <= limit; at += 4) {
        const auto* p = file.data() + at;
        const auto flags = load_le<std::uint32_t>(p + 4);
        const std::size_t header_bytes = (flags & kHasAddresses) != 0 ? 32 : 12;
        if (load_le<std::uint32_t>(p) == kHeaderMagic &&
            load_le<std::uint32_t>(p) + flags + load_le<std::uint32_t>(p + 8) == 0 &&
            at + header_bytes <= file.size())
            return at;
    }
    return std::nullopt;
}

Result<BootState> load_multiboot(memory::GuestMemory& memory, const BootRequest& request) {
    const auto header = find_multiboot_header(request.kernel);
    if (!header)
        return base::fail(Errc::Corrupt, "the file has no multiboot header");
    const auto loaded = DOPPEL_TRY(load_image(memory, request, *header));
    LowArea low{memory};
    const auto modules = DOPPEL_TRY(
        place_modules(memory, request, std::max<std::uint64_t>(loaded.end, 1 << 20), low));
    std::array<std::byte, kInfoBytes> info{};
    const auto put = [&](std::size_t at, std::uint64_t value) {
        store_le(info.data() + at, static_cast<std::uint32_t>(value));
    };
    put(0, kInfoMemory | kInfoCommandLine | kInfoModules | kInfoMap | kInfoLoaderName);
    put(4, 639); // KiB of conventional memory
    put(8, upper_kib(request.map));
    put(16, DOPPEL_TRY(low.put(command_line(request))));
    put(20, modules.size());
    put(24, DOPPEL_TRY(put_modules(low, modules)));
    put(44, request.map.size() * kMapBytes);
    put(48, DOPPEL_TRY(put_map(low, request.map)));
    put(64, DOPPEL_TRY(low.put("doppel")));
    auto state = DOPPEL_TRY(enter_protected_mode(low));
    state.rip = loaded.entry;
    state.rax = kLoaderMagic;
    state.rbx = DOPPEL_TRY(low.put(info));
    return state;
}

} // namespace doppel::firmware
