// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Transfers of control that may change segment, privilege, mode or task. Intel SDM (June 2025)
/// Vol. 3A chapters 5, 7, 8 and the instruction pages of Vol. 2. All of them set state.rip.
/// `operand_size` 2, 4 or 8; `next` = RIP behind the instruction.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

[[nodiscard]] bool far_jump(SystemContext& cx, std::uint16_t selector, std::uint64_t offset,
                            std::uint32_t operand_size, std::uint64_t next);
[[nodiscard]] bool far_call(SystemContext& cx, std::uint16_t selector, std::uint64_t offset,
                            std::uint32_t operand_size, std::uint64_t next);
/// RETF; `release_bytes` is the immediate.
[[nodiscard]] bool far_return(SystemContext& cx, std::uint32_t operand_size,
                              std::uint32_t release_bytes);
[[nodiscard]] bool iret(SystemContext& cx, std::uint32_t operand_size, std::uint64_t next);

/// INT n, with V86/VME/IOPL rules.
[[nodiscard]] bool software_interrupt(SystemContext& cx, std::uint8_t vector, std::uint64_t next);
[[nodiscard]] bool int3(SystemContext& cx, std::uint64_t next);
/// INTO with OF set (otherwise it is a NOP: the caller's).
[[nodiscard]] bool into(SystemContext& cx, std::uint64_t next);
/// INT1 (ICEBP): a #DB trap that leaves DR6 alone.
[[nodiscard]] bool int1(SystemContext& cx, std::uint64_t next);

[[nodiscard]] bool syscall(SystemContext& cx, std::uint64_t next);
[[nodiscard]] bool sysret(SystemContext& cx, std::uint32_t operand_size);
[[nodiscard]] bool sysenter(SystemContext& cx);
[[nodiscard]] bool sysexit(SystemContext& cx, std::uint32_t operand_size);

} // namespace doppel::cpu::x86
