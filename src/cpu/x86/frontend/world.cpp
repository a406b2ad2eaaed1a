// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/world.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/verify.hpp"
#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/block_translator.hpp"
#include "cpu/x86/frontend/direct/direct_users.hpp"
#include "cpu/x86/frontend/loop_scan.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;
using memory::Gpa;
using memory::GuestMemory;

namespace {

constexpr std::uint64_t kPageOffset = 0xfff;
static_assert(CodeCache::kArenas * CodeCache::kArenaLandings == TlbInstance::kLandings);

thread_local BlockScan t_scan;
thread_local BlockTranslator::Workspace t_space;

/// The blocks of one page and mode.
class BlocksOfPage final : public BlockFinder {
public:
    BlocksOfPage(const CodeCache& cache, const BlockKey& one) : cache_{cache}, key_{one} {
        key_.gpa &= ~kPageOffset;
    }
    bool exists(std::uint16_t page_offset) const override {
        BlockKey key = key_;
        key.gpa |= page_offset;
        return cache_.find(key) != nullptr;
    }

private:
    const CodeCache& cache_;
    BlockKey key_;
};

std::size_t busy_index(std::uint64_t gpa) {
    return (gpa >> 12) * 0x9e37'79b9'7f4a'7c15ull >> (64 - World::kBusyBits);
}

/// nullptr: there is none for flags that are neither in the slot nor in the register.
const std::uint8_t* link_entry(const Site& at, const Block& target) {
    const bool backward = (at.bits & Site::kBackward) != 0;
    if ((at.bits & Site::kMade) != 0 && target.has_made_entry() &&
        (target.made_writes & at.extra) == 0)
        return backward ? target.made_poll_entry() : target.made_entry();
    if ((at.bits & (Site::kInSlot | Site::kInRegister)) == 0)
        return nullptr;
    const bool slot =
        (at.bits & Site::kInSlot) != 0 &&
        (target.flags_wanted != FlagsWanted::InRegister || (at.bits & Site::kInRegister) == 0);
    if (backward)
        return slot ? target.slot_poll_entry() : target.native_poll_entry();
    return slot ? target.slot_entry() : target.native_entry();
}

} // namespace

base::Result<std::unique_ptr<World>> World::create(GuestMemory& memory,
                                                   const TranslatorOptions& options) {
    auto world = std::unique_ptr<World>{new World{memory, options}};
    world->cache_ = DOPPEL_TRY(CodeCache::create(options.code_bytes));
    if (!options.jit_dump.empty())
        world->jit_dump_ = DOPPEL_TRY(JitDump::create(options.jit_dump));
    CodeMemory& code = world->cache_->memory();
    Assembler assembler{code.write(), code.exec(), code.size()};
    world->stubs_ = emit_stubs(assembler);
    world->cache_->reserve((assembler.used() + 63) & ~std::size_t{63},
                           world->tuning_.cold_apart ? ColdCode::Apart : ColdCode::Behind);
    world->cache_->set_stale_entry(world->stubs_.exit(Exit::Stale, FlagPlace::Slot));
    if (world->jit_dump_ != nullptr)
        world->jit_dump_->add("doppel:stubs", {code.exec(), assembler.used()});
    memory.set_code_watcher(world.get());
    return world;
}

World::~World() { memory_.set_code_watcher(nullptr); }

void World::attach(const Member& member) {
    rendezvous_.attach(*member.vcpu);
    const std::scoped_lock lock{mutex_};
    members_.push_back(member);
}

void World::detach(const Caller& vcpu) {
    {
        const std::scoped_lock lock{mutex_};
        std::erase_if(members_, [&](const Member& member) { return member.vcpu == &vcpu; });
    }
    rendezvous_.detach(vcpu);
}

std::vector<World::Member> World::writers(const RamView::State& state) {
    const std::uint64_t page = ram_.page_number(state);
    std::vector<Member> found;
    const std::scoped_lock lock{mutex_};
    for (const Member& member : members_)
        if (member.marks->test(page))
            found.push_back(member);
    return found;
}

/// What is written to the page from now on is seen. The cache's mutex is held, without which no
/// page ceases to be a code page.
bool World::is_code_page(std::uint64_t gpa_page) {
    const RamView::State& state = ram_.state(gpa_page);
    return (state.load(std::memory_order_acquire) & GuestMemory::kPageCode) != 0 &&
           writers(state).empty();
}

void World::make_code_pages(Caller& caller, std::span<const std::uint64_t> gpa_pages) {
    std::vector<Member> known;
    // Of those that are written to, and no others: these may be by the time all stand still.
    std::vector<const std::byte*> hosts;
    std::vector<std::uint64_t> numbers;
    for (const std::uint64_t page : gpa_pages) {
        const RamView::State& state = ram_.state(page);
        if ((state.load(std::memory_order_acquire) & GuestMemory::kPageCode) == 0)
            memory_.set_code_page({page}, true);
        const std::vector<Member> writing = writers(state);
        if (!writing.empty()) {
            hosts.push_back(memory_.engine_page({page}));
            numbers.push_back(ram_.page_number(state));
        }
        for (const Member& member : writing)
            if (std::ranges::find(known, member.vcpu, &Member::vcpu) == known.end())
                known.push_back(member);
    }
    if (known.empty())
        return;
    const auto take_permission = [&] {
        for (const Member& member : known) {
            member.dispatcher->drop_write(hosts);
            for (const std::uint64_t number : numbers)
                member.marks->clear(number);
        }
    };
    std::vector<Caller*> vcpus;
    for (const Member& member : known)
        vcpus.push_back(member.vcpu);
    if (vcpus == std::vector{&caller})
        return take_permission();
    rendezvous_.exclusive(caller, vcpus, take_permission);
}

bool World::watch_code(Caller& caller, std::span<const std::uint64_t> gpa_pages) {
    make_code_pages(caller, gpa_pages);
    const base::MutexLock lock{cache_->mutex()};
    return std::ranges::all_of(gpa_pages,
                               [this](std::uint64_t page) { return is_code_page(page); });
}

std::vector<std::uint16_t> World::users_blocks(std::uint64_t gpa_page) {
    std::vector<std::uint16_t> begins;
    const base::MutexLock lock{cache_->mutex()};
    for (const Block* const block : cache_->blocks_in(gpa_page))
        if ((block->key.mode & (mode::kUser | mode::kCode32)) == mode::kUser)
            begins.push_back(static_cast<std::uint16_t>(block->key.gpa & kPageOffset));
    return begins;
}

/// Those who may be executing it on the host's CPU.
void World::tell_of_write(std::uint64_t gpa_page) {
    const std::uint64_t number = ram_.page_number(ram_.state(gpa_page));
    const std::scoped_lock lock{mutex_};
    for (const Member& member : members_)
        if (member.direct != nullptr && member.direct->code_written(number)) {
            member.dispatcher->notify();
            member.direct->wait_until_out();
        }
}

void World::evict(Caller& caller, EvictWhen when) {
    rendezvous_.exclusive(caller, [this, when] {
        const base::MutexLock lock{cache_->mutex()};
        if (when == EvictWhen::Full && !cache_->full())
            return; // somebody else was faster
        for (const std::uint64_t page : cache_->recycle())
            memory_.set_code_page({page}, false);
        busy_pages_.reset();
        const std::scoped_lock among{mutex_};
        for (const Member& member : members_)
            member.dispatcher->drop_code();
    });
}

Block* World::translate(Caller& caller, const BlockKey& key, std::uint64_t rip,
                        const std::byte* host, const std::byte* second,
                        const FeatureSet& features) {
    const std::uint64_t page = key.gpa & ~kPageOffset;
    // What has mostly not been looked at before, or not lately.
    __builtin_prefetch(host);
    __builtin_prefetch(host + 64);
    __builtin_prefetch(reinterpret_cast<const char*>(&busy_pages_) + busy_index(key.gpa) / 8);
    for (;;) {
        make_code_pages(caller, {&page, 1});
        if (second != nullptr)
            make_code_pages(caller, {&key.second_page, 1});
        {
            const base::MutexLock lock{cache_->mutex()};
            cache_->prefetch();
            if (!is_code_page(page) || (second != nullptr && !is_code_page(key.second_page)))
                continue; // written to in between
            if (Block* const block = cache_->find(key); block != nullptr)
                return block;
            if (!cache_->full() || cache_->next_arena())
                return make_block(key, rip, host, second, features);
        }
        evict(caller, EvictWhen::Full);
    }
}

/// Into the jitdump.
void World::note(const Block& block, std::uint64_t rip) {
    const char* const ring = (block.key.mode & mode::kUser) != 0 ? "user" : "kernel";
    const char* const variant = block.loop                                   ? ":loop"
                                : (block.key.mode & mode::kEachChecked) != 0 ? ":each-checked"
                                                                             : "";
    const std::string name = fmt::format("{}:{:x}{}", ring, rip, variant);
    jit_dump_->add(name, {block.begin, block.host_bytes});
    if (block.cold_bytes != 0)
        jit_dump_->add(name + ":cold", {block.cold_begin, block.cold_bytes});
}

/// A block ends where a loop begins, unless that is in its first instruction.
std::uint32_t World::bytes_to_loop(const BlockKey& key, const std::byte* host) const {
    const auto in_page = static_cast<std::uint32_t>(4096 - (key.gpa & kPageOffset));
    const auto to_loop = static_cast<std::uint32_t>(cache_->next_loop_head(key.gpa) - key.gpa);
    if (to_loop == in_page)
        return in_page;
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(host);
    Instruction first;
    const bool whole =
        decode({bytes, std::min(to_loop, 15u)}, code_size(key.mode), first) == DecodeStatus::Ok;
    return whole ? to_loop : in_page;
}

Block* World::make_block(const BlockKey& key, std::uint64_t rip, const std::byte* host,
                         const std::byte* second, const FeatureSet& features) {
    const std::uint64_t begun_ticks = cost_.begin();
    const auto offset = static_cast<std::uint16_t>(key.gpa & kPageOffset);
    const std::uint32_t bytes = second != nullptr ? 4096u - offset : bytes_to_loop(key, host);
    scan_block(t_scan, {host, bytes, second}, offset, key.mode, features, tuning_);
    return emit_block(key, rip, begun_ticks);
}

bool World::scan_head(const Block& head, const std::byte* host, const FeatureSet& features) {
    const auto offset = static_cast<std::uint16_t>(head.key.gpa & kPageOffset);
    return !head.dead && head.key.second_page == 0 &&
           scan_loop(t_scan, {host, 4096u - offset, nullptr}, offset, head.key.mode, features,
                     tuning_, BlocksOfPage{*cache_, head.key});
}

bool World::find_loop(const Block& head, const std::byte* host, const FeatureSet& features,
                      LoopCounter& counter) {
    const base::MutexLock lock{cache_->mutex()};
    if (!scan_head(head, host, features))
        return false;
    counter = {.reg = t_scan.loop.counter, .step = t_scan.loop.step};
    return true;
}

Block* World::make_loop(Block& head, std::uint64_t rip, const std::byte* host,
                        const FeatureSet& features) {
    const base::MutexLock lock{cache_->mutex()};
    const std::uint64_t begun_ticks = cost_.begin();
    if (cache_->full() || !scan_head(head, host, features))
        return nullptr;
    Block* const loop = emit_block(head.key, rip, begun_ticks);
    if (loop != nullptr) {
        cache_->retire(head);
        cache_->retire_through(loop->key);
    }
    return loop;
}

/// Of what was scanned last. nullptr: it cannot be translated as a loop.
Block* World::emit_block(const BlockKey& key, std::uint64_t rip, std::uint64_t begun_ticks) {
    if (tuning_.huge_code)
        cache_->use_huge_pages();
    std::uint8_t* const exec = cache_->free_begin();
    Assembler assembler{cache_->memory().writable(exec), exec, CodeCache::kBlockBytes};
    NewBlock made;
    made.key = key;
    made.cold_begin = cache_->cold_begin();
    made.loop = t_scan.loop.active;
    t_scan.page_va = rip & ~kPageOffset;
    t_scan.far_link = next_far_link_;
    t_scan.landing = cache_->next_landing();
    t_scan.compact = tuning_.shared_checks && !made.loop && t_scan.lending_count == 0 &&
                     !busy_pages_.test(busy_index(key.gpa));
    BlockTranslator translator{assembler, stubs_, t_scan, t_space};
    translator.translate(made);
    DOPPEL_VERIFY(!assembler.full(), "a block fits in the room that full() leaves");
    if (translator.failed())
        return nullptr;
    if (spoil_ != nullptr)
        spoil_(cache_->memory().writable(exec),
               cache_->memory().writable(const_cast<std::uint8_t*>(made.end)));
    next_far_link_ = translator.next_far_link();
    cost_.add(made, t_scan.count, begun_ticks);
    Block& block = cache_->add_block(made);
    if (jit_dump_ != nullptr)
        note(block, rip);
    return &block;
}

void World::promote(const std::uint8_t* host_code) {
    const base::MutexLock lock{cache_->mutex()};
    const Block* const found = cache_->find_by_host(host_code);
    if (found == nullptr || found->dead)
        return;
    const std::uint64_t page = found->key.gpa & ~kPageOffset;
    busy_pages_.set(busy_index(page));
    cache_->supersede_page(page);
}

const CheckSite& World::find_check(const std::uint8_t* behind) {
    const base::MutexLock lock{cache_->mutex()};
    const Block* const block = cache_->find_by_host(behind);
    DOPPEL_VERIFY(block != nullptr, "a check is called by a block");
    const std::span sites{reinterpret_cast<const CheckSite*>(block->code_end()) - block->checks,
                          block->checks};
    const auto found = std::ranges::find(sites, static_cast<std::size_t>(behind - block->begin),
                                         &CheckSite::behind);
    DOPPEL_VERIFY(found != sites.end(), "a block knows its checks");
    return *found;
}

void World::link(const Site& site, std::uint64_t site_address, Block& target) {
    const base::MutexLock lock{cache_->mutex()};
    auto* const behind = reinterpret_cast<std::uint8_t*>(site_address);
    const Block* const from = cache_->find_by_host(behind);
    if (from == nullptr || from->dead || ((from->key.gpa ^ target.key.gpa) & ~kPageOffset) != 0)
        return;
    if (const std::uint8_t* const entry = link_entry(site, target); entry != nullptr)
        cache_->link(behind - site.distance(), behind - Stubs::exit_bytes(Exit::Link), target,
                     entry);
}

bool World::link_landing(const Site& site, std::uint64_t site_address, const std::uint8_t* host) {
    const base::MutexLock lock{cache_->mutex()};
    auto* const behind = reinterpret_cast<std::uint8_t*>(site_address);
    const Block* const from = cache_->find_by_host(behind);
    if (from == nullptr || from->dead || from->key.second_page != 0)
        return false;
    Block* const to = cache_->find({.gpa = (from->key.gpa & ~kPageOffset) + site.page_offset,
                                    .second_page = 0,
                                    .mode = from->key.mode & ~std::uint32_t{mode::kEachChecked}});
    if (to == nullptr || to->far_entry() != host)
        return false;
    std::uint8_t* const place = behind - site.distance();
    if (!CodeCache::leads_to(place, host))
        cache_->link(place, behind - Stubs::exit_bytes(Exit::Branch), *to, host);
    return true;
}

void World::disturb(Caller& caller, Chaos::Act act, std::uint64_t random) {
    if (act == Chaos::Act::EvictArena)
        return evict(caller, EvictWhen::Always);
    if (act == Chaos::Act::Safepoint)
        return rendezvous_.exclusive(caller, [] {});
    const base::MutexLock lock{cache_->mutex()};
    Block* const block = cache_->any_block(random);
    if (block == nullptr)
        return;
    if (act == Chaos::Act::Unlink)
        return cache_->unlink(*block);
    const std::uint64_t page = block->key.gpa & ~kPageOffset;
    cache_->invalidate_page(page);
    if (random >> 63 != 0) {
        tell_of_write(page); // or it would not be
        memory_.set_code_page({page}, false);
    }
}

void World::on_code_write(Gpa gpa, std::uint64_t length_bytes, Moment moment) noexcept {
    const base::MutexLock lock{cache_->mutex()};
    const std::uint64_t page = gpa.page().value;
    if (cache_->overlaps(gpa.value, length_bytes))
        cache_->invalidate_page(page);
    if (moment == Moment::Before)
        return;
    tell_of_write(page);
    if (!cache_->page_has_code(page))
        memory_.set_code_page({page}, false);
}

} // namespace doppel::cpu::x86::frontend
