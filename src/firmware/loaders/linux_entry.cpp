// SPDX-License-Identifier: Apache-2.0
#include "firmware/loaders/linux_entry.hpp"

#include <array>

namespace doppel::firmware {

using memory::Gpa;

namespace {

constexpr std::uint64_t kGdt = 0x8000, kPml4 = 0x9000, kPdpt = 0xa000, kPd = 0xb000,
                        kStack = 0x8ff0;
constexpr std::uint64_t kPresentWritable = 3, kLarge = 0x80;

constexpr std::uint16_t kCode = 0x10, kData = 0x18;

// Flat descriptors, Intel SDM (June 2025) Vol. 3A §3.4.5: code of 64 and of 32 bits, data.
constexpr std::uint64_t kCode64 = 0x00af9b000000ffff, kCode32 = 0x00cf9b000000ffff,
                        kFlatData = 0x00cf93000000ffff;

auto no_memory() { return base::fail(base::Errc::OutOfRange, "the VM has no memory below 64 KiB"); }

base::Result<BootState> enter(memory::GuestMemory& memory, BootState::Mode mode,
                              std::uint64_t code) {
    const std::array<std::uint64_t, 4> descriptors{0, 0, code, kFlatData};
    if (!memory.store(Gpa{kGdt}, descriptors))
        return no_memory();
    BootState state;
    state.mode = mode;
    state.rsp = kStack;
    state.gdt_base = kGdt;
    state.gdt_limit = sizeof descriptors - 1;
    state.code_segment = kCode;
    state.data_segment = kData;
    return state;
}

} // namespace

base::Result<BootState> enter_long_mode(memory::GuestMemory& memory) {
    bool ok = memory.store(Gpa{kPml4}, kPdpt | kPresentWritable);
    for (std::uint64_t gib = 0; gib < 4; ++gib) {
        const auto table = kPd + gib * memory::kPageBytes;
        ok = ok && memory.store(Gpa{kPdpt + gib * 8}, table | kPresentWritable);
        for (std::uint64_t i = 0; i < 512; ++i)
            ok = ok && memory.store(Gpa{table + i * 8},
                                    (gib << 30 | i << 21) | kPresentWritable | kLarge);
    }
    if (!ok)
        return no_memory();
    auto state = DOPPEL_TRY(enter(memory, BootState::Mode::Long64, kCode64));
    state.cr3 = kPml4;
    return state;
}

base::Result<BootState> enter_flat_mode(memory::GuestMemory& memory) {
    return enter(memory, BootState::Mode::Protected32, kCode32);
}

} // namespace doppel::firmware
