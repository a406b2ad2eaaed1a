// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One soft TLB as translated code sees it.
///
/// Problem: every guest load and store must be checked against the guest's page tables, and no host
/// MMU may do it for us (a guest has 48 bits of address, we have 47; mapping a page costs
/// microseconds). So each access looks up its page in a table, inline, and the price of that lookup
/// is the price of the whole machine.
///
/// Constraints: as few instructions and scratch registers as can be; one compare-and-branch that
/// catches a missing page, a missing permission *and* an access that crosses into the next page; no
/// work at all when the guest changes address space or privilege.
///
/// Design (docs/decisions/002): a direct-mapped table with the arrays side by side,
///
///     rtag[n]  wtag[n]   page address (low 12 bits zero) that may be read / written
///     addend[n]          host address - guest address
///     page_host[n]       host address of the page
///     branches[m]        guest RIP -> translated code
///     stack_page     stack_addend     the same for one writable page, the one rsp points into
///     limits             4096 - n
///     branch_salt        which of TlbSet's shared branches are this instance's
///     far_links[f]       the same as branches, but each direct branch to another page has a number
///     landings[l]        guest RIP + 8 * r15: returns to it may go on where the landing leads
///
/// and a register (r15) that points to the instance in force. There is one instance for each
/// (PCID, privilege view); changing view means loading r15 and nothing else. A write tag is absent
/// while a write to the page must be seen: D bit clear in the guest's tables, page holds
/// translated code, dirty log running, MMIO.
///
/// Example: store of 8 bytes to [rdi+16]
///     lea   r13, [rdi+16]
///     bextr r14, r13, r15             ; r15's low 16 bits are start 12, length log2(n)
///     xor   r13, [r15 + r14*8 + wtag] ; the offset in the page, if the tag matches …
///     cmp   r13, [r15 + limit]        ; 4096 - 8: … and small enough not to cross
///     ja    miss
///     mov   r14, [r15 + r14*8 + addend]
///     mov   [rdi + r14 + 16], value
/// An address of another form is gone after the compare, but then r13 is the offset in the page:
///     mov   r14, [r15 + r14*8 + page_host]
///     mov   [r13 + r14], value
/// An empty tag is 0 (entry 0: 0x1000), an address that cannot be looked up in that entry; likewise
/// an empty branch tag.
#include <array>
#include <cstddef>
#include <cstdint>

namespace doppel::cpu::translator {

struct TlbInstance {
    static constexpr unsigned kPageBits = 14; // log2 of the number of entries
    static constexpr std::size_t kPages = std::size_t{1} << kPageBits;
    static constexpr unsigned kBranchBits = 13;
    static constexpr std::size_t kBranches = std::size_t{1} << kBranchBits;
    /// r15 - address of the instance; instances are aligned to 64 KiB.
    static constexpr std::uint32_t kControl = kPageBits << 8 | 12;
    static constexpr std::size_t kAlignment = 0x10000;

    /// Room for other things; puts the hot words in reach of an 8-bit displacement from r15.
    std::array<std::byte, kControl - 0x7c> unused;
    std::uint64_t stack_page; // guest address
    std::uint64_t stack_addend;
    std::uint64_t branch_salt; // in bits 63:48
    /// What the offset of an access in its page is compared with: a displacement of 8 bits is three
    /// bytes less than an immediate. See limit_of().
    std::array<std::uint64_t, 27> limits;

    // The gaps keep equal indices of the arrays out of the same cache sets.
    std::array<std::uint64_t, kPages> rtag;
    std::array<std::uint64_t, 40> gap1;
    std::array<std::uint64_t, kPages> wtag;
    std::array<std::uint64_t, 40> gap2;
    std::array<std::uint64_t, kPages> addend;
    std::array<std::uint64_t, 40> gap3;
    std::array<std::uint64_t, kPages> page_host;
    std::array<std::uint64_t, 40> gap5;
    struct BranchEntry {
        std::uint64_t tag; // guest RIP
        const std::uint8_t* host;
    };
    std::array<BranchEntry, kBranches> branches;
    /// Views of users only. Direct branches to RIP 0 have none: the empty tag is 0 everywhere, so
    /// that memory which nobody has touched is a table.
    static constexpr unsigned kFarLinkBits = 16;
    static constexpr std::size_t kFarLinks = std::size_t{1} << kFarLinkBits;
    std::array<BranchEntry, kFarLinks> far_links;
    /// Likewise users only. What 0 would stand for is not a canonical address, as r15 is above
    /// 1 << 44 wherever Linux maps memory: so any RIP may be compared with an empty one.
    static constexpr std::size_t kLandings = std::size_t{1} << 17;
    std::array<std::uint64_t, kLandings> landings;
    std::uint64_t landing_bias() const {
        return 8 * (reinterpret_cast<std::uint64_t>(this) + kControl);
    }

    static constexpr std::size_t kNoLimit = ~std::size_t{0};
    /// Which of `limits` is 4096 - bytes.
    static constexpr std::size_t limit_of(std::uint32_t bytes) {
        if (bytes == 1 || bytes == 2 || bytes == 4)
            return bytes / 2;
        return bytes != 0 && bytes % 8 == 0 && bytes <= 192 ? 2 + bytes / 8 : kNoLimit;
    }
    void set_limits() {
        for (std::uint32_t bytes = 1; bytes <= 192; ++bytes)
            if (limit_of(bytes) != kNoLimit)
                limits.data()[limit_of(bytes)] = 4096 - bytes;
    }
    static constexpr std::size_t index(std::uint64_t linear) { return linear >> 12 & (kPages - 1); }
    static constexpr std::uint64_t empty_tag(std::size_t index) { return index == 0 ? 0x1000 : 0; }
    /// The same hash as in translated code.
    static constexpr std::size_t branch_index(std::uint64_t rip) {
        return (rip ^ rip >> 12) >> 1 & (kBranches - 1);
    }
    static constexpr std::uint64_t kLastEmptyBranchTag = 2;
    static constexpr std::uint64_t empty_branch_tag(std::size_t index) {
        return index == 0 ? kLastEmptyBranchTag : 0;
    }
};
static_assert(offsetof(TlbInstance, rtag) % 64 == 0);
static_assert(sizeof(TlbInstance::BranchEntry) == 16);
static_assert(offsetof(TlbInstance, branches) % 64 == 0);
static_assert(offsetof(TlbInstance, far_links) % 64 == 0);
static_assert(TlbInstance::kControl - offsetof(TlbInstance, stack_page) <= 128);
static_assert(offsetof(TlbInstance, rtag) - TlbInstance::kControl <= 127);

} // namespace doppel::cpu::translator
