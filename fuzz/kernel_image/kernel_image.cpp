// SPDX-License-Identifier: Apache-2.0
/// A file that claims to be a kernel: bzImage, ELF with PVH entry, multiboot, boot sector. Every
/// loader may refuse it, and none may touch memory outside guest RAM or take for ever.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "firmware/loaders/loader.hpp"

using namespace doppel;
using firmware::MemoryMapEntry;

namespace {

constexpr std::uint64_t kRamBytes = 32 << 20;
constexpr std::array<MemoryMapEntry, 3> kMap{{
    {0, 0x9f000, MemoryMapEntry::Type::Ram},
    {0xf0000, 0x10000, MemoryMapEntry::Type::Reserved},
    {0x100000, kRamBytes - 0x100000, MemoryMapEntry::Type::Ram},
}};

std::unique_ptr<memory::GuestMemory> make_memory() {
    const std::array<memory::RamRegion, 1> regions{{{memory::Gpa{0}, kRamBytes}}};
    auto memory = memory::GuestMemory::create(regions);
    if (!memory)
        std::abort();
    return std::move(*memory);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const auto memory = make_memory();
    static constexpr std::array<std::byte, 5000> kInitrd{};
    firmware::BootRequest request;
    request.kernel = std::as_bytes(std::span{data, size});
    request.initrd = kInitrd;
    request.command_line = "console=ttyS0";
    request.modules.push_back({kInitrd, "module argument"});
    request.map = kMap;
    request.rsdp = 0xe0000;
    (void)firmware::load_kernel(*memory, request);
    return 0;
}
