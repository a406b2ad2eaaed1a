// SPDX-License-Identifier: Apache-2.0
#pragma once
/// All TLB instances of one vCPU and their bookkeeping: which are in use for which PCID, what is to
/// be emptied on a flush. vCPU thread only; general registers only (guest vectors may be live).
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "cpu/translator/mmu/tlb_instance.hpp"

namespace doppel::cpu::translator {

/// Privilege views of an address space. Their instances are TlbSet::kInstanceStride apart, in this
/// order: translated code goes from one to another by adding to r15. Two for users: their branch
/// caches hold targets in 64-bit code and in 32-bit code, which a process may mix.
enum class View : std::uint8_t { User, Kernel, KernelAc, User32 };

class TlbSet {
public:
    static constexpr std::size_t kViews = 4;
    static constexpr std::size_t kSpaces = 8;
    static constexpr std::size_t kInstances = kViews * kSpaces;
    static constexpr std::size_t kInstanceStride =
        (sizeof(TlbInstance) + TlbInstance::kAlignment - 1) & ~(TlbInstance::kAlignment - 1);
    /// Branches of all instances: where translated code looks when the instance's own branch cache,
    /// which is small, does not know. An entry is for the instance whose branch_salt it bears; all
    /// views of supervisors have one salt, and enter only what is in global pages. A new salt
    /// empties an instance's share at once.
    struct SharedBranch {
        std::uint64_t rip;
        std::uint64_t salted_host; // bits 63:48: the salt, never 0
    };
    static constexpr unsigned kSaltShift = 48;
    static constexpr std::uint64_t kLastSalt = 0xffff;
    static constexpr unsigned kSharedBits = 16;
    static constexpr std::size_t kSharedBranches = std::size_t{1} << kSharedBits;
    static constexpr std::size_t kMemoryBytes =
        kInstances * kInstanceStride + kSharedBranches * sizeof(SharedBranch);

    /// Stands for the stack page of an instance that knows none: what translated code accesses by
    /// it is harmless.
    struct NoStack {
        std::uint64_t page = 0;
        std::uint64_t addend = 0;
    };
    /// `memory`: kMemoryBytes of zeros, aligned to TlbInstance::kAlignment, owned by the caller.
    TlbSet(std::byte* memory, NoStack no_stack) : memory_{memory}, no_stack_{no_stack} {}
    SharedBranch* shared_branches() const {
        return reinterpret_cast<SharedBranch*>(memory_ + kInstances * kInstanceStride);
    }
    /// The same hash as in translated code.
    static constexpr std::size_t shared_index(std::uint64_t rip) {
        return (rip ^ rip >> kSharedBits) & (kSharedBranches - 1);
    }

    /// The instance of `view` in the address space `pcid`; recycles the least recently used space.
    TlbInstance* select(std::uint16_t pcid, View view);
    /// Translated code has changed the view by itself.
    void set_current(TlbInstance* tlb) {
        if (tlb != current_->tlb)
            current_ = &instance_of(tlb);
    }
    TlbInstance* current() const { return current_ == nullptr ? nullptr : current_->tlb; }

    struct Entry {
        std::uint64_t linear = 0;  // any address in the page
        std::byte* host = nullptr; // of the page
        bool writable = false;     // without any ceremony
        bool global = false;
        std::uint8_t page_shift = 12; // of the guest's page
    };
    /// Into the current instance.
    void insert(const Entry& entry);
    struct Branch {
        std::uint64_t rip = 0;
        const std::uint8_t* host = nullptr;
        bool global = false; // the page of rip is, so the entry outlives a change of address space
        std::uint8_t page_shift = 12;
    };
    void insert_branch(const Branch& branch);
    /// What the shared ones know of a user's branches goes into the instance's own. nullptr:
    /// nothing.
    const std::uint8_t* recall_branch(std::uint64_t rip);
    void drop_branch(std::uint64_t rip); // of the current instance
    /// Behind insert_branch(): the direct branch of this number, to the same target. For views of
    /// users; others have none.
    void insert_far_link(std::uint16_t number, const Branch& branch);
    /// Behind insert_branch(): the landing of this number leads to the code for `rip`. For views of
    /// users; others have none.
    void insert_landing(std::uint32_t number, std::uint64_t rip);
    /// The one to `rip`, if its entry's address ends with these bits.
    void drop_far_link(std::uint32_t address, std::uint64_t rip);
    /// What translated code finds among the shared ones. nullptr: nothing.
    const std::uint8_t* shared_branch(std::uint64_t rip) const;

    // --- flushes of all views ---
    void flush_all();
    void flush_non_global();
    void flush_pcid(std::uint16_t pcid); // non-global entries
    /// Every page that a guest page of any size at `linear` may cover: of `pcid`, and global ones.
    void flush_page(std::uint16_t pcid, std::uint64_t linear);
    /// Branch caches of all instances (code was dropped, or decodes differently now).
    void flush_branches();
    using HostPages = std::span<const std::byte* const>;
    /// Takes write permission from every entry of these host pages.
    void drop_write(HostPages pages);
    void drop_all_writes();

    /// Entries that the current instance has, or had since it was flushed: indices of its pages.
    const std::uint16_t* pages() const { return current_->touched.data(); }
    std::size_t page_count() const { return current_->touched_count; }

    std::uint64_t flushes() const { return flushes_; }

private:
    static constexpr std::size_t kFarLinkLot = 64;  // far links, or landings, emptied together
    using HostSet = std::array<std::uint64_t, 256>; // hash of host pages …
    template <std::size_t kSize> using Lots = std::array<std::uint64_t, kSize / kFarLinkLot / 64>;
    struct Instance {
        TlbInstance* tlb = nullptr; // null until its space is first used
        std::uint32_t touched_count = 0;
        bool branches_used = false;
        bool shares_branches = false; // under a salt of its own
        Lots<TlbInstance::kFarLinks> far_linked{};
        Lots<TlbInstance::kLandings> landed{};
        std::array<std::uint16_t, TlbInstance::kPages> touched;
        std::array<std::uint64_t, TlbInstance::kPages / 64> in_list{};
        std::array<std::uint64_t, TlbInstance::kPages / 64> global{};
        HostSet written{};                           // … that have a write tag
        std::array<std::uint64_t, 32> large{};       // hash of 2 MiB regions with larger pages
        std::array<std::uint64_t, 32> huge{};        // hash of 1 GiB regions with pages above 2 MiB
        std::array<std::uint64_t, 512> code_pages{}; // hash of pages with branch targets
        // Branch targets in pages that are not global.
        std::uint32_t local_branch_count = 0;
        std::array<std::uint16_t, TlbInstance::kBranches> local_branches;
        std::array<std::uint64_t, TlbInstance::kBranches / 64> branch_is_local{};
    };
    struct Space {
        std::uint16_t pcid = 0;
        bool used = false;
        std::uint64_t last_use = 0;
        std::array<Instance, kViews> views;
    };
    Space& space_for(std::uint16_t pcid);
    void prepare(Space& space);
    Instance& instance_of(const TlbInstance* tlb) {
        const auto offset = reinterpret_cast<const std::byte*>(tlb) - memory_;
        const std::size_t number = static_cast<std::size_t>(offset) / kInstanceStride;
        return spaces_.data()[number / kViews].views.data()[number % kViews];
    }
    bool supervisor_view() const {
        const auto offset = reinterpret_cast<const std::byte*>(current_->tlb) - memory_;
        const auto view =
            static_cast<View>(static_cast<std::size_t>(offset) / kInstanceStride % kViews);
        return view == View::Kernel || view == View::KernelAc;
    }
    void insert_shared(const Branch& branch);
    void empty_shared();
    void give_up_shared(Instance& instance);
    std::uint64_t new_salt();
    void start_salts_over();
    void set_supervisor_salt();
    void drop_stack(Instance& instance) const {
        instance.tlb->stack_page = no_stack_.page;
        instance.tlb->stack_addend = no_stack_.addend;
    }
    void empty(Instance& instance, bool keep_global);
    static void empty_branches(Instance& instance);
    static void empty_local_branches(Instance& instance);
    /// Those to [first, first + length), and landings.
    static void empty_far_links(Instance& instance, std::uint64_t first, std::uint64_t length);
    static void empty_entry(Instance& instance, std::size_t index);
    void flush_page_in(Instance& instance, std::uint64_t linear, bool own);
    static void note_written(Instance& instance, std::size_t index);
    void drop_write_in(Instance& instance, HostPages pages, const HostSet& dropped);
    static void note_size(Instance& instance, std::uint64_t linear, std::uint8_t page_shift);

    std::byte* memory_;
    NoStack no_stack_;
    std::array<Space, kSpaces> spaces_{};
    std::array<std::uint64_t, 32> shared_regions_{}; // hash of 2 MiB regions with such targets
    bool shared_used_ = false;
    bool shared_huge_ = false; // one is in a larger page
    std::uint64_t last_salt_ = 0;
    std::uint64_t supervisor_salt_ = 0; // as in TlbInstance; 0: none yet
    Instance* current_ = nullptr;
    std::uint64_t uses_ = 0;
    std::array<bool, 2> global_in_half_{}; // a global page was ever entered, by bit 63 of linear
    std::uint64_t flushes_ = 0;
};

} // namespace doppel::cpu::translator
