// SPDX-License-Identifier: Apache-2.0
#include "firmware/loaders/long_mode_entry.hpp"

#include <array>

namespace doppel::firmware {

using memory::Gpa;

namespace {

constexpr std::uint64_t kGdt = 0x8000, kPml4 = 0x9000, kPdpt = 0xa000, kPd = 0xb000,
                        kStack = 0x8ff0;
constexpr std::uint64_t kPresentWritable = 3, kLarge = 0x80;

// Flat descriptors, Intel SDM (June 2025) Vol. 3A §3.4.5: 64-bit code, data.
constexpr std::array<std::uint64_t, 4> kDescriptors{0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};

} // namespace

base::Result<BootState> enter_long_mode(memory::GuestMemory& memory) {
    bool ok =
        memory.store(Gpa{kGdt}, kDescriptors) && memory.store(Gpa{kPml4}, kPdpt | kPresentWritable);
    for (std::uint64_t gib = 0; gib < 4; ++gib) {
        const auto table = kPd + gib * memory::kPageBytes;
        ok = ok && memory.store(Gpa{kPdpt + gib * 8}, table | kPresentWritable);
        for (std::uint64_t i = 0; i < 512; ++i)
            ok = ok && memory.store(Gpa{table + i * 8},
                                    (gib << 30 | i << 21) | kPresentWritable | kLarge);
    }
    if (!ok)
        return base::fail(base::Errc::OutOfRange, "the VM has no memory below 64 KiB");
    BootState state;
    state.mode = BootState::Mode::Long64;
    state.cr3 = kPml4;
    state.rsp = kStack;
    state.gdt_base = kGdt;
    state.gdt_limit = sizeof kDescriptors - 1;
    state.code_segment = 0x10;
    state.data_segment = 0x18;
    return state;
}

} // namespace doppel::firmware
