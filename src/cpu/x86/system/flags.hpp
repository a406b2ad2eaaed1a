// SPDX-License-Identifier: Apache-2.0
#pragma once
/// EFLAGS instructions whose effect depends on mode, CPL, IOPL, VME and PVI.
/// Intel SDM Vol. 2 (CLI, STI, PUSHF, POPF), Vol. 3B §21.3 (VME), §21.4 (PVI).
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// The image PUSHF pushes (the caller pushes it); #GP(0) in V86 mode with IOPL < 3 (and no VME).
[[nodiscard]] bool pushf_image(SystemContext& cx, std::uint32_t operand_size, std::uint64_t& image);
/// What POPF does with the image it popped; the caller moves rsp when it succeeds.
[[nodiscard]] bool popf(SystemContext& cx, std::uint32_t operand_size, std::uint64_t image);
[[nodiscard]] bool cli(SystemContext& cx);
[[nodiscard]] bool sti(SystemContext& cx);
/// #UD without SMAP or CPL > 0.
[[nodiscard]] bool clac(SystemContext& cx);
[[nodiscard]] bool stac(SystemContext& cx);

} // namespace doppel::cpu::x86
