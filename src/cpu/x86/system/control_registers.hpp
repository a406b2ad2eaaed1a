// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Control, debug and extended control registers. Intel SDM (June 2025) Vol. 3A §2.5, §2.6,
/// §4.10.4.1 (flushes by MOV CR), Vol. 3B §18.2. CPL 0 is checked here.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// `index` 0, 2, 3, 4, 8; anything else is #UD. Outside 64-bit mode the caller passes 32 bits.
[[nodiscard]] bool read_control(SystemContext& cx, unsigned index, std::uint64_t& value);
[[nodiscard]] bool write_control(SystemContext& cx, unsigned index, std::uint64_t value);
/// `index` 0..7; DR4 and DR5 as CR4.DE says; DR7.GD raises #DB.
[[nodiscard]] bool read_debug(SystemContext& cx, unsigned index, std::uint64_t& value);
[[nodiscard]] bool write_debug(SystemContext& cx, unsigned index, std::uint64_t value);

[[nodiscard]] bool clts(SystemContext& cx);
[[nodiscard]] bool lmsw(SystemContext& cx, std::uint16_t value);
[[nodiscard]] bool smsw(SystemContext& cx, std::uint64_t& value); // UMIP is checked; cut by size

[[nodiscard]] bool xgetbv(SystemContext& cx); // ecx -> edx:eax
[[nodiscard]] bool xsetbv(SystemContext& cx);

/// INVLPG of a linear address (segment base added, nothing checked); INVPCID with its descriptor.
[[nodiscard]] bool invlpg(SystemContext& cx, std::uint64_t linear);
[[nodiscard]] bool invpcid(SystemContext& cx, std::uint64_t type, std::uint64_t descriptor_low,
                           std::uint64_t descriptor_high);
/// INVD and WBINVD: only the privilege check, our caches are coherent.
[[nodiscard]] bool wbinvd(SystemContext& cx);

/// EFER as WRMSR writes it.
[[nodiscard]] bool write_efer(SystemContext& cx, std::uint64_t value);

} // namespace doppel::cpu::x86
