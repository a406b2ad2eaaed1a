// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The translated code of one VM, shared by its vCPUs.
///
/// Problem: code is found by guest-physical address (guests move pages between address spaces, and
/// the same library sits at many addresses), must vanish when its bytes change, and is looked up
/// millions of times a second by threads that must not wait for each other.
///
/// Design. Code memory is filled front to back and emptied as a whole (reset()) when it is full.
/// Blocks are found through an open hash table of atomic words: find() takes no lock; insert(),
/// link() and invalidate() hold `mutex_`. A block belongs to one guest page, or to two when its
/// only instruction crosses. Blocks of one page jump to each other directly (Link); everything
/// else goes through the branch caches of the vCPUs, which hold far entries.
///
/// A dead block's memory stays until the next reset(), so that a vCPU inside it may finish it: its
/// incoming links are put back to "ask", and the first bytes of its far entry become a jump to
/// `stale_entry`, which looks the target up anew. So no vCPU's branch cache needs to be visited.
///
/// reset() needs every other vCPU out of translated code: the runtime's stop() sees to that.
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>

#include "base/mutex.hpp"
#include "base/result.hpp"
#include "cpu/translator/cache/block.hpp"
#include "cpu/translator/cache/code_memory.hpp"

namespace doppel::cpu::translator {

class CodeCache {
public:
    static constexpr std::size_t kTableSize = std::size_t{1} << 18;
    static constexpr std::size_t kMaxBlocks = kTableSize / 2;

    /// Errors: OutOfMemory.
    static base::Result<std::unique_ptr<CodeCache>> create(std::size_t code_bytes);

    // --- any thread, no lock, general registers only ---
    Block* find(const BlockKey& key) const {
        const std::uint64_t code = hash(key);
        for (std::size_t i = code;; ++i) {
            const Word word = table_[i & (kTableSize - 1)].load(std::memory_order_acquire);
            if (word == kFree)
                return nullptr;
            if ((word ^ code) >> kTagShift != 0 || word == kTombstone)
                continue;
            Block* const block = block_of(word);
            if (block->key == key && !block->dead)
                return block;
        }
    }
    CodeMemory& memory() const { return *memory_; }

    // --- one thread at a time: the caller holds mutex() ---
    base::Mutex& mutex() { return mutex_; }
    /// Where the next block may be written, and how much room there is.
    std::uint8_t* free_begin() const { return memory_->exec() + used_; }
    std::size_t free_bytes() const { return memory_->size() - used_; }
    bool nearly_full() const { return free_bytes() < 256 * 1024 || count_ >= kMaxBlocks; }
    /// Keeps [0, used) for stubs for ever; before the first block.
    void reserve(std::size_t used) { used_ = reserved_ = used; }
    void set_stale_entry(const std::uint8_t* entry) { stale_entry_ = entry; }

    Block& add_block(Block block); // its code was written at free_begin()
    /// Makes the jump at `place` go to `entry` of `target`; no-op when that block is dead.
    void link(std::uint8_t* place, const std::uint8_t* unlinked, Block& target,
              const std::uint8_t* entry);
    /// Drops all blocks of a guest page. Returns whether there were any.
    bool invalidate_page(std::uint64_t gpa_page);
    bool page_has_code(std::uint64_t gpa_page) const;
    /// A block was made from a byte of [gpa, gpa + length), which lies in one page.
    bool overlaps(std::uint64_t gpa, std::uint64_t length_bytes) const;
    /// Drops everything; no vCPU is in translated code. Calls `page` for each page that had blocks.
    template <typename Page> void reset(Page&& page) {
        for (const auto& [gpa, first] : pages_)
            page(gpa);
        clear();
    }
    /// The block whose host code contains `address`, or nullptr.
    const Block* find_by_host(const void* address) const;

    std::uint64_t blocks_made() const { return made_.load(std::memory_order_relaxed); }
    std::uint64_t guest_bytes() const { return guest_bytes_.load(std::memory_order_relaxed); }
    std::uint64_t code_bytes() const { return used_; }
    std::uint64_t resets() const { return resets_; }

private:
    CodeCache();
    /// Entry of table_: the block's address, and above it 16 bits of its key's hash, so that
    /// looking for a block touches hardly any other.
    using Word = std::uint64_t;
    static constexpr Word kFree = 0, kTombstone = 1; // of a dropped block
    static constexpr unsigned kTagShift = 48;
    static Block* block_of(Word word) {
        return reinterpret_cast<Block*>(word & ((Word{1} << kTagShift) - 1));
    }
    /// Low bits: where in the table; blocks of one page are neighbours, so that a lookup's cache
    /// line serves the next ones. Bits from kTagShift up: the tag.
    static std::uint64_t hash(const BlockKey& key) {
        const std::uint64_t page =
            (key.gpa >> 12 ^ std::uint64_t{key.mode} << 40) * 0x9e37'79b9'7f4a'7c15ull;
        const std::uint64_t tag = page ^ key.gpa * 0xd6e8'feb8'6659'fd93ull;
        return (page >> 40 & ~std::uint64_t{63}) | ((key.gpa ^ key.gpa >> 6) & 63) |
               (tag >> kTagShift << kTagShift);
    }
    void clear();
    void kill(Block& block);
    void forget(Block& block, std::uint64_t gpa_page);

    std::unique_ptr<CodeMemory> memory_;
    std::unique_ptr<std::atomic<Word>[]> table_;
    base::Mutex mutex_;
    std::size_t used_ = 0;
    std::size_t reserved_ = 0;
    std::size_t count_ = 0;    // in the table, dead ones included
    std::deque<Block> blocks_; // in order of host addresses
    std::deque<Link> links_;
    std::unordered_map<std::uint64_t, Block*> pages_; // gpa of page -> first block
    const std::uint8_t* stale_entry_ = nullptr;
    std::atomic<std::uint64_t> made_{0};
    std::atomic<std::uint64_t> guest_bytes_{0};
    std::uint64_t resets_ = 0;
};

} // namespace doppel::cpu::translator
