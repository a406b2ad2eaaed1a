// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Guest memory by linear address: RAM, MMIO and the local APIC page, with paging, data breakpoints
/// and page crossing done right (both pages are checked before a byte moves).
/// No segmentation (segment_access.hpp) and no canonical or alignment checks here.
#include "cpu/x86/system/context.hpp"
#include "cpu/x86/system/paging.hpp"

namespace doppel::cpu::x86 {

/// What a read is for: an instruction that will write back checks for writing at once (#PF error
/// code with W set), as the CPU does.
enum class Intent : std::uint8_t { Read, ReadForWrite };

/// 1..64 bytes.
[[nodiscard]] bool read_linear(SystemContext& cx, std::uint64_t linear, void* to,
                               std::uint32_t bytes, Privilege privilege,
                               Intent intent = Intent::Read);
[[nodiscard]] bool write_linear(SystemContext& cx, std::uint64_t linear, const void* from,
                                std::uint32_t bytes, Privilege privilege);
/// Raises what an access of 1..4096 bytes would raise (page faults only); touches nothing else.
[[nodiscard]] bool probe_linear(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                                AccessType access, Privilege privilege);

/// 128-bit operand of CMPXCHG16B; the low half first.
struct Wide {
    std::uint64_t low = 0, high = 0;
    bool operator==(const Wide&) const = default;
};

/// Locked compare-and-exchange of 1, 2, 4, 8 or 16 bytes: if memory equals `expected` it becomes
/// `desired`; `expected` gets what was there, `swapped` whether it was equal. Atomic against every
/// vCPU: natively within a cache line, otherwise while the other vCPUs stand still.
/// Like the CPU it demands write permission even when nothing is swapped.
[[nodiscard]] bool compare_exchange_linear(SystemContext& cx, std::uint64_t linear,
                                           std::uint32_t bytes, Wide& expected, Wide desired,
                                           bool& swapped, Privilege privilege);

/// Instruction bytes: copies up to `wanted` (1..15) from `linear`, but nothing beyond its page:
/// when the decoder needs more, call again with the first address of the next page.
[[nodiscard]] bool fetch_linear(SystemContext& cx, std::uint64_t linear, std::uint8_t* to,
                                std::uint32_t wanted, std::uint32_t& got);

/// The page that an instruction at `linear` is fetched from; host is nullptr when it is not RAM.
struct CodePage {
    memory::Gpa gpa;
    const std::byte* host = nullptr;
    bool global = false; // survives a change of address space
    std::uint8_t page_shift = 12;
};
[[nodiscard]] bool code_page(SystemContext& cx, std::uint64_t linear, CodePage& out);

/// Host address for [linear, linear + bytes) when it lies in one page of RAM and may be accessed
/// that way without ceremony (for writes: page state 0, no data breakpoints on); nullptr otherwise,
/// raising nothing: then use the functions above.
std::byte* host_pointer(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                        AccessType access, Privilege privilege);

/// By guest-physical address, without paging: RAM or MMIO. 1, 2, 4 or 8 bytes.
std::uint64_t read_physical(SystemContext& cx, std::uint64_t gpa, std::uint8_t bytes);
void write_physical(SystemContext& cx, std::uint64_t gpa, std::uint8_t bytes, std::uint64_t value);

/// read_linear() of a small integer, in line on a TLB hit.
template <typename T>
[[gnu::always_inline, nodiscard]] inline bool load_linear(SystemContext& cx, std::uint64_t linear,
                                                          T& out, Privilege privilege) {
    const TlbEntry* entry = cx.tlb.lookup(linear, permission(AccessType::Read, privilege));
    if (entry != nullptr && entry->host != nullptr && (linear & 0xfff) <= 0x1000 - sizeof(T) &&
        (cx.state.dr7 & 0xff) == 0) [[likely]] {
        __builtin_memcpy(&out, entry->host + (linear & 0xfff), sizeof(T));
        return true;
    }
    return read_linear(cx, linear, &out, sizeof(T), privilege);
}
template <typename T>
[[gnu::always_inline, nodiscard]] inline bool store_linear(SystemContext& cx, std::uint64_t linear,
                                                           const T& value, Privilege privilege) {
    const TlbEntry* entry = cx.tlb.lookup(linear, permission(AccessType::Write, privilege));
    if (entry != nullptr && entry->host != nullptr && (linear & 0xfff) <= 0x1000 - sizeof(T) &&
        entry->state->load(std::memory_order_acquire) == 0 && (cx.state.dr7 & 0xff) == 0)
        [[likely]] {
        __builtin_memcpy(entry->host + (linear & 0xfff), &value, sizeof(T));
        return true;
    }
    return write_linear(cx, linear, &value, sizeof(T), privilege);
}

} // namespace doppel::cpu::x86
