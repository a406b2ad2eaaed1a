// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The translated code of one VM, shared by its vCPUs.
///
/// Problem: code is found by guest-physical address (guests move pages between address spaces, and
/// the same library sits at many addresses), must vanish when its bytes change, and is looked up
/// millions of times a second by threads that must not wait for each other.
///
/// Design. Code memory is divided into arenas, which are filled front to back, one after the other.
/// When there is no empty one left, the one that was filled first is emptied (recycle()): what is
/// still in use there is made again, three quarters and more of all code are not touched.
/// Each arena has two parts (ColdCode::Apart): bodies of blocks, and what is out of their way.
/// Blocks are found through an open hash table of atomic words: find() takes no lock; insert(),
/// link() and invalidate() hold `mutex_`. A block belongs to one guest page, or to two when its
/// only instruction crosses. Blocks of one page jump to each other directly (Link); everything
/// else goes through the branch caches of the vCPUs, which hold far entries.
///
/// A dead block's memory stays until its arena is emptied, so that a vCPU inside it may finish it:
/// its incoming links are put back to "ask", and the first bytes of its far entry become a jump to
/// `stale_entry`, which looks the target up anew. So no vCPU's branch cache needs to be visited.
/// Its page may be no code page any more: a vCPU gets no write permission for the page it runs in,
/// or it would run on past its own stores to it (Dispatcher::runs_in()).
///
/// recycle() needs every other vCPU out of translated code, and all branch caches emptied behind
/// it: the runtime's stop() sees to that.
#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/mutex.hpp"
#include "base/result.hpp"
#include "cpu/translator/cache/block.hpp"
#include "cpu/translator/cache/code_memory.hpp"
#include "cpu/translator/cache/counter.hpp"
#include "cpu/translator/cache/pool.hpp"

namespace doppel::cpu::translator {

/// Where the part of a block lies that is out of the way: behind its body, or all of these
/// together, so that bodies lie close to each other: then they are in fewer of the host's pages and
/// lines.
enum class ColdCode : std::uint8_t { Behind, Apart };

class CodeCache {
public:
    static constexpr std::size_t kTableSize = std::size_t{1} << 19;
    static constexpr std::size_t kMaxBlocks = kTableSize / 2;
    static constexpr std::size_t kArenas = 8;
    /// More than any block has.
    static constexpr std::size_t kBlockBytes = std::size_t{64} << 10, kBlockSignals = 1024;

    /// Errors: OutOfMemory.
    static base::Result<std::unique_ptr<CodeCache>> create(std::size_t code_bytes);

    // --- any thread, no lock, general registers only ---
    Block* find(const BlockKey& key) const {
        const std::uint64_t code = hash(key);
        for (std::size_t i = code;; ++i) {
            const Word word = table_[i & (kTableSize - 1)].load(std::memory_order_acquire);
            if (word == kFree)
                return nullptr;
            if ((word ^ tag_of(code)) >> kTagShift != 0 || word == kTombstone)
                continue;
            Block& block = blocks_[(word & kNumberMask) - kFirstNumber];
            if (block.key == key && !block.dead)
                return &block;
        }
    }
    /// The jump at `place`, which may be patched meanwhile, goes to `entry`.
    static bool leads_to(const std::uint8_t* place, const std::uint8_t* entry) {
        const auto* const distance = reinterpret_cast<const std::uint32_t*>(place);
        return __atomic_load_n(distance, __ATOMIC_RELAXED) ==
               static_cast<std::uint32_t>(entry - (place + 4));
    }
    CodeMemory& memory() const { return *memory_; }

    // --- one thread at a time: the caller holds mutex() ---
    base::Mutex& mutex() { return mutex_; }
    /// Where the next block may be written, and how much room there is.
    std::uint8_t* free_begin() const { return memory_->exec() + arena().used; }
    std::size_t free_bytes() const { return arena().end - arena().used; }
    /// Likewise the part that is out of the way. nullptr: behind the rest.
    std::uint8_t* cold_begin() const {
        return arena().is_split() ? memory_->exec() + arena().cold_used : nullptr;
    }
    /// There is no room for another block in this arena.
    bool full() const {
        return free_bytes() < kBlockBytes ||
               (arena().is_split() && arena().cold_end - arena().cold_used < kBlockBytes) ||
               arena().blocks == kArenaBlocks || arena().signals + kBlockSignals > kArenaSignals;
    }
    /// Landings of calls have numbers, which are theirs until their arena is emptied. kNoLanding:
    /// this arena's are all in use.
    static constexpr std::uint32_t kArenaLandings = std::uint32_t{1} << 14;
    static constexpr std::uint32_t kNoLanding = ~std::uint32_t{0};
    std::uint32_t next_landing() const {
        const auto first = static_cast<std::uint32_t>(current_) * kArenaLandings;
        return arena().landings == kArenaLandings ? kNoLanding : first + arena().landings;
    }
    /// Where a block is going to be written soon: so much of it as most have.
    void prefetch() const {
        constexpr std::size_t kLine = 64, kLines = 6;
        const std::uint8_t* const hot = memory_->write() + arena().used;
        const std::uint8_t* const cold = memory_->write() + arena().cold_used;
        for (std::size_t i = 0; i < kLines; ++i) {
            __builtin_prefetch(hot + i * kLine, 1);
            __builtin_prefetch(cold + i * kLine, 1);
        }
    }
    /// Before a block is written at free_begin(): see CodeMemory::use_huge_pages(). So far ahead
    /// that a boot takes 10 ms to come there; one of them takes 0.25 to 5.
    void use_huge_pages() {
        constexpr std::size_t kAhead = std::size_t{256} << 10;
        memory_->use_huge_pages(arena().used, kAhead);
        if (arena().is_split())
            memory_->use_huge_pages(arena().cold_used, kAhead);
    }
    /// Goes on in the next arena. False: it has to be emptied first.
    bool next_arena();
    /// Empties the next arena and goes on there; no vCPU is in translated code. Returns the pages
    /// that have no blocks any more.
    std::vector<std::uint64_t> recycle();
    /// Keeps [0, used) for stubs for ever; before the first block.
    void reserve(std::size_t used, ColdCode cold = ColdCode::Behind);
    void set_stale_entry(const std::uint8_t* entry) { stale_entry_ = entry; }

    Block& add_block(const NewBlock& made); // its code was written at free_begin(); not full()
    /// Makes the jump at `place` go to `entry` of `target`; no-op when that block is dead, or when
    /// there are more links than anybody has seen.
    void link(std::uint8_t* place, const std::uint8_t* unlinked, Block& target,
              const std::uint8_t* entry);
    /// Drops one block, so that another may take its place.
    void retire(Block& block);
    /// The same of all that begin in the page, but loops: they stay in its list until the page is
    /// dropped, and overlap what they did.
    void supersede_page(std::uint64_t gpa_page);
    /// Drops those that run through the head of a loop, so that they will lead to it instead.
    void retire_through(const BlockKey& head);
    /// The first head of a loop behind `gpa`, or the end of the page.
    std::uint64_t next_loop_head(std::uint64_t gpa) const;
    /// Drops all blocks of a guest page. Returns whether there were any.
    bool invalidate_page(std::uint64_t gpa_page);
    bool page_has_code(std::uint64_t gpa_page) const;
    /// Puts all jumps into the block back to "ask".
    void unlink(Block& block);
    /// For tests: any block, dead or not; nullptr when there is none.
    Block* any_block(std::uint64_t random) const {
        const Arena& from = arenas_[random % kArenas];
        return from.blocks == 0 ? nullptr
                                : &blocks_[from.first_block + random / kArenas % from.blocks];
    }
    /// Blocks that begin in the page, superseded ones among them.
    std::vector<const Block*> blocks_in(std::uint64_t gpa_page) const;
    /// A block was made from a byte of [gpa, gpa + length), which lies in one page.
    bool overlaps(std::uint64_t gpa, std::uint64_t length_bytes) const;
    /// The block whose host code contains `address`, or nullptr.
    const Block* find_by_host(const void* address) const;
    std::span<const SignalSite> signal_sites(const Block& block) const {
        return {&signals_[block.first_signal], block.signals};
    }

    std::uint64_t blocks_made() const { return made_.get(); }
    std::uint64_t loops_made() const { return loops_.get(); }
    std::uint64_t guest_bytes() const { return guest_bytes_.get(); }
    std::uint64_t code_bytes() const;
    /// Arenas that were emptied.
    std::uint64_t evictions() const { return evictions_; }

private:
    static constexpr std::size_t kArenaBlocks = kMaxBlocks / kArenas;
    static constexpr std::size_t kArenaSignals = 16 * kArenaBlocks;
    /// [begin, cold_end) of code memory, and its part of the tables.
    struct Arena {
        std::size_t begin = 0, end = 0, used = 0;
        std::size_t cold_end = 0, cold_used = 0; // from `end` on
        std::size_t first_block = 0, blocks = 0; // in order of host addresses, dead ones included
        std::size_t first_signal = 0, signals = 0;
        std::uint32_t landings = 0;

        bool contains(std::size_t offset) const { return offset - begin < cold_end - begin; }
        bool is_split() const { return cold_end != end; }
        bool has(std::uint32_t block) const { return block - first_block < kArenaBlocks; }
    };
    static constexpr std::size_t kMaxLinks = 4 * kMaxBlocks;
    CodeCache();
    /// Entry of table_: the block's number, and above it 13 bits of its key's hash, so that
    /// looking for a block touches hardly any other.
    using Word = std::uint32_t;
    static constexpr Word kFree = 0, kTombstone = 1; // of a dropped block
    static constexpr Word kFirstNumber = 2;
    static constexpr unsigned kTagShift = 19;
    static constexpr Word kNumberMask = (Word{1} << kTagShift) - 1;
    static_assert(kMaxBlocks + kFirstNumber <= kNumberMask);
    static Word tag_of(std::uint64_t hash) { return static_cast<Word>(hash >> 32) & ~kNumberMask; }
    /// Low bits: where in the table; blocks of one page are neighbours, so that a lookup's cache
    /// line serves the next ones. High bits: the tag.
    static std::uint64_t hash(const BlockKey& key) {
        const std::uint64_t page =
            (key.gpa >> 12 ^ std::uint64_t{key.mode} << 40) * 0x9e37'79b9'7f4a'7c15ull;
        const std::uint64_t tag = page ^ key.gpa * 0xd6e8'feb8'6659'fd93ull;
        return (page >> 40 & ~std::uint64_t{63}) | ((key.gpa ^ key.gpa >> 6) & 63) |
               (tag >> 48 << 48);
    }
    static std::size_t loop_page(std::uint64_t gpa) { return gpa >> 12 & 0x1fff; }
    Arena& arena() { return arenas_[current_]; }
    const Arena& arena() const { return arenas_[current_]; }
    void enter_table(Block& block, std::uint32_t number);
    void drop_links_from(Block& block, const Arena& from);
    void kill(Block& block);
    void forget(Block& block, std::uint64_t gpa_page);
    std::uint32_t& next_of(Block& block, std::uint64_t gpa_page) const;
    std::uint8_t* code_at(std::uint32_t offset) const { return memory_->exec() + offset; }
    std::uint32_t offset_of(const std::uint8_t* code) const {
        return static_cast<std::uint32_t>(code - memory_->exec());
    }

    std::unique_ptr<CodeMemory> memory_;
    std::unique_ptr<std::atomic<Word>[]> table_;
    base::Mutex mutex_;
    std::array<Arena, kArenas> arenas_;
    std::size_t current_ = 0;
    Reserved<Block> blocks_{kMaxBlocks};
    mutable std::uint32_t last_found_ = 0; // by find_by_host()
    Pool<Link> links_{kMaxLinks};
    std::uint32_t free_links_ = Block::kNone;
    Reserved<SignalSite> signals_{kArenas * kArenaSignals};
    std::unordered_map<std::uint64_t, std::uint32_t> pages_; // gpa of page -> first block
    std::set<std::uint64_t> loop_heads_;                     // gpa
    // Where there may be some, by loop_page(): looking into the tree takes a hundredth of what a
    // translation does. None is taken out: that would only save such a look.
    std::bitset<1 << 13> loop_pages_;
    const std::uint8_t* stale_entry_ = nullptr;
    Counter<std::uint64_t> made_, loops_, guest_bytes_;
    std::uint64_t evictions_ = 0;
};

} // namespace doppel::cpu::translator
