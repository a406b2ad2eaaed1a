// SPDX-License-Identifier: Apache-2.0
/// PVH direct boot (Xen documentation "x86/HVM direct boot ABI"; start info of
/// xen/include/public/arch-x86/hvm/start_info.h, version 1): 32-bit flat entry, ebx = start info.
#include <algorithm>
#include <array>

#include "base/bytes.hpp"
#include "firmware/loaders/elf_image.hpp"
#include "firmware/loaders/placement.hpp"

namespace doppel::firmware {

using base::Result;
using base::store_le;

namespace {

constexpr std::uint32_t kStartMagic = 0x336ec578;
constexpr std::size_t kStartBytes = 56, kModuleBytes = 32, kMapBytes = 24;

Result<std::uint64_t> put_map(LowArea& low, std::span<const MemoryMapEntry> map) {
    std::vector<std::byte> bytes(map.size() * kMapBytes);
    for (std::size_t i = 0; i < map.size(); ++i) {
        auto* p = bytes.data() + i * kMapBytes;
        store_le(p, map[i].base);
        store_le(p + 8, map[i].size);
        store_le(p + 16, static_cast<std::uint32_t>(map[i].type));
    }
    return low.put(bytes);
}

Result<std::uint64_t> put_modules(LowArea& low, std::span<const PlacedModule> modules) {
    std::vector<std::byte> bytes(modules.size() * kModuleBytes);
    for (std::size_t i = 0; i < modules.size(); ++i) {
        auto* p = bytes.data() + i * kModuleBytes;
        store_le(p, modules[i].address);
        store_le(p + 8, modules[i].bytes);
        store_le(p + 16, modules[i].command_line);
    }
    return low.put(bytes);
}

} // namespace

Result<BootState> load_elf_pvh(memory::GuestMemory& memory, const BootRequest& request) {
    const auto image = DOPPEL_TRY(ElfImage::parse(request.kernel));
    const auto entry = image.pvh_entry();
    if (!entry)
        return base::fail(base::Errc::Unsupported, "the ELF file has no PVH entry");
    const auto end = DOPPEL_TRY(image.load(memory, request));
    LowArea low{memory};
    const auto modules =
        DOPPEL_TRY(place_modules(memory, request, std::max<std::uint64_t>(end, 1 << 20), low));
    std::array<std::byte, kStartBytes> start{};
    auto* p = start.data();
    store_le(p, kStartMagic);
    store_le<std::uint32_t>(p + 4, 1); // version
    store_le(p + 12, static_cast<std::uint32_t>(modules.size()));
    store_le(p + 16, DOPPEL_TRY(put_modules(low, modules)));
    store_le(p + 24, DOPPEL_TRY(low.put(request.command_line)));
    store_le(p + 32, request.rsdp);
    store_le(p + 40, DOPPEL_TRY(put_map(low, request.map)));
    store_le(p + 48, static_cast<std::uint32_t>(request.map.size()));
    auto state = DOPPEL_TRY(enter_protected_mode(low));
    state.rip = *entry;
    state.rbx = DOPPEL_TRY(low.put(start));
    return state;
}

} // namespace doppel::firmware
