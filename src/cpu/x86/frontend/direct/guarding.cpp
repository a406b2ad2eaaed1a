// SPDX-License-Identifier: Apache-2.0
/// Pages of code where breakpoints are short: the one at which a function begins stands for all
/// that is in it, as long as that function is not active.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <ranges>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/direct/direct_users.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint64_t kPageBytes = 4096, kPageOffset = kPageBytes - 1;
constexpr std::size_t kLongestInstruction = 15;

std::span<std::uint8_t> as_bytes(std::uint64_t& value) {
    return {reinterpret_cast<std::uint8_t*>(&value), sizeof value};
}

} // namespace

/// Into `bytes`, which are fewer than a page. False: something of it is nowhere.
bool DirectUsers::read(std::uint64_t linear, std::span<std::uint8_t> bytes) const {
    const std::uint64_t room = kPageBytes - (linear & kPageOffset);
    const std::size_t first = std::min<std::uint64_t>(bytes.size(), room);
    const std::byte* const here = bytes_at(linear);
    if (here == nullptr)
        return false;
    std::memcpy(bytes.data(), here, first);
    return first == bytes.size() || read(linear + first, bytes.subspan(first));
}

/// Where breakpoints keep all that is secretive in the page from being executed, until somebody
/// comes by one of them.
DirectUsers::Places DirectUsers::guarded(Code& code, std::uint64_t linear, std::uint64_t ram_page,
                                         const std::byte* bytes) {
    const std::uint64_t page = linear & ~kPageOffset;
    const std::byte* const before = bytes_at(page - kPageBytes);
    const std::byte* const behind = bytes_at(page + kPageBytes);
    if (before == nullptr || behind == nullptr)
        return code.secretive;
    if (code.guards.empty()) {
        std::vector<std::uint8_t> text;
        for (const std::byte* const one : {before, bytes, behind}) {
            const auto* const first = reinterpret_cast<const std::uint8_t*>(one);
            text.insert(text.end(), first, first + kPageBytes);
        }
        code.guards = guards_of(
            text, kPageBytes, code.secretive, page - kPageBytes,
            [this](std::uint64_t there, std::span<std::uint8_t> to) { return read(there, to); });
    }
    look_for_calls(code, page, ram_page);
    return places_of(code, page, ram_page);
}

/// For each function its guard, or what is secretive in it, if it may be active.
DirectUsers::Places DirectUsers::places_of(const Code& code, std::uint64_t page,
                                           std::uint64_t ram_page) {
    const auto is_there = [this](const GuardedCalls::Call& call) {
        std::uint64_t value = 0;
        return !read(call.slot, as_bytes(value)) || value == call.to;
    };
    Places places;
    for (const Guard& guard : code.guards) {
        const bool active = guard.is_entry() && calls_.is_active({.root = root(), .linear = page},
                                                                 ram_page, guard.place, is_there);
        if (active)
            std::ranges::copy(std::span{code.secretive}.subspan(guard.first, guard.count),
                              std::back_inserter(places));
        else
            places.push_back(guard.place);
    }
    std::ranges::sort(places);
    return places;
}

/// Those that this thread is in.
void DirectUsers::look_for_calls(const Code& code, std::uint64_t page, std::uint64_t ram_page) {
    note_returns({{page, &code}});
    const std::uint64_t rip = cx_.state.rip - page;
    const Places places = places_of(code, page, ram_page);
    for (const Guard& guard : code.guards)
        if (guard.is_within(rip) && rip != guard.place &&
            std::ranges::binary_search(places, guard.place))
            note_entry(guard, page, ram_page);
}

/// Looks for functions of these pages that have guards on the stack: they may have been called
/// where there were none, as on another vCPU or in translated code. `pages` is not empty.
void DirectUsers::note_returns(const std::vector<std::pair<std::uint64_t, const Code*>>& pages) {
    constexpr std::uint64_t kDeep = 4 * kPageBytes; // deeper ones are not seen
    const auto [low, high] = std::ranges::minmax(pages | std::views::keys);
    const std::uint64_t extent = high - low + kPageBytes; // few words are anywhere near
    const std::uint64_t rsp = (cx_.state.gpr[Rsp] + 7) & ~std::uint64_t{7};
    const std::byte* stack = nullptr;
    for (std::uint64_t at = rsp; at < rsp + kDeep; at += 8) {
        if (at == rsp || (at & kPageOffset) == 0)
            stack = bytes_at(at & ~kPageOffset);
        if (stack == nullptr)
            return;
        std::uint64_t value = 0;
        std::memcpy(&value, stack + (at & kPageOffset), sizeof value);
        if (value - low >= extent)
            continue;
        for (const auto& [page, code] : pages)
            if (value - page < kPageBytes)
                note_return(*code, page, {.guard = 0, .slot = at, .to = value});
    }
}

void DirectUsers::note_return(const Code& code, std::uint64_t page, GuardedCalls::Call call) {
    const std::uint64_t offset = call.to - page;
    for (const Guard& guard : code.guards)
        if (guard.is_within(offset) && offset != guard.place) { // that is a pointer to a function
            call.guard = guard.place;
            calls_.add({.root = root(), .linear = page}, call);
        }
}

/// Before users go on: what they will return into, wherever they come from.
void DirectUsers::look_at_stack(Space& space) {
    std::vector<std::pair<std::uint64_t, const Code*>> pages;
    for_all_of(space, [&](const UserSpace& users) {
        for (const std::uint64_t page : users.guarded_pages()) {
            const auto known = code_.find(users.find(page)->ram_page);
            if (known != code_.end())
                pages.emplace_back(page, &known->second);
        }
    });
    if (!pages.empty())
        note_returns(pages);
}

/// Whether it looks as if a call ended there: E8 with 32 bits, or FF /2.
bool DirectUsers::is_behind_call(std::uint64_t linear) const {
    constexpr std::size_t kLongest = 8;
    std::array<std::uint8_t, kLongest> bytes{};
    if (!read(linear - kLongest, bytes))
        return false;
    for (std::size_t length = 2; length <= kLongest; ++length) {
        Instruction instruction;
        if (decode(std::span{bytes}.last(length), CodeSize::Bits64, instruction) ==
                DecodeStatus::Ok &&
            instruction.length == length &&
            (instruction.branch == BranchKind::Call ||
             instruction.branch == BranchKind::IndirectCall))
            return true;
    }
    return false;
}

/// Whether rip is within a function of which the guard is in force: until it has returned there is
/// a breakpoint for each of its secretive instructions, or the page is the translator's.
bool DirectUsers::enter_guarded(std::uint64_t rip) {
    const UserSpace& users = *current_->users;
    const UserSpace::Page* const page = users.find(rip);
    if (page == nullptr || !page->guarded)
        return false;
    const auto known = code_.find(page->ram_page);
    if (known == code_.end())
        return false;
    const std::uint64_t offset = rip & kPageOffset;
    const Places places = users.refused_at(rip);
    const Guard* within = nullptr;
    for (const Guard& guard : known->second.guards)
        if (guard.is_within(offset) && std::ranges::binary_search(places, guard.place))
            within = &guard; // the last that begins there or before
    if (within == nullptr)
        return false;
    note_entry(*within, rip & ~kPageOffset, page->ram_page);
    return true;
}

/// rip is where the function with this guard begins, or within it.
void DirectUsers::note_entry(const Guard& guard, std::uint64_t page, std::uint64_t ram_page) {
    const GuardedCalls::Page place{.root = root(), .linear = page};
    GuardedCalls::Call call{.guard = guard.place, .slot = 0, .to = 0};
    if (guard.is_function && find_slot(page + guard.place, call.slot) &&
        read(call.slot, as_bytes(call.to)) && is_behind_call(call.to))
        calls_.add(place, call);
    else
        calls_.add_for_good(place, ram_page);
}

/// Where the function that begins there has its return address: as long as there is nothing but a
/// prologue between its beginning and rip.
bool DirectUsers::find_slot(std::uint64_t begin, std::uint64_t& slot) const {
    slot = cx_.state.gpr[Rsp];
    while (begin < cx_.state.rip) {
        std::array<std::uint8_t, kLongestInstruction> bytes{};
        Instruction instruction;
        if (!read(begin, bytes) ||
            decode(bytes, CodeSize::Bits64, instruction) != DecodeStatus::Ok ||
            instruction.branch != BranchKind::None)
            return false;
        begin += instruction.length;
        if ((instruction.registers_written >> Rsp & 1) == 0)
            continue;
        const bool by_constant = instruction.op == Op::Sub && instruction.operand_size == 8 &&
                                 instruction.immediate_size != 0;
        if (instruction.op == Op::Push && instruction.operand_size == 8)
            slot += 8;
        else if (by_constant)
            slot += instruction.immediate;
        else
            return false;
    }
    return begin == cx_.state.rip;
}

/// When a function was entered, here or on another CPU.
void DirectUsers::drop_guarded() {
    const std::uint64_t count = calls_.count();
    if (std::exchange(calls_seen_, count) != count)
        for_all([](UserSpace& users) { users.drop_guarded(); });
}

/// The code there is to have these breakpoints in all processes alike: who has passed a guard in
/// one must not go on in another where a guard stands for what he has before him.
void DirectUsers::refuse_alike(std::uint64_t linear, const Places& places) {
    for_all_of(*current_, [&](UserSpace& users) {
        if (users.has_code(linear) && users.refused_at(linear) != places)
            users.drop(linear);
    });
}

} // namespace doppel::cpu::x86::frontend
