// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/cpu_state_schema.hpp"

#include <cstring>

#include "state/schema.hpp"

namespace doppel::cpu::x86 {

namespace {

using base::Result;
using state::field;
using state::schema;

/// Segment registers and table registers in the file; everything else is CpuState's own member.
struct SegmentImage {
    std::uint64_t base = 0;
    std::uint32_t limit = 0;
    std::uint16_t selector = 0, access = 0;
    static constexpr auto kSchema = schema("x86-segment", 1, field(1, "base", &SegmentImage::base),
                                           field(2, "limit", &SegmentImage::limit),
                                           field(3, "selector", &SegmentImage::selector),
                                           field(4, "access", &SegmentImage::access));
};

constexpr std::size_t kLdtr = kSegments, kTr = kSegments + 1, kImages = kSegments + 2;

struct Saved : CpuState {
    std::array<SegmentImage, kImages> images{}; // es cs ss ds fs gs ldtr tr
    std::uint64_t gdt_base = 0, idt_base = 0;
    std::uint16_t gdt_limit = 0, idt_limit = 0;
    std::array<std::byte, XsaveArea::kBytes> xsave_image{};
};

template <typename M>
constexpr state::Field<Saved, M> own(std::uint16_t id, std::string_view name,
                                     M CpuState::* member) {
    return {id, name, static_cast<M Saved::*>(member), 1, state::Presence::Required};
}

constexpr auto kSchema = schema(
    "x86-cpu", 1, own(1, "gpr", &CpuState::gpr), own(2, "rip", &CpuState::rip),
    own(3, "rflags", &CpuState::rflags), own(4, "cr0", &CpuState::cr0),
    own(5, "cr2", &CpuState::cr2), own(6, "cr3", &CpuState::cr3), own(7, "cr4", &CpuState::cr4),
    own(8, "efer", &CpuState::efer), own(9, "xcr0", &CpuState::xcr0),
    field(10, "segments", &Saved::images), field(11, "gdt-base", &Saved::gdt_base),
    field(12, "gdt-limit", &Saved::gdt_limit), field(13, "idt-base", &Saved::idt_base),
    field(14, "idt-limit", &Saved::idt_limit), own(15, "cpl", &CpuState::cpl),
    own(16, "activity", &CpuState::activity), own(17, "sti-shadow", &CpuState::sti_shadow),
    own(18, "mov-ss-shadow", &CpuState::mov_ss_shadow),
    own(19, "nmi-blocked", &CpuState::nmi_blocked), own(20, "dr", &CpuState::dr),
    own(21, "dr6", &CpuState::dr6), own(22, "dr7", &CpuState::dr7),
    own(23, "star", &CpuState::star), own(24, "lstar", &CpuState::lstar),
    own(25, "cstar", &CpuState::cstar), own(26, "fmask", &CpuState::fmask),
    own(27, "kernel-gs-base", &CpuState::kernel_gs_base),
    own(28, "sysenter-cs", &CpuState::sysenter_cs),
    own(29, "sysenter-esp", &CpuState::sysenter_esp),
    own(30, "sysenter-eip", &CpuState::sysenter_eip), own(31, "tsc-offset", &CpuState::tsc_offset),
    own(32, "tsc-adjust", &CpuState::tsc_adjust), own(33, "tsc-aux", &CpuState::tsc_aux),
    own(34, "pat", &CpuState::pat), own(35, "misc-enable", &CpuState::misc_enable),
    own(36, "spec-ctrl", &CpuState::spec_ctrl), own(37, "mtrr-def-type", &CpuState::mtrr_def_type),
    own(38, "mtrr-fixed", &CpuState::mtrr_fixed),
    own(39, "mtrr-variable", &CpuState::mtrr_variable), own(40, "mc-banks", &CpuState::mc_banks),
    own(41, "mcg-status", &CpuState::mcg_status), own(42, "xss", &CpuState::xss),
    own(43, "debugctl", &CpuState::debugctl), own(44, "pdpte", &CpuState::pdpte),
    own(45, "pending-debug", &CpuState::pending_debug), field(46, "xsave", &Saved::xsave_image));

SegmentImage image_of(const Segment& segment) {
    return {segment.base, segment.limit, segment.selector, segment.access};
}
Segment segment_of(const SegmentImage& image) {
    return {image.base, image.limit, image.selector, image.access};
}

constexpr bool canonical(std::uint64_t value) {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(value << 16) >> 16) == value;
}

std::unexpected<base::Error> bad(const char* name) {
    return base::fail(base::Errc::Corrupt, std::string{"x86-cpu: "} + name + " cannot be a CPU's");
}

/// One register and the bits it may have.
struct MaskRule {
    const char* name;
    std::uint64_t CpuState::* member;
    std::uint64_t allowed;
};

constexpr std::uint64_t kFlags = kArithmeticFlags | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_IOPL |
                                 FLAG_NT | FLAG_RF | FLAG_VM | FLAG_AC | FLAG_VIF | FLAG_VIP |
                                 FLAG_ID | 2;
constexpr std::uint64_t kCr0 = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP |
                               CR0_AM | CR0_NW | CR0_CD | CR0_PG;
constexpr std::uint64_t kCr4 = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE |
                               CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP |
                               CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP;
constexpr std::uint64_t kLow32 = 0xffff'ffff;

constexpr MaskRule kMaskRules[] = {
    {"rflags", &CpuState::rflags, kFlags},
    {"cr0", &CpuState::cr0, kCr0},
    {"cr3", &CpuState::cr3, (std::uint64_t{1} << 52) - 1},
    {"cr4", &CpuState::cr4, kCr4},
    {"efer", &CpuState::efer, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_AIBRSE},
    {"xcr0", &CpuState::xcr0, 7},
    {"xss", &CpuState::xss, 0},
    {"dr6", &CpuState::dr6, kLow32},
    {"dr7", &CpuState::dr7, 0xffff27ff},
    {"fmask", &CpuState::fmask, kLow32},
    {"sysenter-cs", &CpuState::sysenter_cs, kLow32},
    {"tsc-aux", &CpuState::tsc_aux, kLow32},
    {"spec-ctrl", &CpuState::spec_ctrl, 0x407},
    {"mcg-status", &CpuState::mcg_status, 7},
    {"debugctl", &CpuState::debugctl, 2},
    {"pending-debug", &CpuState::pending_debug, 0xe00f},
};

struct CanonicalRule {
    const char* name;
    std::uint64_t CpuState::* member;
};
constexpr CanonicalRule kCanonicalRules[] = {
    {"lstar", &CpuState::lstar},
    {"cstar", &CpuState::cstar},
    {"kernel-gs-base", &CpuState::kernel_gs_base},
    {"sysenter-esp", &CpuState::sysenter_esp},
    {"sysenter-eip", &CpuState::sysenter_eip},
};

Result<void> check_registers(const CpuState& s) {
    for (const auto& rule : kMaskRules)
        if ((s.*rule.member & ~rule.allowed) != 0)
            return bad(rule.name);
    for (const auto& rule : kCanonicalRules)
        if (!canonical(s.*rule.member))
            return bad(rule.name);
    for (unsigned i = 0; i < 8; ++i) {
        const auto type = s.pat >> (8 * i) & 0xff;
        if (type > 7 || type == 2 || type == 3)
            return bad("pat");
    }
    return {};
}

/// Modes that contradict each other.
Result<void> check_modes(const CpuState& s) {
    const bool pe = (s.cr0 & CR0_PE) != 0, pg = (s.cr0 & CR0_PG) != 0;
    const bool lma = (s.efer & EFER_LMA) != 0, lme = (s.efer & EFER_LME) != 0;
    const bool vm = (s.rflags & FLAG_VM) != 0;
    if ((pg && !pe) || ((s.cr0 & CR0_NW) != 0 && (s.cr0 & CR0_CD) == 0))
        return bad("cr0");
    if (lma != (lme && pg) || (lma && (s.cr4 & CR4_PAE) == 0))
        return bad("efer");
    if ((s.cr4 & CR4_PCIDE) != 0 && !lma)
        return bad("cr4");
    if ((s.rflags & 2) == 0 || (vm && (!pe || lma)))
        return bad("rflags");
    if ((s.xcr0 & 1) == 0 || (s.xcr0 & 6) == 4)
        return bad("xcr0");
    if (s.cpl > 3 || (!pe && s.cpl != 0) || (vm && s.cpl != 3))
        return bad("cpl");
    if (s.activity > Activity::Shutdown)
        return bad("activity");
    return {};
}

Result<void> check_segments(const CpuState& s) {
    const bool lma = (s.efer & EFER_LMA) != 0;
    const bool code64 = lma && s.segment[Cs].is_long();
    for (unsigned i = 0; i < kSegments; ++i) {
        const std::uint64_t base = s.segment[i].base;
        if (i >= Fs ? !canonical(base) : !code64 && base > kLow32)
            return bad("segment base");
    }
    if (code64 && s.segment[Cs].default_big())
        return bad("cs access");
    for (const std::uint64_t base : {s.gdtr.base, s.idtr.base, s.ldtr.base, s.tr.base})
        if (!canonical(base))
            return bad("descriptor table base");
    return {};
}

std::uint64_t word_at(const XsaveArea& area, std::size_t offset) {
    std::uint64_t word = 0;
    std::memcpy(&word, area.bytes.data() + offset, sizeof word);
    return word;
}

/// What the host's XRSTOR would fault on.
Result<void> check_xsave(const XsaveArea& area) {
    constexpr std::size_t kHeader = 512, kMxcsr = 24;
    if ((word_at(area, kMxcsr) & 0xffff'0000) != 0 || (word_at(area, kHeader) & ~7ull) != 0)
        return bad("xsave");
    for (std::size_t i = 8; i < 64; i += 8)
        if (word_at(area, kHeader + i) != 0)
            return bad("xsave header");
    return {};
}

} // namespace

void save_cpu_state(state::Encoder& to, const CpuState& state) {
    Saved saved;
    static_cast<CpuState&>(saved) = state;
    for (std::size_t i = 0; i < kSegments; ++i)
        saved.images[i] = image_of(state.segment[i]);
    saved.images[kLdtr] = image_of(state.ldtr);
    saved.images[kTr] = image_of(state.tr);
    saved.gdt_base = state.gdtr.base;
    saved.gdt_limit = state.gdtr.limit;
    saved.idt_base = state.idtr.base;
    saved.idt_limit = state.idtr.limit;
    saved.xsave_image = state.xsave.bytes;
    state::encode(to, kSchema, saved);
}

base::Result<void> load_cpu_state(state::Decoder& from, CpuState& state) {
    Saved saved;
    DOPPEL_TRY_VOID(state::decode(from, kSchema, saved));
    for (std::size_t i = 0; i < kSegments; ++i)
        saved.segment[i] = segment_of(saved.images[i]);
    saved.ldtr = segment_of(saved.images[kLdtr]);
    saved.tr = segment_of(saved.images[kTr]);
    saved.gdtr = {saved.gdt_base, saved.gdt_limit};
    saved.idtr = {saved.idt_base, saved.idt_limit};
    saved.xsave.bytes = saved.xsave_image;
    const CpuState& loaded = saved;
    DOPPEL_TRY_VOID(validate_cpu_state(loaded));
    state = loaded;
    return {};
}

base::Result<void> validate_cpu_state(const CpuState& state) {
    DOPPEL_TRY_VOID(check_registers(state));
    DOPPEL_TRY_VOID(check_modes(state));
    DOPPEL_TRY_VOID(check_segments(state));
    return check_xsave(state.xsave);
}

} // namespace doppel::cpu::x86
