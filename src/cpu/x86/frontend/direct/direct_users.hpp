// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Users' code of one vCPU on the host's CPU itself.
///
/// Problem: a software MMU costs users' code a factor of two or three, and no cleverness of a
/// translator takes it away. The host has an MMU; its processes are what users' code runs in best.
///
/// Constraints: the guest must not notice, nor reach anything but its own memory. A visit costs 10
/// to 30 µs (two switches of process, and what the tracer asks), a page that is mapped about 10: so
/// only those gain who compute for long between visits to their kernel.
///
/// Design (docs/decisions/017): a user whom the guest's clock interrupts several times in a row is
/// computing. From then on users of that address space run in a StubProcess. Whatever stops it, be
/// it a system call, an exception or an interrupt, the vCPU goes on from the same instruction as
/// ever, in the interpreter or in translated code, until it is a user's turn again. Pages are
/// mapped when they are missed, with rights that the soft TLB's entry would have, and go when that
/// would. What it costs is weighed against what it gains all the time; who loses runs translated
/// again, and is tried later and later.
#include <array>
#include <bitset>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "cpu/write_marks.hpp"
#include "cpu/x86/frontend/direct/guarded_calls.hpp"
#include "cpu/x86/frontend/direct/guards.hpp"
#include "cpu/x86/frontend/direct/page_scan.hpp"
#include "cpu/x86/frontend/direct/user_space.hpp"
#include "cpu/x86/frontend/dispatch/user_runner.hpp"
#include "cpu/x86/system/paging.hpp"

namespace doppel::cpu::x86::frontend {

class DirectUsers final : public UserRunner {
public:
    /// Makes pages of RAM such whose writes are told of (code_written()); false: try again.
    using WatchCode = std::function<bool(std::span<const std::uint64_t> gpa_pages)>;
    /// Where users' code that was executed begins in the page: offsets.
    using Executed = std::function<std::vector<std::uint16_t>(std::uint64_t gpa_page)>;
    enum class When : std::uint8_t {
        Worthwhile,
        Always, // for tests: all users, all the time
    };

    /// `ram`: the file of guest RAM, whose pages are in the order of their numbers.
    /// `calls`: shared by all vCPUs.
    DirectUsers(SystemContext& cx, int ram, std::uint64_t ram_pages, When when, WatchCode watch,
                Executed executed, GuardedCalls& calls);

    /// Before each run of the vCPU: whether the guest's counter is the host's, and what IA32_TSC's
    /// offset is added to.
    void set_tsc(bool host_tsc, std::uint64_t host_offset) {
        host_tsc_ = host_tsc;
        host_tsc_offset_ = host_offset;
    }
    bool select(std::uint64_t key) override;
    bool interrupted(std::uint64_t key) override;
    void prime(const translator::TlbInstance& tlb, const std::uint16_t* entries,
               std::size_t count) override;
    Next run(const std::atomic<std::uint64_t>& attention, std::uint64_t calm) override;
    void interrupted_elsewhere() override { samples_ = 0; }
    void let_go() noexcept override { SameCpu::let_go(); }
    bool selected() const override { return current_ != nullptr && current_->direct; }
    void flush(const TlbFlush& flush) override;
    void drop_write(const std::byte* host_page) override;
    void drop_all_writes() override;
    void drop_code() override;
    bool holds_pages() const noexcept override { return holds_pages_; }
    void poke() noexcept override;
    /// Any thread: a page of watched code was written to.
    /// True: the caller changes `attention`, pokes it and waits, whereupon nobody executes what was
    /// there before.
    bool code_written(std::uint64_t ram_page) noexcept;

    /// Any thread: returns when a run() that was to end has ended. It needs no lock for that.
    void wait_until_out() const noexcept;

    struct Counts {
        std::uint64_t runs = 0, begun = 0, given_up = 0;
        std::uint64_t memory = 0, calls = 0, other = 0; // why runs ended, when not poked
        std::uint64_t refused = 0;                      // of `memory`: the code is secretive
        std::uint64_t pages = 0;                        // mapped
        std::uint64_t cycles = 0;                       // of the host's TSC, in users' code
    };
    const Counts& counts() const { return counts_; }

private:
    /// An address space and what is thought of its users.
    struct Space {
        std::uint64_t key = 0; // 0: not in use
        bool direct = false;
        bool primed = false;
        std::uint64_t last_use = 0;
        std::int64_t credit = 0;                     // cycles it may cost from now on …
        std::int64_t gains = 0;                      // what it has gained since it began …
        std::int64_t balance = 0;                    // … less what that has cost
        unsigned failures = 0;                       // in a row
        std::uint64_t not_before = 0;                // TSC: of the next attempt
        bool barred = false;                         // it does what cannot be done directly
        std::uint64_t missed_at = 0, missed_rip = 0; // what was served last
        unsigned fetches = 0;                        // of one instruction, missed in a row
        unsigned looping = 0; // times in a row that they were interrupted in a loop on registers
        std::uint64_t loop_at = 0; // where they went on in one translated
        std::uint64_t awaited = 0; // an address that the guest's kernel was to care for
        std::uint64_t ahead = 0;   // the end of what was mapped around the last miss …
        std::uint64_t window = 0;  // … and how much that was, bytes
        std::unique_ptr<UserSpace> users;
        std::vector<std::unique_ptr<UserSpace>> others; // with code that found no breakpoints there
        unsigned shortages = 0; // of breakpoints, since there was a new one of them
    };
    Space& find_space(std::uint64_t key);
    void note(); // in direct_keys and holds_pages_
    bool start(Space& space);
    bool give_process(Space& space);
    void retire(Space& space);
    bool give_other(Space& space);
    void take_others(Space& space);
    bool relieve(Space& space, std::uint64_t linear, std::size_t wanted);
    bool map_refusing(UserSpace& users, std::uint64_t linear, const UserSpace::Page& page,
                      const std::vector<std::uint16_t>& refused);
    void drop_written();
    void give_up(Space& space);
    bool eligible() const;
    bool may_see_tsc() const;
    bool prepare(Space& space, bool arrived);
    bool sync(UserSpace& users);
    StubProcess::Registers registers() const;
    void store(const StubProcess::Registers& registers);
    void adopt_selectors(const StubProcess::Registers& registers);
    void weigh(Space& space, std::uint64_t total, std::uint64_t ran);
    Next serve(const StubProcess::Result& result, bool& again);
    bool is_looping() const;
    void note_loop(Space& space, bool poked, std::uint64_t ran) const;
    bool goes_on_looping(Space& space) const;
    void look_again();
    bool is_rdtscp() const;
    void note_instruction(std::uint64_t rip);

    enum class Wanted : std::uint8_t { Any, Write, Code };
    bool serve_memory(Space& space, std::uint64_t address, bool& translate);
    bool map_missed(Space& space, std::uint64_t address, Wanted wanted);
    using Begins = std::bitset<4096>;
    using Places = std::vector<std::uint16_t>; // offsets in a page
    /// A page of it.
    struct Code {
        Places secretive; // what must not run there
        Places seen;      // where instructions began that the process could not execute or fetch
        std::vector<Guard> guards; // of `secretive`, once they were wanted
        bool has_rdtscp = false;
    };
    static Places without_cpuid(Places secretive, const std::byte* code);
    Places begins_in(std::uint64_t gpa) const;
    Begins surely_begin(std::uint64_t linear, std::uint64_t gpa, const std::byte* code);
    bool map(UserSpace& users, std::uint64_t linear, Wanted wanted);
    void map_all(UserSpace& users, std::span<const std::uint64_t> pages);
    static bool can_map(UserSpace& users, std::uint64_t linear);
    bool is_text(const Translation& to) const;
    void map_around(Space& space, std::uint64_t linear, bool code);
    Code& watch(const RamView::Region& region, std::uint64_t gpa, std::uint64_t linear);
    const std::byte* bytes_at(std::uint64_t linear) const;
    Places guarded(Code& code, std::uint64_t linear, std::uint64_t ram_page,
                   const std::byte* bytes);
    Places places_of(const Code& code, std::uint64_t page, std::uint64_t ram_page);
    void look_for_calls(const Code& code, std::uint64_t page, std::uint64_t ram_page);
    void note_returns(const std::vector<std::pair<std::uint64_t, const Code*>>& pages);
    void note_return(const Code& code, std::uint64_t page, GuardedCalls::Call call);
    void look_at_stack(Space& space);
    bool enter_guarded(std::uint64_t rip);
    void note_entry(const Guard& guard, std::uint64_t page, std::uint64_t ram_page);
    bool find_slot(std::uint64_t begin, std::uint64_t& slot) const;
    void drop_guarded();
    std::uint64_t root() const { return current_->key & ~std::uint64_t{0xfff}; }
    void refuse_alike(std::uint64_t linear, const Places& places);
    bool read(std::uint64_t linear, std::span<std::uint8_t> bytes) const;
    bool is_behind_call(std::uint64_t linear) const;
    bool map_code(UserSpace& users, std::uint64_t linear, const RamView::Region& region,
                  std::uint64_t gpa, UserSpace::Page page, Wanted wanted);
    template <typename Do> static void for_all_of(Space& space, Do&& act) {
        if (space.users != nullptr)
            act(*space.users);
        for (const auto& other : space.others)
            act(*other);
    }
    template <typename Do> void for_all(Do&& act) {
        for (auto& space : spaces_)
            for_all_of(space, act);
    }

    static constexpr std::size_t kSpaces = 32; // of which so many have a process at most: kDirect
    static constexpr std::size_t kDirect = std::tuple_size_v<decltype(direct_keys)>;
    static constexpr std::size_t kOthers = 3, kAllOthers = 6; // of one space, of all
    SystemContext& cx_;
    const int ram_;
    const When when_;
    const WatchCode watch_;
    const Executed executed_;
    GuardedCalls& calls_;
    std::uint64_t calls_seen_ = 0; // their count
    cpu::WriteMarks code_marks_;   // pages that may be executed
    std::array<Space, kSpaces> spaces_{};
    Space* current_ = nullptr;
    std::uint64_t uses_ = 0;
    std::uint64_t round_trip_ = ~std::uint64_t{0}; // cycles to run nothing: the least seen
    bool host_tsc_ = false;
    std::uint64_t host_tsc_offset_ = 0;
    bool impossible_ = false; // the host lets us not
    bool holds_pages_ = false;
    std::uint64_t sampled_ = 0; // TSC: a user of this address space was interrupted
    std::uint64_t sampled_key_ = 0;
    unsigned samples_ = 0;                         // in a row
    std::unordered_map<std::uint64_t, Code> code_; // of watched pages, by their number
    std::mutex written_mutex_;
    std::vector<std::uint64_t> written_; // pages of RAM with code
    std::atomic<bool> code_written_{false};
    std::vector<std::unique_ptr<UserSpace>> spare_;   // others that nobody has
    std::size_t others_ = 0;                          // that there are, spare ones among them
    std::vector<std::unique_ptr<UserSpace>> retired_; // somebody may be about to poke their process
    std::atomic<StubProcess*> running_{nullptr};
    std::atomic<std::uint64_t> visits_{0};
    Counts counts_;
};

} // namespace doppel::cpu::x86::frontend
