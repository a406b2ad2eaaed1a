// SPDX-License-Identifier: Apache-2.0
#include "firmware/loaders/placement.hpp"

#include <array>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::firmware {

using base::Errc;
using base::Result;

bool is_ram(std::span<const MemoryMapEntry> map, std::uint64_t address, std::uint64_t bytes) {
    for (const auto& entry : map)
        if (entry.type == MemoryMapEntry::Type::Ram && address - entry.base < entry.size)
            return bytes <= entry.size - (address - entry.base);
    return false;
}

bool LowArea::overlaps(std::uint64_t address, std::uint64_t bytes) {
    return address < kEnd && (address >= kStart || bytes > kStart - address);
}

Result<std::uint64_t> LowArea::reserve(std::uint64_t bytes) {
    const auto at = base::align_up(next_, 16);
    if (bytes > kEnd - at)
        return base::fail(Errc::OutOfRange, "the boot data does not fit below 576 KiB",
                          "give a shorter command line or fewer modules");
    next_ = at + bytes;
    return at;
}

Result<std::uint64_t> LowArea::put(std::span<const std::byte> bytes) {
    const auto at = DOPPEL_TRY(reserve(bytes.size()));
    if (!memory_.write({at}, bytes))
        return base::fail(Errc::OutOfRange, "the VM has no conventional memory");
    return at;
}

Result<std::uint64_t> LowArea::put(std::string_view text) {
    const auto at = DOPPEL_TRY(reserve(text.size() + 1));
    if (!memory_.write({at}, std::as_bytes(std::span{text})) ||
        !memory_.fill({at + text.size()}, 1, std::byte{0}))
        return base::fail(Errc::OutOfRange, "the VM has no conventional memory");
    return at;
}

Result<std::vector<PlacedModule>> place_modules(memory::GuestMemory& memory,
                                                const BootRequest& request, std::uint64_t from,
                                                LowArea& low) {
    std::vector<PlacedModule> placed;
    std::vector<MultibootModule> modules = request.modules;
    if (!request.initrd.empty())
        modules.insert(modules.begin(), MultibootModule{request.initrd, {}});
    for (const auto& module : modules) {
        from = base::align_up(from, memory::kPageBytes);
        if (!is_ram(request.map, from, module.bytes.size()) || !memory.write({from}, module.bytes))
            return base::fail(
                Errc::OutOfRange,
                fmt::format(
                    "a module of {} bytes does not fit into the VM's memory behind the kernel",
                    module.bytes.size()),
                "give the VM more memory");
        placed.push_back({from, module.bytes.size(), DOPPEL_TRY(low.put(module.command_line))});
        from += module.bytes.size();
    }
    return placed;
}

Result<BootState> enter_protected_mode(LowArea& low) {
    // Flat descriptors, Intel SDM (June 2025) Vol. 3A §3.4.5: null, code, data.
    constexpr std::array<std::uint64_t, 3> kDescriptors{0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    BootState state;
    state.mode = BootState::Mode::Protected32;
    state.gdt_base = DOPPEL_TRY(low.put(std::as_bytes(std::span{kDescriptors})));
    state.gdt_limit = sizeof kDescriptors - 1;
    state.code_segment = 8;
    state.data_segment = 0x10;
    return state;
}

} // namespace doppel::firmware
