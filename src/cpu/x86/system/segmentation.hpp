// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Segment registers and descriptors: loading, descriptor tables, LAR & co.
/// Intel SDM (June 2025) Vol. 3A chapters 3 and 5.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// MOV/POP/Lxx to ES, SS, DS, FS, GS (never CS: the decoder makes that #UD). All modes; sets the
/// descriptor's accessed bit. #GP, #SS, #NP with the selector. A load of SS by MOV or POP also sets
/// mov_ss_shadow: that is the caller's (set_mov_ss_shadow() in exceptions.hpp), as LSS does not.
[[nodiscard]] bool load_segment(SystemContext& cx, SegmentIndex segment, std::uint16_t selector);

/// The same checks without effect on the register, for instructions that must still be able to
/// fault afterwards: load into `out`, commit by commit_segment().
[[nodiscard]] bool prepare_segment(SystemContext& cx, SegmentIndex segment, std::uint16_t selector,
                                   Segment& out);
void commit_segment(SystemContext& cx, SegmentIndex segment, const Segment& value);

// --- descriptor table registers; the operand has been read, CPL and UMIP are checked here ---
/// SGDT SIDT SLDT STR SMSW: #GP(0) with CR4.UMIP and CPL > 0.
[[nodiscard]] bool check_umip(SystemContext& cx);
/// LGDT, LIDT: base not canonical is #GP(0). With a 16-bit operand the caller has cut base to 24
/// bits.
[[nodiscard]] bool load_gdtr(SystemContext& cx, DescriptorTable value);
[[nodiscard]] bool load_idtr(SystemContext& cx, DescriptorTable value);
/// #UD in real and V86 mode is the decoder's attribute kProtectedOnly; CPL 0 is checked here.
[[nodiscard]] bool load_ldtr(SystemContext& cx, std::uint16_t selector);
[[nodiscard]] bool load_tr(SystemContext& cx, std::uint16_t selector);

/// LAR, LSL: `valid` = ZF; `result` only if valid (LAR: not yet cut to operand size).
[[nodiscard]] bool load_access_rights(SystemContext& cx, std::uint16_t selector, bool& valid,
                                      std::uint32_t& result);
[[nodiscard]] bool load_segment_limit(SystemContext& cx, std::uint16_t selector, bool& valid,
                                      std::uint32_t& result);
/// VERR, VERW: `valid` = ZF.
[[nodiscard]] bool verify_segment(SystemContext& cx, std::uint16_t selector, AccessType access,
                                  bool& valid);
// ARPL is pure arithmetic on its operands: the interpreter's.

/// FS/GS base: WRFSBASE, WRGSBASE, SWAPGS (CPL 0). #UD without CR4.FSGSBASE, #GP(0) non-canonical.
[[nodiscard]] bool read_segment_base(SystemContext& cx, SegmentIndex segment, std::uint64_t& value);
[[nodiscard]] bool write_segment_base(SystemContext& cx, SegmentIndex segment, std::uint64_t value);
[[nodiscard]] bool swapgs(SystemContext& cx);

} // namespace doppel::cpu::x86
