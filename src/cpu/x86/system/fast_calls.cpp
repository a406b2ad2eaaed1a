// SPDX-License-Identifier: Apache-2.0
/// SYSCALL, SYSRET, SYSENTER, SYSEXIT. Intel SDM (June 2025) Vol. 2B, AMD APM Vol. 3 rev. 3.36.
/// Where the vendors differ the model's vendor decides:
///   SYSCALL, SYSRET outside 64-bit mode: #UD on Intel; on AMD they work (compatibility mode:
///   CSTAR; legacy protected mode: STAR[31:0]).   SYSENTER, SYSEXIT in long mode: #UD on AMD.
/// SYSRET to a non-canonical RCX: #GP in ring 0 (Intel) for both; SS gets its attributes always.
#include "cpu/x86/system/far_transfer.hpp"
#include "cpu/x86/system/gates.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kSysretFlags = 0x3c7fd7;

void enter_flat(SystemContext& cx, std::uint16_t code, std::uint16_t stack, unsigned cpl,
                bool is_long) {
    const auto rpl = static_cast<std::uint16_t>(cpl);
    cx.state.segment[Cs] = flat_code(static_cast<std::uint16_t>((code & ~3u) | rpl), cpl, is_long);
    cx.state.segment[Ss] = flat_stack(static_cast<std::uint16_t>((stack & ~3u) | rpl), cpl);
    cx.state.cpl = static_cast<std::uint8_t>(cpl);
    cx.changes |= change::kMode | change::kSegments;
}

/// The trap of a single-stepped SYSCALL or SYSRET depends on TF as they leave it.
void step_by_new_flags(SystemContext& cx) {
    cx.step_trap = cx.step_trap && (cx.state.rflags & FLAG_TF) != 0;
    cx.changes |= change::kEvents;
}

bool syscall_available(const SystemContext& cx) {
    if ((cx.state.efer & EFER_SCE) == 0 || !cx.protected_mode() || cx.v86())
        return false;
    return cx.code64() || cx.traits.amd;
}

void syscall_long(SystemContext& cx, std::uint64_t next) {
    CpuState& state = cx.state;
    const bool from64 = cx.code64();
    state.gpr[Rcx] = next;
    state.gpr[R11] = state.rflags & ~FLAG_RF;
    state.rip = from64 ? state.lstar : state.cstar;
    state.rflags = (state.rflags & ~(state.fmask | FLAG_RF)) | 2;
    const auto selector = static_cast<std::uint16_t>(state.star >> 32 & 0xfffc);
    enter_flat(cx, selector, static_cast<std::uint16_t>(selector + 8), 0, true);
}

/// Legacy mode, AMD only: ECX = EIP, flags IF, VM, RF cleared.
void syscall_legacy(SystemContext& cx, std::uint64_t next) {
    CpuState& state = cx.state;
    state.gpr[Rcx] = next & 0xffff'ffff;
    state.rip = state.star & 0xffff'ffff;
    state.rflags &= ~(FLAG_IF | FLAG_VM | FLAG_RF);
    const auto selector = static_cast<std::uint16_t>(state.star >> 32 & 0xfffc);
    enter_flat(cx, selector, static_cast<std::uint16_t>(selector + 8), 0, false);
}

} // namespace

bool syscall(SystemContext& cx, std::uint64_t next) {
    if (!syscall_available(cx))
        return cx.ud();
    if (cx.long_mode())
        syscall_long(cx, next);
    else
        syscall_legacy(cx, next);
    step_by_new_flags(cx);
    return true;
}

bool sysret(SystemContext& cx, std::uint32_t operand_size) {
    CpuState& state = cx.state;
    if (!syscall_available(cx))
        return cx.ud();
    if (state.cpl != 0 || (operand_size == 8 && !is_canonical(state.gpr[Rcx])))
        return cx.gp(0);
    const auto base = static_cast<std::uint16_t>(state.star >> 48);
    const bool to64 = operand_size == 8 && cx.long_mode();
    if (cx.long_mode())
        state.rflags = (state.gpr[R11] & kSysretFlags) | 2;
    else
        state.rflags |= FLAG_IF;
    state.rip = to64 ? state.gpr[Rcx] : state.gpr[Rcx] & 0xffff'ffff;
    enter_flat(cx, static_cast<std::uint16_t>(base + (to64 ? 16 : 0)),
               static_cast<std::uint16_t>(base + 8), 3, to64);
    step_by_new_flags(cx);
    return true;
}

bool sysenter(SystemContext& cx) {
    CpuState& state = cx.state;
    if (cx.traits.amd && cx.long_mode())
        return cx.ud();
    const auto selector = static_cast<std::uint16_t>(state.sysenter_cs & 0xfffc);
    if (!cx.protected_mode() || selector == 0)
        return cx.gp(0);
    const bool wide = cx.long_mode();
    state.rflags &= ~(FLAG_VM | FLAG_IF | FLAG_RF);
    state.gpr[Rsp] = wide ? state.sysenter_esp : state.sysenter_esp & 0xffff'ffff;
    state.rip = wide ? state.sysenter_eip : state.sysenter_eip & 0xffff'ffff;
    enter_flat(cx, selector, static_cast<std::uint16_t>(selector + 8), 0, wide);
    cx.changes |= change::kEvents;
    return true;
}

bool sysexit(SystemContext& cx, std::uint32_t operand_size) {
    CpuState& state = cx.state;
    if (cx.traits.amd && cx.long_mode())
        return cx.ud();
    const auto selector = static_cast<std::uint16_t>(state.sysenter_cs & 0xfffc);
    const bool wide = operand_size == 8;
    if (!cx.protected_mode() || selector == 0 || state.cpl != 0)
        return cx.gp(0);
    if (wide && (!is_canonical(state.gpr[Rcx]) || !is_canonical(state.gpr[Rdx])))
        return cx.gp(0);
    state.gpr[Rsp] = wide ? state.gpr[Rcx] : state.gpr[Rcx] & 0xffff'ffff;
    state.rip = wide ? state.gpr[Rdx] : state.gpr[Rdx] & 0xffff'ffff;
    const unsigned offset = wide ? 32 : 16;
    enter_flat(cx, static_cast<std::uint16_t>(selector + offset),
               static_cast<std::uint16_t>(selector + offset + 8), 3, wide);
    return true;
}

} // namespace doppel::cpu::x86
