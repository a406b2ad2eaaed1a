// SPDX-License-Identifier: Apache-2.0
#pragma once
/// From linear to guest-physical addresses: no paging, 2-level (PSE, PSE-36), PAE, 4-level; A and D
/// bits, NX, WP, SMEP, SMAP, reserved bits. Intel SDM (June 2025) Vol. 3A chapter 4.
/// Not modelled: 5-level paging, protection keys (neither is offered in CPUID).
#include "cpu/x86/system/context.hpp"
#include "memory/gpa.hpp"

namespace doppel::cpu::x86 {

/// Of the page that holds a linear address. The permission bits are those of all levels together,
/// before CR0.WP, SMEP and SMAP; allowed() applies these.
struct Translation {
    memory::Gpa gpa;              // of the address itself
    std::uint8_t page_shift = 12; // 12, 21, 22 or 30
    bool user = true;
    bool writable = true;
    bool executable = true;
    bool dirty = true; // a write needs no more walk
    bool global = false;
};

/// Walks the tables as the CPU does for such an access, sets A (and D for writes) or raises #PF
/// with CR2. `linear` is canonical (long mode) or below 4 GiB. Does not look at the Tlb.
[[nodiscard]] bool translate(SystemContext& cx, std::uint64_t linear, AccessType access,
                             Privilege privilege, Translation& out);

/// Set of permission() bits that the page grants in the current mode; write bits only if D is set.
std::uint16_t allowed(const SystemContext& cx, const Translation& translation);

/// For debuggers: no faults, nothing set, as a supervisor read; false where nothing is mapped.
bool translate_quietly(SystemContext& cx, std::uint64_t linear, memory::Gpa& out);

/// What a TLB that has forgotten may be told again: false where nothing is mapped or an A bit is
/// clear, as then the CPU would have to set it. Nothing is set.
bool translate_used(SystemContext& cx, std::uint64_t linear, Translation& out);

/// Loads the four PDPTE registers from CR3 (PAE paging, MOV CR and task switch); #GP(0) when a
/// reserved bit is set, and nothing changed. Vol. 3A §4.4.1.
[[nodiscard]] bool load_pdptes(SystemContext& cx, std::uint64_t cr3);

/// Privilege of data accesses by the current instruction.
[[gnu::always_inline]] inline Privilege data_privilege(const SystemContext& cx) {
    return cx.state.cpl == 3                  ? Privilege::User
           : (cx.state.rflags & FLAG_AC) != 0 ? Privilege::SupervisorAc
                                              : Privilege::Supervisor;
}
[[gnu::always_inline]] inline Privilege fetch_privilege(const SystemContext& cx) {
    return cx.state.cpl == 3 ? Privilege::User : Privilege::Supervisor;
}

/// Flush in our own Tlb and in the engine's.
void flush_tlb(SystemContext& cx, const TlbFlush& flush);

} // namespace doppel::cpu::x86
