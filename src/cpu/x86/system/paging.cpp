// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/paging.hpp"

#include "cpu/x86/system/ram_write.hpp"

namespace doppel::cpu::x86 {

namespace {

using memory::Gpa;

constexpr std::uint64_t kP = 1, kRw = 2, kUs = 4, kA = 1 << 5, kD = 1 << 6, kPs = 1 << 7,
                        kG = 1 << 8, kNx = std::uint64_t{1} << 63;
constexpr std::uint32_t kErrorPresent = 1, kErrorWrite = 2, kErrorUser = 4, kErrorReserved = 8,
                        kErrorFetch = 16;

constexpr std::uint64_t bits(unsigned high, unsigned low) {
    return (~std::uint64_t{0} >> (63 - high)) & (~std::uint64_t{0} << low);
}

enum class Outcome : std::uint8_t { Mapped, NotPresent, Reserved };

/// The entries a walk went through, for their A and D bits.
struct Path {
    std::uint64_t gpa[4];
    std::uint64_t value[4];
    unsigned count = 0;
    bool wide = true; // entries of 8 bytes
};

[[gnu::always_inline]] inline std::uint64_t load_entry(SystemContext& cx, std::uint64_t gpa,
                                                       bool wide) {
    const std::byte* host = cx.ram.host(gpa);
    if (host == nullptr) [[unlikely]]
        return cx.board.mmio_read(gpa, wide ? 8 : 4);
    return wide ? __atomic_load_n(reinterpret_cast<const std::uint64_t*>(host), __ATOMIC_RELAXED)
                : __atomic_load_n(reinterpret_cast<const std::uint32_t*>(host), __ATOMIC_RELAXED);
}

[[gnu::always_inline]] inline void finish(Translation& out, const Path& path, std::uint64_t frame,
                                          std::uint64_t linear, unsigned shift,
                                          std::uint64_t rights) {
    const std::uint64_t offset = bits(shift - 1, 0);
    const std::uint64_t leaf = path.value[path.count - 1];
    out = {.gpa = Gpa{(frame & ~offset) | (linear & offset)},
           .page_shift = static_cast<std::uint8_t>(shift),
           .user = (rights & kUs) != 0,
           .writable = (rights & kRw) != 0,
           .executable = true,
           .dirty = (leaf & kD) != 0,
           .global = (leaf & kG) != 0};
}

/// Reserved bits of a large-page entry, besides those of the physical width.
constexpr std::uint64_t large_reserved(unsigned level) {
    return level == 2 ? bits(29, 13) : bits(20, 13);
}

/// PAE and 4-level tables from `level` (3 = PML4, 1 = page directory) down.
[[gnu::always_inline]] inline Outcome walk_wide(SystemContext& cx, std::uint64_t linear,
                                                std::uint64_t table, unsigned level,
                                                std::uint64_t reserved, Path& path,
                                                Translation& out) {
    const std::uint64_t frame_mask = bits(51, 12);
    std::uint64_t rights = kUs | kRw, any = 0;
    for (;; --level) {
        const unsigned shift = 12 + 9 * level;
        const std::uint64_t gpa = table + (linear >> shift & 0x1ff) * 8;
        const std::uint64_t entry = load_entry(cx, gpa, true);
        path.gpa[path.count] = gpa;
        path.value[path.count++] = entry;
        if ((entry & kP) == 0)
            return Outcome::NotPresent;
        rights &= entry;
        any |= entry;
        const bool large = level != 0 && (entry & kPs) != 0;
        std::uint64_t forbidden = reserved;
        if (large) [[unlikely]] {
            if (level == 3 || (level == 2 && !cx.traits.huge_pages))
                return Outcome::Reserved;
            forbidden |= large_reserved(level);
        }
        if ((entry & forbidden) != 0) [[unlikely]]
            return Outcome::Reserved;
        if (level == 0 || large) {
            finish(out, path, entry & frame_mask, linear, shift, rights);
            out.executable = (any & kNx) == 0 || (cx.state.efer & EFER_NXE) == 0;
            return Outcome::Mapped;
        }
        table = entry & frame_mask;
    }
}

/// Bits that must be zero in every present entry of 8 bytes.
[[gnu::always_inline]] inline std::uint64_t reserved_wide(const SystemContext& cx,
                                                          unsigned highest) {
    const std::uint64_t width = ~std::uint64_t{0} << cx.traits.physical_bits;
    const std::uint64_t nx = (cx.state.efer & EFER_NXE) == 0 ? kNx : 0;
    return (width & bits(highest, 0)) | nx;
}

Outcome walk_pae(SystemContext& cx, std::uint64_t linear, Path& path, Translation& out) {
    const std::uint64_t pdpte = cx.state.pdpte[linear >> 30 & 3];
    if ((pdpte & kP) == 0)
        return Outcome::NotPresent;
    return walk_wide(cx, linear, pdpte & bits(51, 12), 1, reserved_wide(cx, 62), path, out);
}

/// 4 MiB pages: address bits 39:32 stand in bits 20:13, as many as the CPU has (table 4-4).
std::uint64_t pse36_reserved(unsigned physical_bits) {
    const unsigned width = physical_bits < 40 ? physical_bits : 40;
    return bits(21, width - 19);
}

Outcome walk_narrow(SystemContext& cx, std::uint64_t linear, Path& path, Translation& out) {
    path.wide = false;
    const std::uint64_t pde_gpa = (cx.state.cr3 & bits(31, 12)) + (linear >> 22 & 0x3ff) * 4;
    const std::uint64_t pde = load_entry(cx, pde_gpa, false);
    path.gpa[0] = pde_gpa;
    path.value[0] = pde;
    path.count = 1;
    if ((pde & kP) == 0)
        return Outcome::NotPresent;
    if ((pde & kPs) != 0 && (cx.state.cr4 & CR4_PSE) != 0) {
        if ((pde & pse36_reserved(cx.traits.physical_bits)) != 0)
            return Outcome::Reserved;
        const std::uint64_t frame = (pde & bits(31, 22)) | (pde & bits(20, 13)) << 19;
        finish(out, path, frame, linear, 22, pde);
        return Outcome::Mapped;
    }
    const std::uint64_t pte_gpa = (pde & bits(31, 12)) + (linear >> 12 & 0x3ff) * 4;
    const std::uint64_t pte = load_entry(cx, pte_gpa, false);
    path.gpa[1] = pte_gpa;
    path.value[1] = pte;
    path.count = 2;
    if ((pte & kP) == 0)
        return Outcome::NotPresent;
    finish(out, path, pte & bits(31, 12), linear, 12, pde & pte);
    return Outcome::Mapped;
}

[[gnu::always_inline]] inline Outcome walk(SystemContext& cx, std::uint64_t linear, Path& path,
                                           Translation& out) {
    Outcome outcome = Outcome::Mapped;
    if ((cx.state.efer & EFER_LMA) != 0) [[likely]]
        outcome =
            walk_wide(cx, linear, cx.state.cr3 & bits(51, 12), 3, reserved_wide(cx, 51), path, out);
    else if ((cx.state.cr4 & CR4_PAE) != 0)
        outcome = walk_pae(cx, linear, path, out);
    else
        outcome = walk_narrow(cx, linear, path, out);
    if ((cx.state.cr4 & CR4_PGE) == 0)
        out.global = false;
    return outcome;
}

/// Compare-and-exchange of one entry; false when it has changed meanwhile. Entries outside RAM stay
/// as they are.
bool replace_entry(SystemContext& cx, std::uint64_t gpa, std::uint64_t old, std::uint64_t value,
                   bool wide) {
    const RamView::Region* region = cx.ram.find(gpa);
    if (region == nullptr)
        return true;
    const std::uint64_t offset = gpa - region->base;
    std::byte* host = region->host + offset;
    const std::uint64_t size = wide ? 8 : 4;
    const RamWrite write{cx, region->states[offset >> 12], gpa, size};
    if (wide) {
        return __atomic_compare_exchange_n(reinterpret_cast<std::uint64_t*>(host), &old, value,
                                           false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    auto expected = static_cast<std::uint32_t>(old);
    return __atomic_compare_exchange_n(reinterpret_cast<std::uint32_t*>(host), &expected,
                                       static_cast<std::uint32_t>(value), false, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE);
}

/// A in every entry, D in the leaf for a write; false when the tables changed under us.
[[gnu::always_inline]] inline bool mark_used(SystemContext& cx, const Path& path, bool write) {
    for (unsigned i = 0; i < path.count; ++i) {
        const std::uint64_t wanted = kA | (write && i + 1 == path.count ? kD : 0);
        const std::uint64_t old = path.value[i];
        if ((old & wanted) != wanted) [[unlikely]]
            if (!replace_entry(cx, path.gpa[i], old, old | wanted, path.wide))
                return false;
    }
    return true;
}

std::uint16_t allowed_ignoring_dirty(const SystemContext& cx, const Translation& t) {
    constexpr auto bit = [](AccessType access, Privilege privilege) {
        return permission(access, privilege);
    };
    const bool smap = (cx.state.cr4 & CR4_SMAP) != 0, smep = (cx.state.cr4 & CR4_SMEP) != 0;
    unsigned set = bit(AccessType::Read, Privilege::SupervisorAc);
    if (t.writable || (cx.state.cr0 & CR0_WP) == 0)
        set |= bit(AccessType::Write, Privilege::SupervisorAc);
    if (!t.user || !smap)
        set |= set >> 3; // as Supervisor
    if (t.executable && !(t.user && smep))
        set |= static_cast<unsigned>(bit(AccessType::Execute, Privilege::Supervisor) |
                                     bit(AccessType::Execute, Privilege::SupervisorAc));
    if (t.user)
        set |=
            static_cast<unsigned>(bit(AccessType::Read, Privilege::User) |
                                  (t.writable ? bit(AccessType::Write, Privilege::User) : 0) |
                                  (t.executable ? bit(AccessType::Execute, Privilege::User) : 0));
    return static_cast<std::uint16_t>(set);
}

[[gnu::cold]] bool page_fault(SystemContext& cx, std::uint64_t linear, AccessType access,
                              Privilege privilege, std::uint32_t cause) {
    std::uint32_t code = cause;
    if (access == AccessType::Write)
        code |= kErrorWrite;
    if (privilege == Privilege::User)
        code |= kErrorUser;
    const bool nx = (cx.state.cr4 & CR4_PAE) != 0 && (cx.state.efer & EFER_NXE) != 0;
    if (access == AccessType::Execute && (nx || (cx.state.cr4 & CR4_SMEP) != 0))
        code |= kErrorFetch;
    cx.fault = {.vector = Vector::PF, .has_error_code = true, .error_code = code, .cr2 = linear};
    return false;
}

} // namespace

bool translate(SystemContext& cx, std::uint64_t linear, AccessType access, Privilege privilege,
               Translation& out) {
    if ((cx.state.cr0 & CR0_PG) == 0) {
        out = {.gpa = Gpa{linear & 0xffff'ffff}};
        return true;
    }
    for (;;) {
        Path path;
        const Outcome outcome = walk(cx, linear, path, out);
        if (outcome == Outcome::NotPresent)
            return page_fault(cx, linear, access, privilege, 0);
        if (outcome == Outcome::Reserved)
            return page_fault(cx, linear, access, privilege, kErrorPresent | kErrorReserved);
        if ((allowed_ignoring_dirty(cx, out) & permission(access, privilege)) == 0)
            return page_fault(cx, linear, access, privilege, kErrorPresent);
        const bool write = access == AccessType::Write;
        if (mark_used(cx, path, write)) [[likely]] {
            out.dirty |= write;
            return true;
        }
    }
}

std::uint16_t allowed(const SystemContext& cx, const Translation& translation) {
    if ((cx.state.cr0 & CR0_PG) == 0)
        return 0x1ff;
    constexpr std::uint16_t writes =
        static_cast<std::uint16_t>(permission(AccessType::Write, Privilege::User) |
                                   permission(AccessType::Write, Privilege::Supervisor) |
                                   permission(AccessType::Write, Privilege::SupervisorAc));
    const std::uint16_t set = allowed_ignoring_dirty(cx, translation);
    return translation.dirty ? set : static_cast<std::uint16_t>(set & ~writes);
}

bool translate_quietly(SystemContext& cx, std::uint64_t linear, Gpa& out) {
    if ((cx.state.cr0 & CR0_PG) == 0) {
        out = Gpa{linear & 0xffff'ffff};
        return true;
    }
    Path path;
    Translation translation;
    if (walk(cx, linear, path, translation) != Outcome::Mapped)
        return false;
    out = translation.gpa;
    return true;
}

bool translate_used(SystemContext& cx, std::uint64_t linear, Translation& out) {
    Path path;
    if ((cx.state.cr0 & CR0_PG) == 0 || walk(cx, linear, path, out) != Outcome::Mapped)
        return false;
    for (unsigned i = 0; i < path.count; ++i)
        if ((path.value[i] & kA) == 0)
            return false;
    return true;
}

bool load_pdptes(SystemContext& cx, std::uint64_t cr3) {
    const std::uint64_t reserved =
        bits(2, 1) | bits(8, 5) | ~std::uint64_t{0} << cx.traits.physical_bits;
    std::array<std::uint64_t, 4> loaded{};
    for (std::uint64_t i = 0; i < 4; ++i) {
        loaded[i] = load_entry(cx, (cr3 & bits(31, 5)) + i * 8, true);
        if ((loaded[i] & kP) != 0 && (loaded[i] & reserved) != 0)
            return cx.gp(0);
    }
    cx.state.pdpte = loaded;
    return true;
}

void flush_tlb(SystemContext& cx, const TlbFlush& flush) {
    cx.tlb.flush(flush);
    if (cx.tlb_listener != nullptr)
        cx.tlb_listener->flush_tlb(flush);
}

} // namespace doppel::cpu::x86
