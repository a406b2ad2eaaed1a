// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the translating vCPUs of one VM share: the code cache, and the means to make all of them
/// stand still.
///
/// Self-modifying code. A page becomes a code page before its bytes are translated: its state gets
/// kPageCode, then every vCPU that has marked itself as its writer (WriteMarks) stands still and
/// loses its write permission. Its bytes are read while its state says so and nobody has marked it.
/// From then on each write to it takes a slow path that ends in GuestMemory, which tells us before
/// and after the bytes change: blocks that overlap the write die both times, so that a block made
/// in between from half-changed bytes dies as well.
#include <bitset>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "cpu/rendezvous.hpp"
#include "cpu/translator/cache/code_cache.hpp"
#include "cpu/translator/cache/jit_dump.hpp"
#include "cpu/translator/cache/translation_cost.hpp"
#include "cpu/x86/frontend/block_scan.hpp"
#include "cpu/x86/frontend/direct/guarded_calls.hpp"
#include "cpu/x86/frontend/dispatch/dispatcher.hpp"
#include "cpu/x86/frontend/translator_vcpu.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::cpu::x86::frontend {

class DirectUsers;

class World final : public memory::CodeWatcher {
public:
    /// Errors: OutOfMemory; Io and others of JitDump. Becomes the CodeWatcher of `memory`, which
    /// outlives it.
    static base::Result<std::unique_ptr<World>> create(memory::GuestMemory& memory,
                                                       const TranslatorOptions& options);
    ~World() override;

    translator::CodeCache& cache() { return *cache_; }
    const Stubs& stubs() const { return stubs_; }
    const translator::TranslationCost& cost() const { return cost_; }
    /// Where the vCPUs stand still; safepoints are at the top of the dispatcher's loop.
    cpu::Rendezvous& rendezvous() { return rendezvous_; }

    struct Member {
        cpu::Rendezvous::Participant* vcpu;
        Dispatcher* dispatcher;
        cpu::WriteMarks* marks;
        DirectUsers* direct; // may be null
    };
    void attach(const Member& member);
    void detach(const cpu::Rendezvous::Participant& vcpu);

    // --- vCPU threads; `caller`: whose ---
    translator::Block* translate(cpu::Rendezvous::Participant& caller,
                                 const translator::BlockKey& key, std::uint64_t rip,
                                 const std::byte* host, const std::byte* second,
                                 const FeatureSet& features);
    /// See ColdPath.
    bool find_loop(const translator::Block& head, const std::byte* host, const FeatureSet& features,
                   LoopCounter& counter);
    translator::Block* make_loop(translator::Block& head, std::uint64_t rip, const std::byte* host,
                                 const FeatureSet& features);
    /// Writes to the page are told of from now on (DirectUsers::code_written()), until one is.
    /// False: try again.
    bool watch_code(cpu::Rendezvous::Participant& caller, std::span<const std::uint64_t> gpa_pages);
    /// Where blocks of users' 64-bit code begin in the page: offsets.
    std::vector<std::uint16_t> users_blocks(std::uint64_t gpa_page);
    GuardedCalls& guarded_calls() { return guarded_calls_; }
    void link(const Site& site, std::uint64_t site_address, translator::Block& target);
    bool link_landing(const Site& site, std::uint64_t site_address, const std::uint8_t* host);

    /// Of the call that ends at `behind`. Valid until that code is evicted.
    const CheckSite& find_check(const std::uint8_t* behind);
    /// The code with `host_code` runs often: all blocks of its page will have their checks in line.
    /// They are made anew in the order in which they run. Single ones would be made in the order in
    /// which they happen to be met, and lie apart from what runs before and after them.
    void promote(const std::uint8_t* host_code);

    /// Unlink, Evict, EvictArena, Safepoint; see Chaos. The caller is between two blocks.
    void disturb(cpu::Rendezvous::Participant& caller, Chaos::Act act, std::uint64_t random);

    // --- any thread ---
    void on_code_write(memory::Gpa gpa, std::uint64_t length_bytes,
                       Moment moment) noexcept override;

    static constexpr unsigned kBusyBits = 18;

private:
    World(memory::GuestMemory& memory, const TranslatorOptions& options)
        : memory_{memory}, ram_{view_of(memory)}, spoil_{options.spoil}, tuning_{options.tuning} {}
    using Caller = cpu::Rendezvous::Participant;
    void make_code_pages(Caller& caller, std::span<const std::uint64_t> gpa_pages);
    bool is_code_page(std::uint64_t gpa_page);
    std::vector<Member> writers(const RamView::State& state);
    enum class EvictWhen { Full, Always };
    void evict(Caller& caller, EvictWhen when);
    void tell_of_write(std::uint64_t gpa_page);
    translator::Block* make_block(const translator::BlockKey& key, std::uint64_t rip,
                                  const std::byte* host, const std::byte* second,
                                  const FeatureSet& features);
    std::uint32_t bytes_to_loop(const translator::BlockKey& key, const std::byte* host) const;
    bool scan_head(const translator::Block& head, const std::byte* host,
                   const FeatureSet& features);
    translator::Block* emit_block(const translator::BlockKey& key, std::uint64_t rip,
                                  std::uint64_t begun_ticks);
    void note(const translator::Block& block, std::uint64_t rip);

    memory::GuestMemory& memory_;
    const RamView ram_;
    void (*const spoil_)(std::uint8_t* begin, std::uint8_t* end);
    const description::Tuning tuning_;
    std::unique_ptr<translator::JitDump> jit_dump_; // may be null
    std::unique_ptr<translator::CodeCache> cache_;
    Stubs stubs_;
    std::uint16_t next_far_link_ = 0; // see TlbInstance
    translator::TranslationCost cost_;
    GuardedCalls guarded_calls_;
    /// By hashes of their addresses; of the cache's mutex. What is taken for one by chance has its
    /// checks in line, too.
    std::bitset<std::size_t{1} << kBusyBits> busy_pages_;
    cpu::Rendezvous rendezvous_;
    std::mutex mutex_; // of all below
    std::vector<Member> members_;
};

} // namespace doppel::cpu::x86::frontend
