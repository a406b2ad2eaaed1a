// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/flags.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kPopfAlways =
    kArithmeticFlags | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_AC | FLAG_ID; // what any CPL may change

bool vme(const SystemContext& cx) { return cx.v86() && (cx.state.cr4 & CR4_VME) != 0; }

/// CLI and STI act on VIF: V86 mode with VME, or CPL 3 with PVI, and IOPL below CPL.
bool virtual_if(const SystemContext& cx) {
    if (cx.v86())
        return cx.iopl() < 3 && (cx.state.cr4 & CR4_VME) != 0;
    return cx.protected_mode() && cx.state.cpl == 3 && cx.iopl() < 3 &&
           (cx.state.cr4 & CR4_PVI) != 0;
}

bool may_change_if(const SystemContext& cx) {
    return !cx.protected_mode() || (cx.v86() ? cx.iopl() == 3 : cx.state.cpl <= cx.iopl());
}

void replace_flags(SystemContext& cx, std::uint64_t mask, std::uint64_t image) {
    const std::uint64_t old = cx.state.rflags;
    cx.state.rflags = (old & ~mask) | (image & mask) | 2;
    const std::uint64_t changed = old ^ cx.state.rflags;
    if ((changed & (FLAG_TF | FLAG_IF)) != 0)
        cx.changes |= change::kEvents;
    if ((changed & FLAG_AC) != 0)
        cx.changes |= change::kMode;
}

/// POPF of 16 bits in V86 mode below IOPL 3 with VME: IF goes to VIF (Vol. 2, POPF table 4-17).
bool popf_vme(SystemContext& cx, std::uint64_t image) {
    const bool wants_if = (image & FLAG_IF) != 0;
    if ((image & FLAG_TF) != 0 || (wants_if && (cx.state.rflags & FLAG_VIP) != 0))
        return cx.gp(0);
    const std::uint64_t mask = (kPopfAlways & 0xffff) | FLAG_VIF;
    replace_flags(cx, mask, (image & 0xffff & ~FLAG_VIF) | (wants_if ? FLAG_VIF : 0));
    return true;
}

bool change_ac(SystemContext& cx, bool set) {
    if (!cx.features.has(IsaFeature::Smap) || cx.state.cpl != 0)
        return cx.ud();
    replace_flags(cx, FLAG_AC, set ? FLAG_AC : 0);
    return true;
}

} // namespace

bool pushf_image(SystemContext& cx, std::uint32_t operand_size, std::uint64_t& image) {
    image = cx.state.rflags & ~(FLAG_VM | FLAG_RF);
    if (!cx.v86() || cx.iopl() == 3)
        return true;
    if (!vme(cx) || operand_size != 2)
        return cx.gp(0);
    const bool vif = (image & FLAG_VIF) != 0;
    image = (image & ~FLAG_IF) | (vif ? FLAG_IF : 0) | FLAG_IOPL;
    return true;
}

bool popf(SystemContext& cx, std::uint32_t operand_size, std::uint64_t image) {
    std::uint64_t mask = kPopfAlways;
    if (cx.v86() && cx.iopl() < 3)
        return vme(cx) && operand_size == 2 ? popf_vme(cx, image) : cx.gp(0);
    if (may_change_if(cx))
        mask |= FLAG_IF;
    if (cx.state.cpl == 0) // real mode too
        mask |= FLAG_IOPL;
    if (operand_size == 2) {
        mask &= 0xffff;
    } else {
        mask |= FLAG_RF; // cleared: POPF never sets it
        image &= ~FLAG_RF;
        if (cx.state.cpl == 0) {
            mask |= FLAG_VIF | FLAG_VIP; // cleared as well
            image &= ~(FLAG_VIF | FLAG_VIP);
        }
    }
    replace_flags(cx, mask, image);
    return true;
}

bool cli(SystemContext& cx) {
    if (may_change_if(cx))
        replace_flags(cx, FLAG_IF, 0);
    else if (virtual_if(cx))
        replace_flags(cx, FLAG_VIF, 0);
    else
        return cx.gp(0);
    return true;
}

bool sti(SystemContext& cx) {
    if (may_change_if(cx)) {
        if ((cx.state.rflags & FLAG_IF) == 0) {
            cx.state.sti_shadow = true;
            cx.changes |= change::kEvents;
        }
        replace_flags(cx, FLAG_IF, FLAG_IF);
        return true;
    }
    if (!virtual_if(cx) || (cx.state.rflags & FLAG_VIP) != 0)
        return cx.gp(0);
    replace_flags(cx, FLAG_VIF, FLAG_VIF);
    return true;
}

bool clac(SystemContext& cx) { return change_ac(cx, false); }
bool stac(SystemContext& cx) { return change_ac(cx, true); }

} // namespace doppel::cpu::x86
