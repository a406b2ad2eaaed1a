// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Data accesses through a segment register: what an ordinary instruction does. Checks in the order
/// of the CPU: canonical address or segment type and limit (#SS(0) for SS, else #GP(0)), alignment
/// (#AC(0) with CR0.AM, AC and CPL 3), then paging. Intel SDM Vol. 3A §5.3, §5.5.
#include "cpu/x86/system/linear_memory.hpp"

namespace doppel::cpu::x86 {

/// Effective address -> linear address, with every check but paging. `alignment`: bytes the operand
/// must be aligned to for #AC (usually its size; 0 = exempt). In 64-bit mode `offset` is the full
/// address; otherwise the caller has cut it to the address size.
[[nodiscard]] bool linear_address(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                                  std::uint32_t bytes, AccessType access, std::uint64_t& linear,
                                  std::uint32_t alignment);

/// Linear address without any check (LEA-like uses: INVLPG, breakpoints, CLFLUSH's line).
std::uint64_t linear_unchecked(const SystemContext& cx, SegmentIndex segment, std::uint64_t offset);

[[nodiscard]] bool read_data(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                             void* to, std::uint32_t bytes, Intent intent = Intent::Read);
[[nodiscard]] bool write_data(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                              const void* from, std::uint32_t bytes);
[[nodiscard]] bool compare_exchange_data(SystemContext& cx, SegmentIndex segment,
                                         std::uint64_t offset, std::uint32_t bytes, Wide& expected,
                                         Wide desired, bool& swapped);

/// Linear address of the next instruction byte(s): CS limit (#GP(0)), canonical (#GP(0)), and how
/// many bytes from there the limit allows (at most 15).
[[nodiscard]] bool code_address(SystemContext& cx, std::uint64_t rip, std::uint64_t& linear,
                                std::uint32_t& allowed_bytes);

/// What a near branch does to its target: cuts nothing, #GP(0) when it is beyond CS's limit or not
/// canonical. Call it before anything is written.
[[nodiscard]] bool check_branch_target(SystemContext& cx, std::uint64_t target);

/// Bytes in which the stack pointer counts: 8 in 64-bit mode, else by SS.B: 4 or 2.
[[gnu::always_inline]] inline std::uint32_t stack_width(const SystemContext& cx) {
    return cx.code64() ? 8 : cx.state.segment[Ss].default_big() ? 4 : 2;
}

} // namespace doppel::cpu::x86
