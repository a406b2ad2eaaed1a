// SPDX-License-Identifier: Apache-2.0
#pragma once
/// FXSAVE and XSAVE families and the x87 environment, between guest memory and CpuState::xsave,
/// which must hold the guest's state (an engine that has it in registers stores it there before and
/// loads it afterwards). Intel SDM (June 2025) Vol. 1 chapter 13, §10.5.
/// All check CR0.TS/EM, CR4.OSFXSR/OSXSAVE, CPL and alignment, and access memory through a segment.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// `operand_size` 8: the 64-bit form (FIP and FDP as 64-bit offsets).
[[nodiscard]] bool fxsave(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                          std::uint32_t operand_size);
[[nodiscard]] bool fxrstor(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                           std::uint32_t operand_size);

enum class XsaveForm : std::uint8_t { Xsave, Xsaveopt, Xsavec, Xsaves };
[[nodiscard]] bool xsave(SystemContext& cx, XsaveForm form, SegmentIndex segment,
                         std::uint64_t offset, std::uint32_t operand_size);
enum class XrstorForm : std::uint8_t { Xrstor, Xrstors };
[[nodiscard]] bool xrstor(SystemContext& cx, XrstorForm form, SegmentIndex segment,
                          std::uint64_t offset, std::uint32_t operand_size);

/// Bytes XSAVE needs for the components in `mask` (standard format), or compacted.
std::uint32_t xsave_size(std::uint64_t mask);
std::uint32_t xsave_compacted_size(std::uint64_t mask);

} // namespace doppel::cpu::x86
