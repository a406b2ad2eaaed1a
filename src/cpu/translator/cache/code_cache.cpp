// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/cache/code_cache.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace doppel::cpu::translator {

namespace {

Block*& next_of(Block& block, std::uint64_t gpa_page) {
    return (block.key.gpa & ~std::uint64_t{0xfff}) == gpa_page ? block.next_in_page
                                                               : block.next_in_second_page;
}

} // namespace

CodeCache::CodeCache() : table_{std::make_unique<std::atomic<Word>[]>(kTableSize)} {}

base::Result<std::unique_ptr<CodeCache>> CodeCache::create(std::size_t code_bytes) {
    auto cache = std::unique_ptr<CodeCache>{new CodeCache};
    cache->memory_ = DOPPEL_TRY(CodeMemory::create(code_bytes));
    return cache;
}

Block& CodeCache::add_block(Block made) {
    Block& block = blocks_.emplace_back(std::move(made));
    used_ = static_cast<std::size_t>(block.end - memory_->exec() + 15) & ~std::size_t{15};
    ++count_;
    made_.fetch_add(1, std::memory_order_relaxed);
    guest_bytes_.fetch_add(block.guest_bytes, std::memory_order_relaxed);
    Block*& first = pages_[block.key.gpa & ~std::uint64_t{0xfff}];
    block.next_in_page = std::exchange(first, &block);
    if (block.key.second_page != 0) {
        Block*& second = pages_[block.key.second_page];
        block.next_in_second_page = std::exchange(second, &block);
    }
    const std::uint64_t code = hash(block.key);
    for (std::size_t i = code;; ++i) {
        auto& slot = table_[i & (kTableSize - 1)];
        if (slot.load(std::memory_order_relaxed) > kTombstone)
            continue;
        block.table_slot = static_cast<std::uint32_t>(i & (kTableSize - 1));
        slot.store(reinterpret_cast<Word>(&block) | code >> kTagShift << kTagShift,
                   std::memory_order_release);
        break;
    }
    return block;
}

void CodeCache::link(std::uint8_t* place, const std::uint8_t* unlinked, Block& target,
                     const std::uint8_t* entry) {
    if (target.dead)
        return;
    links_.push_back({place, unlinked, target.incoming});
    target.incoming = &links_.back();
    memory_->patch32(place, static_cast<std::uint32_t>(entry - (place + 4)));
}

void CodeCache::kill(Block& block) {
    if (std::exchange(block.dead, true))
        return;
    table_[block.table_slot].store(kTombstone, std::memory_order_release);
    for (const Link* link = block.incoming; link != nullptr; link = link->next)
        memory_->patch32(link->place,
                         static_cast<std::uint32_t>(link->unlinked - (link->place + 4)));
    block.incoming = nullptr;
    // jmp stale_entry; the first instruction of a far entry is 7 bytes, byte 7 begins the next.
    std::uint64_t code = 0;
    std::memcpy(&code, memory_->writable(block.far_entry), sizeof code);
    const auto distance = static_cast<std::uint32_t>(stale_entry_ - (block.far_entry + 5));
    code = (code & 0xff00'0000'0000'0000ull) | 0x0000'9090'0000'0000ull << 8 |
           std::uint64_t{distance} << 8 | 0xe9;
    memory_->patch64(block.far_entry, code);
}

bool CodeCache::invalidate_page(std::uint64_t gpa_page) {
    const auto found = pages_.find(gpa_page);
    if (found == pages_.end())
        return false;
    Block* block = found->second;
    pages_.erase(found);
    for (; block != nullptr; block = next_of(*block, gpa_page)) {
        kill(*block);
        const std::uint64_t first_page = block->key.gpa & ~std::uint64_t{0xfff};
        if (block->key.second_page != 0)
            forget(*block, first_page == gpa_page ? block->key.second_page : first_page);
    }
    return true;
}

/// Out of the list of `gpa_page`: dead blocks would pile up there as often as the other page of
/// their instruction is written.
void CodeCache::forget(Block& block, std::uint64_t gpa_page) {
    const auto found = pages_.find(gpa_page);
    if (found == pages_.end())
        return;
    Block** link = &found->second;
    while (*link != nullptr && *link != &block)
        link = &next_of(**link, gpa_page);
    if (*link != nullptr)
        *link = next_of(block, gpa_page);
    if (found->second == nullptr)
        pages_.erase(found);
}

bool CodeCache::page_has_code(std::uint64_t gpa_page) const { return pages_.contains(gpa_page); }

bool CodeCache::overlaps(std::uint64_t gpa, std::uint64_t length_bytes) const {
    const std::uint64_t page = gpa & ~std::uint64_t{0xfff};
    const auto found = pages_.find(page);
    if (found == pages_.end())
        return false;
    for (Block* block = found->second; block != nullptr; block = next_of(*block, page)) {
        const std::uint64_t begin = block->key.gpa;
        const std::uint64_t end = begin + std::max<std::uint64_t>(block->guest_bytes, 1);
        if (block->dead)
            continue;
        if (block->key.second_page != 0 || (gpa < end && begin < gpa + length_bytes))
            return true;
    }
    return false;
}

void CodeCache::clear() {
    for (std::size_t i = 0; i < kTableSize; ++i)
        table_[i].store(kFree, std::memory_order_relaxed);
    blocks_.clear();
    links_.clear();
    pages_.clear();
    used_ = reserved_;
    count_ = 0;
    ++resets_;
}

const Block* CodeCache::find_by_host(const void* address) const {
    const auto* const at = static_cast<const std::uint8_t*>(address);
    const auto after = std::upper_bound(
        blocks_.begin(), blocks_.end(), at,
        [](const std::uint8_t* value, const Block& block) { return value < block.begin; });
    if (after == blocks_.begin())
        return nullptr;
    const Block& block = *(after - 1);
    return at < block.end ? &block : nullptr;
}

} // namespace doppel::cpu::translator
