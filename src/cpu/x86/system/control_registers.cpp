// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/control_registers.hpp"

#include "cpu/x86/system/paging.hpp"
#include "cpu/x86/system/segmentation.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kCr0Defined = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP |
                                      CR0_AM | CR0_NW | CR0_CD | CR0_PG;
constexpr std::uint64_t kCr3NoFlush = std::uint64_t{1} << 63;
constexpr std::uint64_t kPcidMask = 0xfff;
constexpr std::uint64_t kDr6Fixed = 0xffff0ff0, kDr6Writable = 0xe00f;
constexpr std::uint64_t kDr7Fixed = 0x400, kDr7Writable = 0xffff23ff;
constexpr std::uint64_t kDr7Gd = 1u << 13, kDr6Bd = 1u << 13;
constexpr std::uint64_t kXcr0X87 = 1, kXcr0Sse = 2, kXcr0Avx = 4, kXcr0Avx512 = 0xe0;

bool demand_cpl0(SystemContext& cx) { return cx.state.cpl == 0 || cx.gp(0); }

bool pae_paging(std::uint64_t cr0, std::uint64_t cr4, std::uint64_t efer) {
    return (cr0 & CR0_PG) != 0 && (cr4 & CR4_PAE) != 0 && (efer & EFER_LME) == 0;
}

std::uint16_t current_pcid(const SystemContext& cx) {
    return (cx.state.cr4 & CR4_PCIDE) != 0 ? static_cast<std::uint16_t>(cx.state.cr3 & kPcidMask)
                                           : std::uint16_t{0};
}

void flush_everything(SystemContext& cx) {
    cx.tlb.switch_to(current_pcid(cx));
    flush_tlb(cx, {.kind = TlbFlush::Kind::All});
}

/// Combinations that MOV to CR0 refuses (Vol. 2, MOV—Move to/from Control Registers).
bool cr0_is_legal(const SystemContext& cx, std::uint64_t value) {
    const CpuState& state = cx.state;
    const bool paging = (value & CR0_PG) != 0, was_paging = (state.cr0 & CR0_PG) != 0;
    if (value >> 32 != 0 || (paging && (value & CR0_PE) == 0) ||
        ((value & CR0_NW) != 0 && (value & CR0_CD) == 0))
        return false;
    if (paging && !was_paging && (state.efer & EFER_LME) != 0)
        // A 16-bit TSS (types 1 and 3) has no long-mode form.
        return (state.cr4 & CR4_PAE) != 0 && !state.segment[Cs].is_long() &&
               (state.tr.type() & 8) != 0;
    if (!paging && was_paging)
        return !cx.code64() && (state.cr4 & CR4_PCIDE) == 0;
    return true;
}

void apply_cr0(SystemContext& cx, std::uint64_t value) {
    CpuState& state = cx.state;
    const std::uint64_t changed = state.cr0 ^ value;
    state.cr0 = value;
    if ((changed & CR0_PG) != 0) {
        if ((value & CR0_PG) != 0 && (state.efer & EFER_LME) != 0)
            state.efer |= EFER_LMA;
        else
            state.efer &= ~EFER_LMA;
        cx.changes |= change::kAddressSpace;
    }
    if ((changed & (CR0_PG | CR0_WP | CR0_PE)) != 0)
        flush_everything(cx);
    cx.changes |= change::kMode;
}

bool write_cr0(SystemContext& cx, std::uint64_t value) {
    if (!cr0_is_legal(cx, value))
        return cx.gp(0);
    value = (value & kCr0Defined) | CR0_ET;
    const std::uint64_t changed = cx.state.cr0 ^ value;
    if (pae_paging(value, cx.state.cr4, cx.state.efer) &&
        (changed & (CR0_PG | CR0_CD | CR0_NW)) != 0 && !load_pdptes(cx, cx.state.cr3))
        return false;
    apply_cr0(cx, value);
    return true;
}

bool write_cr3(SystemContext& cx, std::uint64_t value) {
    CpuState& state = cx.state;
    const bool pcide = (state.cr4 & CR4_PCIDE) != 0;
    const bool keep = pcide && (value & kCr3NoFlush) != 0;
    if (pcide)
        value &= ~kCr3NoFlush;
    if (cx.long_mode() && value >> cx.traits.physical_bits != 0)
        return cx.gp(0);
    if (pae_paging(state.cr0, state.cr4, state.efer) && !load_pdptes(cx, value))
        return false;
    state.cr3 = value;
    const std::uint16_t pcid = current_pcid(cx);
    cx.tlb.switch_to(pcid);
    cx.changes |= change::kAddressSpace;
    if (!keep)
        flush_tlb(cx, {.kind = TlbFlush::Kind::Pcid, .pcid = pcid});
    return true;
}

bool cr4_is_legal(const SystemContext& cx, std::uint64_t value) {
    const CpuState& state = cx.state;
    const std::uint64_t set = value & ~state.cr4;
    if ((value & ~cx.traits.cr4_allowed) != 0)
        return false;
    if (cx.long_mode() && (value & CR4_PAE) == 0)
        return false;
    if ((set & CR4_PCIDE) != 0)
        return cx.long_mode() && (state.cr3 & kPcidMask) == 0;
    return true;
}

bool write_cr4(SystemContext& cx, std::uint64_t value) {
    CpuState& state = cx.state;
    if (!cr4_is_legal(cx, value))
        return cx.gp(0);
    const std::uint64_t changed = state.cr4 ^ value;
    if (pae_paging(state.cr0, value, state.efer) &&
        (changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) != 0 && !load_pdptes(cx, state.cr3))
        return false;
    state.cr4 = value;
    // SMAP is not in the manual's list, but cached permissions contain it.
    constexpr std::uint64_t flushing =
        CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
    if ((changed & flushing) != 0)
        flush_everything(cx);
    if ((changed & (CR4_PAE | CR4_PCIDE)) != 0)
        cx.changes |= change::kAddressSpace;
    cx.changes |= change::kMode;
    return true;
}

bool write_cr8(SystemContext& cx, std::uint64_t value) {
    if (value > 15)
        return cx.gp(0);
    cx.board.set_cr8(static_cast<std::uint8_t>(value));
    cx.changes |= change::kEvents;
    return true;
}

/// DR4 and DR5 are DR6 and DR7 unless CR4.DE. General detect is a fault, but only for CPL 0.
bool select_debug(SystemContext& cx, unsigned& index) {
    if (index > 7)
        return cx.ud();
    if (index == 4 || index == 5) {
        if ((cx.state.cr4 & CR4_DE) != 0)
            return cx.ud();
        index += 2;
    }
    if (!demand_cpl0(cx))
        return false;
    if ((cx.state.dr7 & kDr7Gd) != 0) {
        cx.fault = {.vector = Vector::DB, .debug_bits = kDr6Bd};
        return false;
    }
    return true;
}

bool xcr0_is_legal(const SystemContext& cx, std::uint64_t value) {
    if ((value & kXcr0X87) == 0 || (value & ~cx.traits.xcr0_allowed) != 0)
        return false;
    if ((value & kXcr0Avx) != 0 && (value & kXcr0Sse) == 0)
        return false;
    const std::uint64_t wide = value & kXcr0Avx512;
    return wide == 0 || (wide == kXcr0Avx512 && (value & kXcr0Avx) != 0);
}

} // namespace

bool read_control(SystemContext& cx, unsigned index, std::uint64_t& value) {
    switch (index) {
    case 0: value = cx.state.cr0; break;
    case 2: value = cx.state.cr2; break;
    case 3: value = cx.state.cr3; break;
    case 4: value = cx.state.cr4; break;
    case 8: break;
    default: return cx.ud();
    }
    if (!demand_cpl0(cx))
        return false;
    if (index == 8)
        value = cx.board.cr8();
    return true;
}

bool write_control(SystemContext& cx, unsigned index, std::uint64_t value) {
    if (index != 0 && index != 2 && index != 3 && index != 4 && index != 8)
        return cx.ud();
    if (!demand_cpl0(cx))
        return false;
    switch (index) {
    case 0: return write_cr0(cx, value);
    case 2: cx.state.cr2 = value; return true;
    case 3: return write_cr3(cx, value);
    case 4: return write_cr4(cx, value);
    default: return write_cr8(cx, value);
    }
}

bool read_debug(SystemContext& cx, unsigned index, std::uint64_t& value) {
    if (!select_debug(cx, index))
        return false;
    value = index < 4 ? cx.state.dr[index] : index == 6 ? cx.state.dr6 : cx.state.dr7;
    return true;
}

bool write_debug(SystemContext& cx, unsigned index, std::uint64_t value) {
    if (!select_debug(cx, index))
        return false;
    if (index >= 6 && value >> 32 != 0)
        return cx.gp(0);
    if (index < 4)
        cx.state.dr[index] = value;
    else if (index == 6)
        cx.state.dr6 = (value & kDr6Writable) | kDr6Fixed;
    else
        cx.state.dr7 = (value & kDr7Writable) | kDr7Fixed;
    cx.changes |= change::kDebug;
    return true;
}

bool clts(SystemContext& cx) {
    if (!demand_cpl0(cx))
        return false;
    cx.state.cr0 &= ~CR0_TS;
    cx.changes |= change::kMode;
    return true;
}

bool lmsw(SystemContext& cx, std::uint16_t value) {
    if (!demand_cpl0(cx))
        return false;
    constexpr std::uint64_t mask = CR0_PE | CR0_MP | CR0_EM | CR0_TS;
    const std::uint64_t sticky = cx.state.cr0 & CR0_PE; // LMSW cannot leave protected mode
    return write_cr0(cx, (cx.state.cr0 & ~mask) | (value & mask) | sticky);
}

bool smsw(SystemContext& cx, std::uint64_t& value) {
    value = cx.state.cr0;
    return check_umip(cx);
}

bool xgetbv(SystemContext& cx) {
    if ((cx.state.cr4 & CR4_OSXSAVE) == 0)
        return cx.ud();
    const auto index = static_cast<std::uint32_t>(cx.state.gpr[Rcx]);
    std::uint64_t value = cx.state.xcr0;
    if (index == 1 && cx.features.has(IsaFeature::Xsavec)) {
        std::uint64_t in_use = 0;
        __builtin_memcpy(&in_use, cx.state.xsave.bytes.data() + 512, sizeof in_use);
        value &= in_use;
    } else if (index != 0) {
        return cx.gp(0);
    }
    cx.state.gpr[Rax] = value & 0xffff'ffff;
    cx.state.gpr[Rdx] = value >> 32;
    return true;
}

bool xsetbv(SystemContext& cx) {
    if ((cx.state.cr4 & CR4_OSXSAVE) == 0)
        return cx.ud();
    const auto low = static_cast<std::uint32_t>(cx.state.gpr[Rax]);
    const std::uint64_t value = low | cx.state.gpr[Rdx] << 32;
    if (cx.state.cpl != 0 || static_cast<std::uint32_t>(cx.state.gpr[Rcx]) != 0 ||
        !xcr0_is_legal(cx, value))
        return cx.gp(0);
    cx.state.xcr0 = value;
    cx.changes |= change::kMode;
    return true;
}

bool invlpg(SystemContext& cx, std::uint64_t linear) {
    if (!demand_cpl0(cx))
        return false;
    if (!cx.code64() || is_canonical(linear))
        flush_tlb(cx, {.kind = TlbFlush::Kind::Page, .pcid = current_pcid(cx), .linear = linear});
    return true;
}

bool invpcid(SystemContext& cx, std::uint64_t type, std::uint64_t descriptor_low,
             std::uint64_t descriptor_high) {
    if (!demand_cpl0(cx))
        return false;
    const bool one_pcid = type == 0 || type == 1;
    const bool pcide = (cx.state.cr4 & CR4_PCIDE) != 0;
    if (type > 3 || descriptor_low >> 12 != 0 || (one_pcid && !pcide && descriptor_low != 0) ||
        (type == 0 && !is_canonical(descriptor_high)))
        return cx.gp(0);
    constexpr TlbFlush::Kind kinds[] = {TlbFlush::Kind::Page, TlbFlush::Kind::Pcid,
                                        TlbFlush::Kind::All, TlbFlush::Kind::NonGlobal};
    flush_tlb(cx, {.kind = kinds[type],
                   .pcid = static_cast<std::uint16_t>(descriptor_low),
                   .linear = descriptor_high});
    return true;
}

bool wbinvd(SystemContext& cx) { return demand_cpl0(cx); }

bool write_efer(SystemContext& cx, std::uint64_t value) {
    CpuState& state = cx.state;
    value = (value & ~EFER_LMA) | (state.efer & EFER_LMA); // LMA is read-only
    const std::uint64_t changed = state.efer ^ value;
    if ((value & ~(cx.traits.efer_allowed | EFER_LMA)) != 0 ||
        ((changed & EFER_LME) != 0 && (state.cr0 & CR0_PG) != 0))
        return cx.gp(0);
    state.efer = value;
    if ((changed & EFER_NXE) != 0)
        flush_everything(cx);
    cx.changes |= change::kMode;
    return true;
}

} // namespace doppel::cpu::x86
