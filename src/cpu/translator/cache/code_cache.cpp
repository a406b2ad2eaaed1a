// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/cache/code_cache.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace doppel::cpu::translator {

namespace {

std::uint16_t offset16(const std::uint8_t* begin, const std::uint8_t* at) {
    return at == nullptr ? std::uint16_t{0} : static_cast<std::uint16_t>(at - begin);
}

Block packed(const NewBlock& made) {
    Block block;
    block.key = made.key;
    block.begin = made.begin;
    block.host_bytes = static_cast<std::uint32_t>(made.end - made.begin);
    block.cold_begin = made.cold_begin;
    block.cold_bytes = static_cast<std::uint32_t>(made.cold_end - made.cold_begin);
    block.signals = static_cast<std::uint16_t>(made.signal_sites.size());
    block.checks = made.checks;
    block.guest_bytes = made.guest_bytes;
    block.instructions = made.instructions;
    block.made_writes = made.made_writes;
    block.far_offset = offset16(made.begin, made.far_entry);
    block.slot_poll_offset = offset16(made.begin, made.slot_poll_entry);
    block.slot_offset = offset16(made.begin, made.slot_entry);
    block.native_poll_offset = offset16(made.begin, made.native_poll_entry);
    block.native_offset = offset16(made.begin, made.native_entry);
    block.made_poll_offset = offset16(made.begin, made.made_poll_entry);
    block.made_offset = offset16(made.begin, made.made_entry);
    block.flags_wanted = made.flags_wanted;
    block.loop = made.loop;
    return block;
}

} // namespace

CodeCache::CodeCache() : table_{std::make_unique<std::atomic<Word>[]>(kTableSize)} {}

base::Result<std::unique_ptr<CodeCache>> CodeCache::create(std::size_t code_bytes) {
    auto cache = std::unique_ptr<CodeCache>{new CodeCache};
    cache->memory_ = DOPPEL_TRY(CodeMemory::create(code_bytes));
    if (!cache->blocks_.allocated() || !cache->links_.allocated() || !cache->signals_.allocated())
        return base::fail_errno(ENOMEM, "reserve the tables of the code cache");
    return cache;
}

std::uint32_t& CodeCache::next_of(Block& block, std::uint64_t gpa_page) const {
    return (block.key.gpa & ~std::uint64_t{0xfff}) == gpa_page ? block.next_in_page
                                                               : block.next_in_second_page;
}

/// Half and half is what blocks are; small arenas are better in one piece.
void CodeCache::reserve(std::size_t used, ColdCode cold) {
    constexpr std::size_t kLine = 64;
    const std::size_t each = (memory_->size() - used - kLine) / kArenas & ~(kLine - 1);
    const std::size_t apart = cold == ColdCode::Apart && each >= 8 * kBlockBytes ? each / 2 : 0;
    for (std::size_t i = 0; i < kArenas; ++i) {
        const std::size_t begin = used + i * each;
        const std::size_t end = begin + ((each - apart) & ~(kLine - 1));
        arenas_.at(i) = {.begin = begin,
                         .end = end,
                         .used = begin,
                         .cold_end = apart == 0 ? end : begin + each,
                         .cold_used = end,
                         .first_block = i * kArenaBlocks,
                         .first_signal = i * kArenaSignals};
    }
}

std::uint64_t CodeCache::code_bytes() const {
    std::uint64_t bytes = arenas_[0].begin;
    for (const Arena& one : arenas_)
        bytes += one.used - one.begin + one.cold_used - one.end;
    return bytes;
}

Block& CodeCache::add_block(const NewBlock& made) {
    Arena& into = arena();
    const auto number = static_cast<std::uint32_t>(into.first_block + into.blocks++);
    Block& block = blocks_.make(number, packed(made));
    block.first_signal = static_cast<std::uint32_t>(into.first_signal + into.signals);
    for (const SignalSite& site : made.signal_sites)
        signals_.make(into.first_signal + into.signals++, site);
    into.used = static_cast<std::size_t>(made.end - memory_->exec() + 7) & ~std::size_t{7};
    if (made.cold_begin != nullptr)
        into.cold_used = static_cast<std::size_t>(made.cold_end - memory_->exec());
    into.landings += made.landing ? 1 : 0;
    made_.add(1);
    if (block.loop) {
        loops_.add(1);
        loop_heads_.insert(block.key.gpa);
        loop_pages_.set(loop_page(block.key.gpa));
    }
    guest_bytes_.add(block.guest_bytes);
    const auto enlist = [&](std::uint64_t gpa_page, std::uint32_t& next) {
        next = std::exchange(pages_.try_emplace(gpa_page, Block::kNone).first->second, number);
    };
    enlist(block.key.gpa & ~std::uint64_t{0xfff}, block.next_in_page);
    if (block.key.second_page != 0)
        enlist(block.key.second_page, block.next_in_second_page);
    enter_table(block, number);
    return block;
}

void CodeCache::enter_table(Block& block, std::uint32_t number) {
    const std::uint64_t code = hash(block.key);
    for (std::size_t i = code;; ++i) {
        auto& slot = table_[i & (kTableSize - 1)];
        if (slot.load(std::memory_order_relaxed) > kTombstone)
            continue;
        block.table_slot = static_cast<std::uint32_t>(i & (kTableSize - 1));
        slot.store((number + kFirstNumber) | tag_of(code), std::memory_order_release);
        return;
    }
}

bool CodeCache::next_arena() {
    const std::size_t next = (current_ + 1) % kArenas;
    if (arenas_.at(next).blocks != 0)
        return false;
    current_ = next;
    return true;
}

/// Jumps in an arena that is emptied lead nowhere any more.
void CodeCache::drop_links_from(Block& block, const Arena& from) {
    for (std::uint32_t* to = &block.incoming; *to != Block::kNone;) {
        const std::uint32_t number = *to;
        Link& link = links_[number];
        if (!from.contains(link.place)) {
            to = &link.next;
            continue;
        }
        *to = link.next;
        link.next = std::exchange(free_links_, number);
    }
}

/// All live blocks are in the list of their page, and the table is made anew: tombstones must not
/// fill it in the course of time.
std::vector<std::uint64_t> CodeCache::recycle() {
    current_ = (current_ + 1) % kArenas;
    Arena& old = arena();
    for (std::size_t i = 0; i < old.blocks; ++i)
        kill(blocks_[old.first_block + i]);
    for (std::size_t i = 0; i < kTableSize; ++i)
        table_[i].store(kFree, std::memory_order_relaxed);
    std::vector<std::uint64_t> emptied;
    for (auto& [page, first] : pages_) {
        for (std::uint32_t* to = &first; *to != Block::kNone;) {
            const std::uint32_t number = *to;
            Block& block = blocks_[number];
            std::uint32_t& next = next_of(block, page);
            if (block.dead) {
                *to = next;
                continue;
            }
            drop_links_from(block, old);
            if ((block.key.gpa & ~std::uint64_t{0xfff}) == page)
                enter_table(block, number);
            to = &next;
        }
        if (first == Block::kNone)
            emptied.push_back(page);
    }
    for (const std::uint64_t page : emptied)
        pages_.erase(page);
    old.used = old.begin;
    old.cold_used = old.end;
    old.blocks = old.signals = 0;
    old.landings = 0;
    ++evictions_;
    return emptied;
}

void CodeCache::link(std::uint8_t* place, const std::uint8_t* unlinked, Block& target,
                     const std::uint8_t* entry) {
    if (target.dead || (free_links_ == Block::kNone && links_.room() == 0))
        return;
    Link& link = free_links_ == Block::kNone ? links_.add({}) : links_[free_links_];
    if (free_links_ != Block::kNone)
        free_links_ = link.next;
    link = {offset_of(place), offset_of(unlinked), target.incoming};
    target.incoming = links_.number_of(link);
    memory_->patch32(place, static_cast<std::uint32_t>(entry - (place + 4)));
}

void CodeCache::unlink(Block& block) {
    for (std::uint32_t number = std::exchange(block.incoming, Block::kNone);
         number != Block::kNone;) {
        Link& link = links_[number];
        memory_->patch32(code_at(link.place), link.unlinked - (link.place + 4));
        number = std::exchange(link.next, std::exchange(free_links_, number));
    }
}

void CodeCache::kill(Block& block) {
    if (std::exchange(block.dead, true))
        return;
    if (block.loop)
        loop_heads_.erase(block.key.gpa);
    table_[block.table_slot].store(kTombstone, std::memory_order_release);
    unlink(block);
    // jmp stale_entry; the first instruction of a far entry is 7 bytes or longer.
    std::uint8_t* const far_entry = code_at(offset_of(block.far_entry()));
    std::uint64_t code = 0;
    std::memcpy(&code, memory_->writable(far_entry), sizeof code);
    const auto distance = static_cast<std::uint32_t>(stale_entry_ - (far_entry + 5));
    code = (code & 0xff00'0000'0000'0000ull) | 0x0000'9090'0000'0000ull << 8 |
           std::uint64_t{distance} << 8 | 0xe9;
    memory_->patch64(far_entry, code);
}

bool CodeCache::invalidate_page(std::uint64_t gpa_page) {
    const auto found = pages_.find(gpa_page);
    if (found == pages_.end())
        return false;
    std::uint32_t number = found->second;
    pages_.erase(found);
    while (number != Block::kNone) {
        Block& block = blocks_[number];
        kill(block);
        const std::uint64_t first_page = block.key.gpa & ~std::uint64_t{0xfff};
        if (block.key.second_page != 0)
            forget(block, first_page == gpa_page ? block.key.second_page : first_page);
        number = next_of(block, gpa_page);
    }
    return true;
}

void CodeCache::retire(Block& block) {
    kill(block);
    forget(block, block.key.gpa & ~std::uint64_t{0xfff});
    if (block.key.second_page != 0)
        forget(block, block.key.second_page);
}

void CodeCache::supersede_page(std::uint64_t gpa_page) {
    const auto found = pages_.find(gpa_page);
    std::uint32_t number = found == pages_.end() ? Block::kNone : found->second;
    while (number != Block::kNone) {
        Block& block = blocks_[number];
        number = next_of(block, gpa_page);
        if (!block.loop && (block.key.gpa & ~std::uint64_t{0xfff}) == gpa_page)
            kill(block);
    }
}

void CodeCache::retire_through(const BlockKey& head) {
    const std::uint64_t page = head.gpa & ~std::uint64_t{0xfff};
    const auto found = pages_.find(page);
    std::uint32_t number = found == pages_.end() ? Block::kNone : found->second;
    while (number != Block::kNone) {
        Block& block = blocks_[number];
        number = next_of(block, page);
        if (!block.loop && block.key.mode == head.mode && block.key.second_page == 0 &&
            block.key.gpa < head.gpa && head.gpa < block.key.gpa + block.guest_bytes)
            retire(block);
    }
}

std::uint64_t CodeCache::next_loop_head(std::uint64_t gpa) const {
    const std::uint64_t end = (gpa | 0xfff) + 1;
    if (!loop_pages_.test(loop_page(gpa)))
        return end;
    const auto found = loop_heads_.upper_bound(gpa);
    return found == loop_heads_.end() ? end : std::min(*found, end);
}

/// Out of the list of `gpa_page`: dead blocks would pile up there as often as the other page of
/// their instruction is written.
void CodeCache::forget(Block& block, std::uint64_t gpa_page) {
    const auto found = pages_.find(gpa_page);
    if (found == pages_.end())
        return;
    const std::uint32_t number = blocks_.number_of(block);
    std::uint32_t* link = &found->second;
    while (*link != Block::kNone && *link != number)
        link = &next_of(blocks_[*link], gpa_page);
    if (*link != Block::kNone)
        *link = next_of(block, gpa_page);
    if (found->second == Block::kNone)
        pages_.erase(found);
}

bool CodeCache::page_has_code(std::uint64_t gpa_page) const { return pages_.contains(gpa_page); }

std::vector<const Block*> CodeCache::blocks_in(std::uint64_t gpa_page) const {
    std::vector<const Block*> in;
    const auto found = pages_.find(gpa_page);
    if (found == pages_.end())
        return in;
    for (std::uint32_t number = found->second; number != Block::kNone;) {
        const Block& block = blocks_[number];
        number = next_of(blocks_[number], gpa_page);
        if ((block.key.gpa & ~std::uint64_t{0xfff}) == gpa_page)
            in.push_back(&block);
    }
    return in;
}

bool CodeCache::overlaps(std::uint64_t gpa, std::uint64_t length_bytes) const {
    const std::uint64_t page = gpa & ~std::uint64_t{0xfff};
    const auto found = pages_.find(page);
    if (found == pages_.end())
        return false;
    for (std::uint32_t number = found->second; number != Block::kNone;) {
        Block& block = blocks_[number];
        number = next_of(block, page);
        const std::uint64_t begin = block.key.gpa;
        const std::uint64_t end = begin + std::max<std::uint64_t>(block.guest_bytes, 1);
        if (block.key.second_page != 0 || (gpa < end && begin < gpa + length_bytes))
            return true;
    }
    return false;
}

const Block* CodeCache::find_by_host(const void* address) const {
    const auto* const at = static_cast<const std::uint8_t*>(address);
    const auto offset = static_cast<std::size_t>(at - memory_->exec());
    const auto in =
        std::ranges::find_if(arenas_, [offset](const Arena& one) { return one.contains(offset); });
    if (in == arenas_.end() || in->blocks == 0)
        return nullptr;
    const Block* const first = &blocks_[in->first_block];
    const bool cold = offset >= in->end;
    const auto begin_of = [cold](const Block& one) { return cold ? one.cold_begin : one.begin; };
    const auto holds = [&](const Block& one) {
        return at >= begin_of(one) && at < (cold ? one.cold_end() : one.end());
    };
    // Who loops is interrupted in the same block again and again; the search costs cache misses.
    if (last_found_ >= in->first_block && last_found_ - in->first_block < in->blocks &&
        holds(blocks_[last_found_]))
        return &blocks_[last_found_];
    const Block* const after = std::upper_bound(
        first, first + in->blocks, at,
        [&](const std::uint8_t* value, const Block& one) { return value < begin_of(one); });
    if (after == first || !holds(*(after - 1)))
        return nullptr;
    last_found_ = static_cast<std::uint32_t>(after - 1 - &blocks_[0]);
    return after - 1;
}

} // namespace doppel::cpu::translator
