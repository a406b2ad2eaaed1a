// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The loop around translated code: finds the block for the next instruction, enters it, serves the
/// reason why it came back. Compiled for general registers only, so that the guest's vectors stay
/// where they are; what needs ordinary C++ goes through ColdPath.
#include <atomic>
#include <cstdint>

#include "cpu/translator/cache/code_cache.hpp"
#include "cpu/translator/mmu/tlb_set.hpp"
#include "cpu/vcpu.hpp"
#include "cpu/x86/frontend/dispatch/chaos.hpp"
#include "cpu/x86/frontend/dispatch/loop_profile.hpp"
#include "cpu/x86/frontend/dispatch/user_runner.hpp"
#include "cpu/x86/frontend/dispatch/vector_state.hpp"
#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/stubs.hpp"
#include "cpu/x86/interpreter/interpreter.hpp"
#include "cpu/x86/system/system.hpp"
#include "description/tuning.hpp"

namespace doppel::cpu::x86::frontend {

/// Ordinary C++; the guest's vectors have been stored. vCPU thread.
class ColdPath {
public:
    /// Makes the block (or finds that another vCPU has made it meanwhile). `host` are the bytes at
    /// key.gpa, now at `rip`, `second` those of the second page if the key names one. Never
    /// nullptr.
    virtual translator::Block* translate(const translator::BlockKey& key, std::uint64_t rip,
                                         const std::byte* host, const std::byte* second) = 0;
    /// Lets the unlinked jump at `site` lead to `target` from now on.
    virtual void link(const Site& site, std::uint64_t site_address, translator::Block& target) = 0;
    /// Lets the landing at `site` lead to `host` from now on, in views that know its number. False:
    /// that is not the code behind its call.
    virtual bool link_landing(const Site& site, std::uint64_t site_address,
                              const std::uint8_t* host) = 0;
    /// Whether `head` begins a loop that could be translated as one; if so, its counter. `host` are
    /// the bytes at its beginning.
    virtual bool find_loop(const translator::Block& head, const std::byte* host,
                           LoopCounter& counter) = 0;
    /// Translates it so, in the place of `head`. nullptr: it stays as it is.
    virtual translator::Block* make_loop(translator::Block& head, std::uint64_t rip,
                                         const std::byte* host) = 0;
    /// Of the shared check whose call ends at `behind`. Valid until Dispatcher::drop_code().
    virtual const CheckSite& find_check(const std::uint8_t* behind) = 0;
    /// The page of the block with this code is to be made anew, for speed: see World.
    virtual void promote(const std::uint8_t* host_code) = 0;
    virtual bool has_event() = 0;
    /// Another thread wants all vCPUs to stand still: returns when it is done.
    virtual void safepoint() = 0;
    /// What an act of Chaos asks of the code cache or the other vCPUs.
    virtual void disturb(Chaos::Act act, std::uint64_t random) = 0;

protected:
    ~ColdPath() = default;
};

/// Sees every block that is executed, with a meter; links and branch caches are out of use
/// meanwhile.
class BlockObserver {
public:
    /// The block of at most `instructions` at state.rip will be entered.
    virtual void before(std::uint32_t instructions) = 0;
    /// It has been left; `executed` as InstructionMeter counts.
    virtual void after(std::uint64_t executed) = 0;

protected:
    ~BlockObserver() = default;
};

/// vCPU thread only, except notify() and kick().
class Dispatcher final : public TlbListener {
public:
    enum class Result : std::uint8_t { Kick, Limit, Halted, Shutdown };

    Dispatcher(Frame& frame, SystemContext& cx, Interpreter& interpreter, translator::TlbSet& tlbs,
               translator::CodeCache& cache, const Stubs& stubs, VectorState& vectors,
               ColdPath& cold)
        : frame_{frame}, cx_{cx}, interpreter_{interpreter}, tlbs_{tlbs}, cache_{cache},
          stubs_{stubs}, vectors_{vectors}, cold_{cold} {
        frame_.header.attention = calm();
    }

    Result run();
    /// Any thread, async-signal-safe.
    void notify() noexcept {
        frame_.header.attention = FrameHeader::kAttention;
        if (runner_ != nullptr)
            runner_->poke();
    }
    void kick() noexcept {
        kicked_ = true;
        notify();
    }
    /// CpuState was written by somebody else.
    void state_changed();
    void set_observer(BlockObserver* observer) {
        observer_ = observer;
        unlinked_ = observer != nullptr;
    }
    /// For tests: no links, no branch caches, and run() returns after `blocks` blocks or
    /// interpreted instructions (0: no limit).
    void set_block_limit(std::uint64_t blocks) {
        unlinked_ = true;
        block_limit_ = blocks;
    }
    /// Before the first run().
    void set_tuning(const description::Tuning& tuning) {
        link_ = tuning.links;
        fixed_code_ = tuning.fixed_code;
        cache_branches_ = tuning.branches;
        paired_returns_ = tuning.paired_returns;
        forget_landings();
        loops_ = tuning.loops && tuning.loop_threshold != 0;
        loop_profile_.set_threshold(tuning.loop_threshold);
        frame_.header.shared_calls = frame_.header.shared_calls_left = tuning.busy_calls;
    }
    /// Before the first run(); outlives us.
    void set_user_runner(UserRunner* runner) { runner_ = runner; }
    /// Before the first run(); 0: none.
    void set_chaos(std::uint64_t seed, unsigned vcpu) { chaos_.seed(seed, vcpu); }
    /// Before the first run(): blocks count what they execute, and run() returns at the limit.
    void set_meter(InstructionMeter* meter) { meter_ = meter; }
    void set_tsc(bool host_tsc, std::uint64_t host_offset) {
        host_tsc_ = host_tsc;
        host_tsc_offset_ = host_offset;
    }
    /// Asks for a visit to ColdPath::safepoint(). Any thread.
    void request_safepoint() noexcept {
        safepoint_ = true;
        notify();
    }
    /// The vCPU stands still: its writes to the page must be seen from now on.
    void drop_write(translator::TlbSet::HostPages pages);
    void drop_all_writes();
    void drop_code();

    void flush_tlb(const TlbFlush& flush) noexcept override;

    void count(VcpuStats& stats) const;
    /// How often the interpreter was called for each Op.
    const std::uint64_t* interpreted() const { return interpreted_; }
    std::uint64_t exits(Exit why) const { return exits_[static_cast<std::size_t>(why)]; }

private:
    std::uint64_t calm() const { return reinterpret_cast<std::uint64_t>(&frame_.state); }
    std::uint64_t site_address() const {
        return reinterpret_cast<std::uint64_t>(stubs_.base) + frame_.header.exit_site;
    }
    Site site() const;
    std::uint64_t site_rip(const Site& at) const { return frame_.header.page_va + at.page_offset; }

    bool promote_busy_code();
    bool attend(Result& result);
    void disturb();
    void apply_changes();
    void update_mode();
    void update_fast_calls();
    /// Translated code changes CPL by itself.
    std::uint32_t block_mode(std::uint64_t rip) const {
        return features_ | (cx_.state.cpl == 3 ? mode::kUser : 0) |
               (code32_       ? mode::kCode32
                : fixed_code_ ? mode::fixed(rip)
                              : 0);
    }
    bool translatable() const;
    void select_tlb();
    void update_code_size();
    void update_guards();
    void update_segments();
    CodeSize code_size() const { return code32_ ? CodeSize::Bits32 : CodeSize::Bits64; }
    /// The last byte of an access or instruction can be there.
    bool addressable(std::uint64_t linear, std::uint64_t bytes) const;
    bool run_translated(Result& result);
    bool run_users(Result& result);
    void select_users();
    void begin_users();
    std::uint64_t space_key() const;
    /// The instance in force may hold branches, or else users would run on by themselves.
    bool keeps_branches() const {
        return cache_branches_ && !unlinked_ && !(runs_users_ && cx_.state.cpl == 3);
    }
    void flush_all();
    bool step_slowly(Result& result);
    bool interpret(Result& result);
    bool deliver(Result& result);
    bool after_step(StepResult step, Result& result);

    /// Host address to enter for state.rip, nullptr: a fault was delivered or the interpreter must.
    const std::uint8_t* find_entry(std::uint32_t variant, bool& fault);
    translator::Block* find_block(std::uint64_t rip, std::uint32_t variant, CodePage& page,
                                  bool& fault);
    translator::Block* block_in(std::uint64_t rip, const CodePage& page, std::uint32_t variant,
                                bool& fault);
    Exit enter(const std::uint8_t* at);
    // With a meter.
    void settle(Exit why, std::uint64_t granted);
    bool at_limit() const { return meter_ != nullptr && meter_->left() == 0; }
    void count_fault();
    /// True: go on in translated code at header.resume.
    bool serve(Exit why, Result& result, bool& leave);
    /// The check that translated code has left.
    struct FailedCheck {
        Site site;
        std::uint64_t again = 0;           // where it begins, or its call with r13 = the address
        std::uint64_t passed = 0;          // behind it
        const CheckSite* shared = nullptr; // if it is one
    };
    const CheckSite& shared_check();
    FailedCheck failed_check() const;
    bool check_again(const FailedCheck& check, std::uint64_t linear);
    void recover_flags(const FailedCheck& check);
    bool serve_check(Result& result, bool& leave);
    bool serve_miss(const FailedCheck& check, Result& result, bool& leave);
    bool serve_fault(const FailedCheck& check, Result& result, bool& leave);
    bool serve_stack_miss(const FailedCheck& check, Result& result, bool& leave);
    bool serve_group_miss(const FailedCheck& check, Result& result, bool& leave);
    bool enter_variant(bool& leave, Result& result);
    bool serve_link(Result& result, bool& leave);
    bool visit_loop(translator::Block*& head, const std::byte* host);
    bool serve_branch(Exit why, Result& result, bool& leave);
    void enter_far_link(std::uint16_t number);
    void enter_landing(const Site& at, std::uint64_t address);
    void forget_landings();
    bool serve_host_fault(Result& result, bool& leave);
    bool runs_in(std::uint64_t gpa_page);
    bool fill(std::uint64_t linear, bool write, std::byte*& host, bool& fault);
    bool resume_at(std::uint64_t address);
    bool resume_block(const std::uint8_t* entry);
    bool compare_first();
    bool bounce(const FailedCheck& check, std::uint64_t linear);
    bool enter_rip(std::uint64_t rip, std::uint32_t variant, bool& leave, Result& result);

    Frame& frame_;
    SystemContext& cx_;
    Interpreter& interpreter_;
    translator::TlbSet& tlbs_;
    translator::CodeCache& cache_;
    const Stubs& stubs_;
    VectorState& vectors_;
    ColdPath& cold_;
    InstructionMeter* meter_ = nullptr;
    std::uint64_t executed_ = 0;  // by this vCPU, with a meter
    std::uint64_t suspended_ = 0; // instructions of the block that was left, to be executed yet
    bool near_limit_ = false;     // the next block would pass it
    BlockObserver* observer_ = nullptr;
    bool observed_ = false;                    // this block …
    std::uint64_t observed_from_ = 0;          // … from this executed_ on
    const translator::Block* found_ = nullptr; // what find_entry() had to look for
    std::uint32_t variant_ = 0;                // of the next block, while observed
    bool unlinked_ = false;
    bool link_ = true, cache_branches_ = true; // see Tuning
    bool fixed_code_ = true;
    bool paired_returns_ = true;
    bool loops_ = true;            // likewise
    UserRunner* runner_ = nullptr; // none: users are translated
    bool runs_users_ = false;      // those of the address space in force
    /// Shared checks that have failed lately, by where they were called.
    struct KnownCheck {
        std::uint32_t behind = 0;
        const CheckSite* site = nullptr;
    };
    std::array<KnownCheck, 1024> known_checks_{};
    LoopProfile loop_profile_;
    Chaos chaos_;
    bool curtailed_ = false; // by chaos: translated code was given less than is left
    std::uint64_t block_limit_ = 0;
    std::atomic<bool> kicked_{false};
    std::atomic<bool> safepoint_{false};
    std::uint32_t features_ =
        ~0u; // mode bits but for kUser, kCode32; the branch caches were filled for them
    std::uint64_t permission_bits_ = 0; // CR0.WP, CR4.SMEP, SMAP, EFER.NXE behind the TLBs' entries
    bool event_hint_ = true;            // the InterruptPort may have something
    bool service_ = true;               // look before the next instruction
    bool translatable_ = false;
    bool code32_ = false;       // of what is translatable
    bool supervisor32_ = false; // what the views of a supervisor hold branches of
    bool host_tsc_ = false;
    std::uint64_t host_tsc_offset_ = 0;
    std::uint64_t entries_ = 0;
    std::uint64_t interpreted_[static_cast<std::size_t>(Op::Count)] = {};
    std::uint64_t exits_[static_cast<std::size_t>(Exit::Count)] = {};
    std::uint64_t misses_ = 0;
    std::uint64_t fallbacks_ = 0;
};

} // namespace doppel::cpu::x86::frontend
