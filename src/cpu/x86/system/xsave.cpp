// SPDX-License-Identifier: Apache-2.0
/// The guest's registers are CpuState::xsave in standard format with 64-bit FIP and FDP; its
/// header's XSTATE_BV says which components are in use. FCS and FDS are deprecated
/// (CPUID.7.0:EBX[13]): zero. XSAVEOPT and XSAVES use the init optimisation, not the modified one.
#include "cpu/x86/system/xsave.hpp"

#include "cpu/x86/system/segment_access.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kX87 = 1, kSse = 2, kAvx = 4, kCompacted = std::uint64_t{1} << 63;
constexpr std::uint32_t kFip = 8, kFdp = 16, kMxcsr = 24, kSt = 32, kXmm = 160, kXmmEnd = 416,
                        kHeader = 512, kYmm = 576, kStEnd = 160;
constexpr std::uint32_t kMxcsrDefault = 0x1f80, kMxcsrDefined = 0xffff;
constexpr std::uint16_t kFcwDefault = 0x37f;

using Byte = std::byte;

template <typename T> [[gnu::always_inline]] inline T get(const Byte* area, std::uint32_t offset) {
    T value;
    __builtin_memcpy(&value, area + offset, sizeof value);
    return value;
}
template <typename T>
[[gnu::always_inline]] inline void put(Byte* area, std::uint32_t offset, T value) {
    __builtin_memcpy(area + offset, &value, sizeof value);
}
/// Multiples of 8 bytes.
void copy_words(Byte* to, const Byte* from, std::uint32_t bytes) {
    for (std::uint32_t i = 0; i < bytes; i += 8)
        put(to, i, get<std::uint64_t>(from, i));
}
void zero_words(Byte* to, std::uint32_t bytes) {
    for (std::uint32_t i = 0; i < bytes; i += 8)
        put(to, i, std::uint64_t{0});
}

/// What differs between 64-bit code and the rest.
struct Shape {
    bool wide_pointers;      // FIP and FDP as 64-bit offsets
    std::uint32_t xmm_bytes; // of XMM0..7 or 0..15, and as much of the YMM halves
};
Shape shape_of(const SystemContext& cx, std::uint32_t operand_size) {
    return {operand_size == 8, cx.code64() ? 256u : 128u};
}

Byte* registers(SystemContext& cx) { return cx.state.xsave.bytes.data(); }
std::uint64_t in_use(SystemContext& cx) { return get<std::uint64_t>(registers(cx), kHeader); }
void set_in_use(SystemContext& cx, std::uint64_t set, std::uint64_t clear) {
    put(registers(cx), kHeader, (in_use(cx) & ~clear) | set);
}

void init_x87(Byte* area) {
    zero_words(area, kMxcsr);
    put(area, 0, kFcwDefault);
    zero_words(area + kSt, kStEnd - kSt);
}

/// Components that are not in use get their initial values, so that they can be read like others.
void normalise(SystemContext& cx) {
    Byte* area = registers(cx);
    const std::uint64_t used = in_use(cx);
    if ((used & kX87) == 0)
        init_x87(area);
    if ((used & kSse) == 0)
        zero_words(area + kXmm, kXmmEnd - kXmm);
    if ((used & kAvx) == 0)
        zero_words(area + kYmm, 256);
}

bool mxcsr_is_legal(std::uint32_t value) { return (value & ~kMxcsrDefined) == 0; }

// --- memory images; all transfers in pieces of at most 64 bytes, after the whole was probed ---

bool read_bytes(SystemContext& cx, std::uint64_t linear, Byte* to, std::uint32_t bytes) {
    for (std::uint32_t done = 0; done < bytes; done += 64) {
        const std::uint32_t piece = bytes - done < 64 ? bytes - done : 64;
        if (!read_linear(cx, linear + done, to + done, piece, data_privilege(cx)))
            return false;
    }
    return true;
}

bool write_bytes(SystemContext& cx, std::uint64_t linear, const Byte* from, std::uint32_t bytes) {
    for (std::uint32_t done = 0; done < bytes; done += 64) {
        const std::uint32_t piece = bytes - done < 64 ? bytes - done : 64;
        if (!write_linear(cx, linear + done, from + done, piece, data_privilege(cx)))
            return false;
    }
    return true;
}

/// FIP and FDP in the short form: offsets of 32 bits, selectors zero.
void shorten_pointers(Byte* image) {
    put(image, kFip, std::uint64_t{get<std::uint32_t>(image, kFip)});
    put(image, kFdp, std::uint64_t{get<std::uint32_t>(image, kFdp)});
}

bool write_x87(SystemContext& cx, std::uint64_t linear, const Shape& shape) {
    Byte head[kMxcsr];
    copy_words(head, registers(cx), kMxcsr);
    head[5] = Byte{0};
    if (!shape.wide_pointers)
        shorten_pointers(head);
    return write_bytes(cx, linear, head, kMxcsr) &&
           write_bytes(cx, linear + kSt, registers(cx) + kSt, kStEnd - kSt);
}

bool write_mxcsr(SystemContext& cx, std::uint64_t linear) {
    const std::uint32_t pair[2] = {get<std::uint32_t>(registers(cx), kMxcsr), kMxcsrDefined};
    return write_linear(cx, linear + kMxcsr, pair, sizeof pair, data_privilege(cx));
}

bool write_xmm(SystemContext& cx, std::uint64_t linear, const Shape& shape) {
    return write_bytes(cx, linear + kXmm, registers(cx) + kXmm, shape.xmm_bytes);
}

void take_x87(SystemContext& cx, const Byte* image, const Shape& shape) {
    Byte* area = registers(cx);
    copy_words(area, image, kMxcsr);
    area[5] = Byte{0};
    if (!shape.wide_pointers)
        shorten_pointers(area);
    copy_words(area + kSt, image + kSt, kStEnd - kSt);
    set_in_use(cx, kX87, 0);
}

void take_xmm(SystemContext& cx, const Byte* image, const Shape& shape) {
    copy_words(registers(cx) + kXmm, image + kXmm, shape.xmm_bytes);
    set_in_use(cx, kSse, 0);
}

/// Segmentation, alignment to `alignment` (#GP whatever AC says) and, for writes, every page.
bool locate(SystemContext& cx, SegmentIndex segment, std::uint64_t offset, std::uint32_t bytes,
            AccessType access, std::uint32_t alignment, std::uint64_t& linear) {
    if (!linear_address(cx, segment, offset, bytes, access, linear, 0))
        return false;
    if ((linear & (alignment - 1)) != 0)
        return cx.gp(0);
    return probe_linear(cx, linear, bytes, access, data_privilege(cx));
}

bool fx_available(SystemContext& cx) {
    if ((cx.state.cr0 & CR0_EM) != 0)
        return cx.ud();
    return (cx.state.cr0 & CR0_TS) == 0 || cx.raise(Vector::NM);
}

bool xsave_available(SystemContext& cx, bool privileged) {
    if ((cx.state.cr4 & CR4_OSXSAVE) == 0)
        return cx.ud();
    if (privileged && cx.state.cpl != 0)
        return cx.gp(0);
    return (cx.state.cr0 & CR0_TS) == 0 || cx.raise(Vector::NM);
}

std::uint64_t requested(const SystemContext& cx, bool supervisor) {
    const std::uint64_t mask = (cx.state.gpr[Rax] & 0xffff'ffff) | cx.state.gpr[Rdx] << 32;
    return mask & (cx.state.xcr0 | (supervisor ? cx.state.xss : 0));
}

// --- XSAVE ---

struct Save {
    XsaveForm form;
    std::uint64_t linear;
    std::uint64_t mask; // RFBM
    std::uint64_t used; // XINUSE as the instruction sees it
    Shape shape;

    bool compact() const { return form == XsaveForm::Xsavec || form == XsaveForm::Xsaves; }
    /// Components that are written.
    std::uint64_t written() const { return form == XsaveForm::Xsave ? mask : mask & used; }
};

bool save_components(SystemContext& cx, const Save& save) {
    const std::uint64_t written = save.written();
    const bool mxcsr = save.compact() ? (written & kSse) != 0 : (save.mask & (kSse | kAvx)) != 0;
    return ((written & kX87) == 0 || write_x87(cx, save.linear, save.shape)) &&
           (!mxcsr || write_mxcsr(cx, save.linear)) &&
           ((written & kSse) == 0 || write_xmm(cx, save.linear, save.shape)) &&
           ((written & kAvx) == 0 ||
            write_bytes(cx, save.linear + kYmm, registers(cx) + kYmm, save.shape.xmm_bytes));
}

bool save_header(SystemContext& cx, const Save& save) {
    std::uint64_t header[2] = {save.mask & save.used, save.mask | kCompacted};
    if (save.compact())
        return write_linear(cx, save.linear + kHeader, header, 16, data_privilege(cx));
    std::uint64_t old = 0;
    if (!load_linear(cx, save.linear + kHeader, old, data_privilege(cx)))
        return false;
    header[0] |= old & ~save.mask;
    return store_linear(cx, save.linear + kHeader, header[0], data_privilege(cx));
}

// --- XRSTOR ---

/// The header's rules (Vol. 1 §13.8, §13.12); `have` = XSTATE_BV.
bool check_header(SystemContext& cx, const Byte* image, XrstorForm form, std::uint64_t& have,
                  bool& compact) {
    const bool supervisor = form == XrstorForm::Xrstors;
    const std::uint64_t known = cx.state.xcr0 | (supervisor ? cx.state.xss : 0);
    const auto layout = get<std::uint64_t>(image, kHeader + 8);
    have = get<std::uint64_t>(image, kHeader);
    compact = (layout & kCompacted) != 0;
    std::uint64_t reserved = 0;
    for (std::uint32_t i = compact ? 16 : 8; i < (compact ? 64u : 24u); i += 8)
        reserved |= get<std::uint64_t>(image, kHeader + i);
    if (reserved != 0 || (supervisor && !compact))
        return cx.gp(0);
    if (!compact)
        return (have & ~known) == 0 || cx.gp(0);
    const bool offered = cx.features.has(IsaFeature::Xsavec);
    return (offered && (layout & ~kCompacted & ~known) == 0 &&
            (have & ~(layout & ~kCompacted)) == 0) ||
           cx.gp(0);
}

/// Back to the initial state: all registers in 64-bit code, the lower half elsewhere.
void reset_component(SystemContext& cx, std::uint32_t offset, std::uint64_t bit,
                     const Shape& shape) {
    zero_words(registers(cx) + offset, shape.xmm_bytes);
    if (shape.xmm_bytes == 256)
        set_in_use(cx, 0, bit);
}

struct Restore {
    std::uint64_t mask; // RFBM
    std::uint64_t have; // XSTATE_BV
    bool compact;
    Shape shape;
};

bool check_mxcsr(SystemContext& cx, const Byte* image, const Restore& restore,
                 std::uint32_t& mxcsr) {
    const std::uint64_t parts = restore.mask & (kSse | kAvx);
    mxcsr = get<std::uint32_t>(registers(cx), kMxcsr);
    if (restore.compact) {
        if ((restore.mask & kSse) != 0)
            mxcsr = (restore.have & kSse) != 0 ? get<std::uint32_t>(image, kMxcsr) : kMxcsrDefault;
    } else if (parts != 0) {
        mxcsr = get<std::uint32_t>(image, kMxcsr);
    }
    return mxcsr_is_legal(mxcsr) || cx.gp(0);
}

void restore_components(SystemContext& cx, const Byte* image, const Restore& restore) {
    const std::uint64_t load = restore.mask & restore.have, reset = restore.mask & ~restore.have;
    if ((load & kX87) != 0) {
        take_x87(cx, image, restore.shape);
    } else if ((reset & kX87) != 0) {
        init_x87(registers(cx));
        set_in_use(cx, 0, kX87);
    }
    if ((load & kSse) != 0)
        take_xmm(cx, image, restore.shape);
    else if ((reset & kSse) != 0)
        reset_component(cx, kXmm, kSse, restore.shape);
    if ((load & kAvx) != 0) {
        copy_words(registers(cx) + kYmm, image + kYmm, restore.shape.xmm_bytes);
        set_in_use(cx, kAvx, 0);
    } else if ((reset & kAvx) != 0) {
        reset_component(cx, kYmm, kAvx, restore.shape);
    }
}

} // namespace

std::uint32_t xsave_size(std::uint64_t mask) { return (mask & kAvx) != 0 ? 832 : 576; }
/// AVX, the only extended component, stands at the same place in the compacted format.
std::uint32_t xsave_compacted_size(std::uint64_t mask) { return xsave_size(mask); }

bool fxsave(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
            std::uint32_t operand_size) {
    std::uint64_t linear = 0;
    if (!fx_available(cx) || !locate(cx, segment, offset, kHeader, AccessType::Write, 16, linear))
        return false;
    normalise(cx);
    const Shape shape = shape_of(cx, operand_size);
    return write_x87(cx, linear, shape) && write_mxcsr(cx, linear) && write_xmm(cx, linear, shape);
}

bool fxrstor(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
             std::uint32_t operand_size) {
    std::uint64_t linear = 0;
    Byte image[kXmmEnd];
    if (!fx_available(cx) || !locate(cx, segment, offset, kHeader, AccessType::Read, 16, linear) ||
        !read_bytes(cx, linear, image, kXmmEnd))
        return false;
    const auto mxcsr = get<std::uint32_t>(image, kMxcsr);
    if (!mxcsr_is_legal(mxcsr))
        return cx.gp(0);
    normalise(cx);
    const Shape shape = shape_of(cx, operand_size);
    take_x87(cx, image, shape);
    take_xmm(cx, image, shape);
    put(registers(cx), kMxcsr, mxcsr);
    return true;
}

bool xsave(SystemContext& cx, XsaveForm form, SegmentIndex segment, std::uint64_t offset,
           std::uint32_t operand_size) {
    std::uint64_t linear = 0;
    const bool supervisor = form == XsaveForm::Xsaves;
    if (!xsave_available(cx, supervisor))
        return false;
    const std::uint64_t mask = requested(cx, supervisor);
    if (!locate(cx, segment, offset, xsave_size(mask), AccessType::Write, 64, linear))
        return false;
    normalise(cx);
    Save save{form, linear, mask, in_use(cx), shape_of(cx, operand_size)};
    if (save.compact() && get<std::uint32_t>(registers(cx), kMxcsr) != kMxcsrDefault)
        save.used |= kSse;
    return save_components(cx, save) && save_header(cx, save);
}

bool xrstor(SystemContext& cx, XrstorForm form, SegmentIndex segment, std::uint64_t offset,
            std::uint32_t operand_size) {
    std::uint64_t linear = 0;
    const bool supervisor = form == XrstorForm::Xrstors;
    if (!xsave_available(cx, supervisor))
        return false;
    Restore restore{requested(cx, supervisor), 0, false, shape_of(cx, operand_size)};
    const std::uint32_t bytes = xsave_size(restore.mask);
    Byte image[XsaveArea::kBytes];
    std::uint32_t mxcsr = 0;
    if (!locate(cx, segment, offset, bytes, AccessType::Read, 64, linear) ||
        !read_bytes(cx, linear, image, bytes) ||
        !check_header(cx, image, form, restore.have, restore.compact) ||
        !check_mxcsr(cx, image, restore, mxcsr))
        return false;
    normalise(cx);
    restore_components(cx, image, restore);
    put(registers(cx), kMxcsr, mxcsr);
    return true;
}

} // namespace doppel::cpu::x86
