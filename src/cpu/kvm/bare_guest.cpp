// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/bare_guest.hpp"

#include <array>

#include "base/verify.hpp"

namespace doppel::cpu::kvm {

using memory::GuestMemory;
using namespace x86;

namespace {

constexpr std::uint64_t kPml4 = 0x1000, kPdpt = 0x2000, kPd = 0xa000, kGdt = 0x5000, kIdt = 0x6000,
                        kTssBase = 0x7000; // with a bitmap of all ports: up to 0x9068
constexpr std::uint64_t kPresent = 1, kWritable = 2, kUser = 4, kLarge = 0x80;
constexpr std::uint64_t kTable = kPresent | kWritable | kUser;
constexpr std::uint16_t kGdtLimit = 0x3f, kTssBytes = 0x68;
constexpr std::uint32_t kTssLimit = kTssBytes + 8192; // one byte of ones behind the bitmap

void store(GuestMemory& memory, std::uint64_t gpa, std::uint64_t value) {
    DOPPEL_VERIFY(memory.store({gpa}, value), "the bare guest has RAM where its tables are");
}

/// 4 GiB in 2-MiB pages. Accessed and dirty are set from the start: nobody writes here later.
void place_page_tables(GuestMemory& memory) {
    constexpr std::uint64_t kAccessed = 0x20, kDirty = 0x40;
    store(memory, kPml4, kPdpt | kTable | kAccessed);
    for (std::uint64_t gib = 0; gib < 4; ++gib) {
        const auto pd = kPd + (gib + 6) * 0x1000; // 0x10000 …
        store(memory, kPdpt + gib * 8, pd | kTable | kAccessed);
        for (std::uint64_t i = 0; i < 512; ++i)
            store(memory, pd + i * 8, (gib << 30 | i << 21) | kTable | kLarge | kAccessed | kDirty);
    }
}

/// Intel SDM (June 2025) Vol. 3A §3.4.5, §8.2.3.
void place_segments(GuestMemory& memory) {
    constexpr std::array<std::uint64_t, 6> kDescriptors{0,
                                                        0x00af'9b00'0000'ffff,
                                                        0x00cf'9300'0000'ffff,
                                                        0x00cf'fb00'0000'ffff,
                                                        0x00cf'f300'0000'ffff,
                                                        0x00af'fb00'0000'ffff};
    for (std::size_t i = 0; i < kDescriptors.size(); ++i)
        store(memory, kGdt + i * 8, kDescriptors[i]);
    store(memory, kGdt + BareGuest::kTss,
          (kTssLimit & 0xffff) | kTssBase << 16 | std::uint64_t{0x8b} << 40);
    store(memory, kGdt + BareGuest::kTss + 8, 0);
    DOPPEL_VERIFY(memory.store<std::uint64_t>({kTssBase + 4}, BareGuest::kStackTop) &&
                      memory.store<std::uint16_t>({kTssBase + 102}, kTssBytes) &&
                      memory.store<std::uint8_t>({kTssBase + kTssLimit}, 0xff),
                  "the bare guest has RAM where its TSS is");
}

void place_gate(GuestMemory& memory, std::uint8_t vector, std::uint64_t handler) {
    constexpr std::uint64_t kInterruptGate = 0xee00; // present, DPL 3
    store(memory, kIdt + std::uint64_t{vector} * 16,
          (handler & 0xffff) | std::uint64_t{BareGuest::kKernelCode} << 16 | kInterruptGate << 32 |
              (handler >> 16 & 0xffff) << 48);
    store(memory, kIdt + std::uint64_t{vector} * 16 + 8, handler >> 32);
}

Segment segment(std::uint16_t selector, std::uint16_t type, unsigned dpl, std::uint16_t size) {
    return {.base = 0,
            .limit = 0xffff'ffff,
            .selector = selector,
            .access = static_cast<std::uint16_t>(type | Segment::kS | dpl << 5 | Segment::kPresent |
                                                 Segment::kGranular | size)};
}

} // namespace

void BareGuest::place(GuestMemory& memory, std::span<const std::byte> code,
                      std::uint64_t unexpected, std::span<const Handler> handlers) {
    place_page_tables(memory);
    place_segments(memory);
    for (unsigned vector = 0; vector < 256; ++vector)
        place_gate(memory, static_cast<std::uint8_t>(vector), kCode + unexpected);
    for (const auto& handler : handlers)
        place_gate(memory, handler.vector, kCode + handler.offset);
    DOPPEL_VERIFY(memory.write({kCode}, code), "the bare guest has RAM for its code");
}

void BareGuest::enter(CpuState& state, std::uint64_t offset, Ring ring) {
    const bool is_user = ring == Ring::User;
    const unsigned dpl = is_user ? 3 : 0;
    state.gpr = {};
    state.rip = kCode + offset;
    state.rflags = 2;
    state.gpr[Rsp] = is_user ? kUserStackTop : kStackTop;
    state.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    state.cr3 = kPml4;
    state.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    state.efer = EFER_SCE | EFER_LME | EFER_LMA;
    state.star = kStar;
    state.segment[Cs] = segment(is_user ? kUserCode : kKernelCode, 0xb, dpl, Segment::kLong);
    const auto data = segment(is_user ? kUserData : kKernelData, 0x3, dpl, Segment::kDefaultBig);
    for (const auto index : {Es, Ss, Ds, Fs, Gs})
        state.segment[index] = data;
    state.cpl = static_cast<std::uint8_t>(dpl);
    state.tr = {
        .base = kTssBase, .limit = kTssLimit, .selector = kTss, .access = Segment::kPresent | 0xb};
    state.gdtr = {kGdt, kGdtLimit};
    state.idtr = {kIdt, 0xfff};
    state.activity = Activity::Running;
}

} // namespace doppel::cpu::kvm
