// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which pages of one address space of the guest are mapped in a process of the host's: a TLB of
/// which the host's MMU makes use. What is dropped is unmapped before users' code runs there again,
/// which is soon enough: it does not run while anybody drops.
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cpu/x86/frontend/direct/stub_process.hpp"

namespace doppel::cpu::x86::frontend {

class UserSpace {
public:
    using Rights = StubProcess::Rights;
    struct Page {
        std::uint64_t ram_page = 0; // number
        Rights rights = Rights::Read;
        std::uint8_t page_shift = 12; // of the guest's page
        bool guarded = false;         // of its code only the beginning of functions is refused
        bool has_rdtscp = false;      // so the process refuses it
    };

    explicit UserSpace(std::unique_ptr<StubProcess> stub) : stub_{std::move(stub)} {}
    StubProcess& stub() { return *stub_; }
    bool empty() const { return pages_.empty(); }

    // --- by linear address ---
    const Page* find(std::uint64_t linear) const;
    bool has_code(std::uint64_t linear) const; // that may be executed
    void map(std::uint64_t linear, const Page& page);
    /// One with code in which the instructions at these offsets are to be refused. False: there are
    /// too many.
    [[nodiscard]] bool map_code(std::uint64_t linear, const Page& page,
                                const std::vector<std::uint16_t>& refused);
    /// What `other` has, but for code in which instructions are refused.
    void adopt(const UserSpace& other);
    /// How many map_code() can refuse.
    std::size_t most_refused() const {
        return stub_->has_breakpoints() ? StubProcess::kBreakpoints : 0;
    }
    /// How many without taking one from another page, for that at `linear`.
    std::size_t free_breakpoints(std::uint64_t linear) const;
    /// A page wants so many and there are less. True: often enough that it costs less if the
    /// process refuses CPUID, as it does now; all code is dropped.
    [[nodiscard]] bool refuse_cpuid_for(std::size_t wanted);
    void stop_refusing(); // CPUID, unless that costs nothing
    /// From now on RDTSC and RDTSCP are refused, until this has not been asked for in many visits.
    void refuse_tsc();
    bool has_copies() const { return stub_->copies() != 0; }
    /// Where map_code() with Rights::Execute will take the code from; if has_copies().
    std::byte* next_copy();
    static bool is_code(Rights rights) {
        return rights == Rights::ReadExecute || rights == Rights::Execute;
    }
    void drop(std::uint64_t linear);

    // --- flushed: whether it is as it was is looked up by the next sync() ---
    void doubt(std::uint64_t linear); // the guest's page there, of whatever size
    void doubt_all();

    void drop_all();
    void start_over(); // for another address space
    void drop_write(std::uint64_t ram_page);
    void drop_code(std::uint64_t ram_page);
    void drop_all_writes();
    void drop_all_code();
    void drop_guarded();
    std::vector<std::uint64_t> guarded_pages() const; // linear addresses
    /// Of code: where its breakpoints are, offsets, ascending.
    std::vector<std::uint16_t> refused_at(std::uint64_t linear) const;
    /// Of a page, by its linear address.
    using StillSo = std::function<bool(std::uint64_t linear, const Page& page)>;
    /// Arranges what has been mapped and dropped. False: cannot; then nothing is mapped.
    [[nodiscard]] bool sync(const StillSo& still_so);

private:
    template <typename Which> void drop_if(Which which);
    template <typename Which> void drop_of(std::uint64_t ram_page, Which which);
    void forget(std::uint64_t number, const Page& page);
    void note(std::uint64_t linear, const Page& page);
    void drop_code_at(std::uint64_t linear);
    void show_tsc();
    bool guards(std::uint64_t place) const;
    std::uint64_t& breakpoint_for(std::uint64_t page);
    void resolve(const StillSo& still_so);
    bool arrange();

    std::unique_ptr<StubProcess> stub_;
    StubProcess::Breakpoints breakpoints_{};        // where they should be …
    bool moved_ = false;                            // … but are not yet
    std::size_t next_ = 0;                          // of breakpoints_, to be taken from its page
    unsigned visits_ = 0, shortages_ = 0;           // the latter in a window of the former
    unsigned tsc_refused_at_ = 0;                   // visit
    std::size_t copies_ = 0;                        // in use
    std::unordered_map<std::uint64_t, Page> pages_; // by linear page number
    std::unordered_multimap<std::uint64_t, std::uint64_t> by_ram_page_;
    std::unordered_set<std::uint64_t> large_; // numbers of 2 MiB, pages of the guest's
    struct Range {
        std::uint64_t first, count; // page numbers
    };
    std::vector<Range> doubted_;
    bool all_doubted_ = false;
    std::vector<std::uint64_t> unmapped_; // these are to be dropped there, too
    bool all_unmapped_ = false;
    bool huge_ = false; // a page larger than 2 MiB was mapped
};

} // namespace doppel::cpu::x86::frontend
