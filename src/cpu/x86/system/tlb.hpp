// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The system layer's own translation cache, used by linear_memory.hpp: direct-mapped, 4 KiB
/// entries tagged with the identity of the address space they were made in. Flushing a whole
/// address space gives it a new identity, so every flush but that of a single page is O(1).
/// Intel SDM Vol. 3A §4.10.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace doppel::cpu::x86 {

/// Who accesses. SMAP lets only SupervisorAc reach user pages; implicit supervisor accesses
/// (descriptor tables, TSS, stacks of a privilege change) are `Supervisor` whatever AC says.
enum class Privilege : std::uint8_t { User, Supervisor, SupervisorAc };
enum class AccessType : std::uint8_t { Read, Write, Execute };

/// Bit in a set of permissions.
[[gnu::always_inline]] constexpr inline std::uint16_t permission(AccessType access,
                                                                 Privilege privilege) {
    return static_cast<std::uint16_t>(
        1u << (static_cast<unsigned>(privilege) * 3 + static_cast<unsigned>(access)));
}

/// What the guest flushed.
struct TlbFlush {
    enum class Kind : std::uint8_t {
        All,       // every PCID, global pages included
        NonGlobal, // every PCID, without global pages
        Pcid,      // non-global pages of one PCID
        Page,      // the page (of any size) at `linear`: PCID `pcid` and global
    };
    Kind kind = Kind::All;
    std::uint16_t pcid = 0;
    std::uint64_t linear = 0;
};

/// An engine's own translation caches. vCPU thread; guest vector registers may be live.
class TlbListener {
public:
    virtual void flush_tlb(const TlbFlush& flush) noexcept = 0;

protected:
    ~TlbListener() = default;
};

struct TlbEntry {
    std::uint64_t page = 1;     // linear address of the page; 1 = empty
    std::uint64_t identity = 0; // of the address space, or of the global pages
    std::byte* host = nullptr;  // nullptr: not RAM
    std::uint64_t gpa = 0;      // of the page
    const std::atomic<std::uint8_t>* state = nullptr; // GuestMemory page state, with `host`
    std::uint16_t permissions = 0; // see permission(); a write bit implies that D is set
    std::uint8_t page_shift = 12;  // of the guest's page: 12, 21, 22, 30
};

class Tlb {
public:
    static constexpr std::size_t kEntries = 1024;

    /// Folded, or copying between places some multiple of 4 MiB apart would miss at each element.
    [[gnu::always_inline]] TlbEntry& slot(std::uint64_t linear) {
        return entries_[(linear >> 12 ^ linear >> 22) & (kEntries - 1)];
    }
    /// The entry that grants `wanted` at `linear`, or nullptr.
    [[gnu::always_inline]] const TlbEntry* lookup(std::uint64_t linear, std::uint16_t wanted) {
        const TlbEntry& entry = slot(linear);
        if (entry.page != (linear & ~std::uint64_t{0xfff}) || (entry.permissions & wanted) == 0 ||
            (entry.identity != local_ && entry.identity != global_))
            return nullptr;
        return &entry;
    }
    [[gnu::always_inline]] bool is_global(const TlbEntry& entry) const {
        return entry.identity == global_;
    }
    /// Puts in a translation of the current address space.
    void insert(TlbEntry entry, bool global);
    /// Makes the address space `pcid` current; its entries from earlier are still good.
    void switch_to(std::uint16_t pcid);
    void flush(const TlbFlush& flush);

    /// Translations put in, which is one per miss; flushes of any kind.
    std::uint64_t misses() const { return misses_; }
    std::uint64_t flushes() const { return flushes_; }

private:
    struct Space {
        std::uint16_t pcid = 0;
        std::uint64_t identity = 0; // 0 = free
    };
    static constexpr std::size_t kSpaces = 8;
    void forget(std::uint16_t pcid);
    void flush_page(std::uint64_t linear);
    static std::size_t region(std::uint64_t linear) {
        return (linear >> 21 & 1023) | (linear >> 63) << 10;
    }

    std::array<TlbEntry, kEntries> entries_{};
    std::array<Space, kSpaces> spaces_{};
    std::size_t next_space_ = 0; // replaced round robin
    std::uint64_t last_identity_ = 2;
    std::uint64_t local_ = 2;
    std::uint64_t global_ = 1;
    std::uint64_t misses_ = 0;
    std::uint64_t flushes_ = 0;
    std::uint16_t pcid_ = 0;
    /// Since the last full flush: 2 MiB regions (by a hash) in which a larger page than 4 KiB was
    /// entered, and whether one was larger than 4 MiB.
    std::array<std::uint64_t, 32> large_{};
    bool huge_ = false;
};

} // namespace doppel::cpu::x86
