// SPDX-License-Identifier: Apache-2.0
/// Pages of code where breakpoints are short: those at which functions begin stand for all that is
/// in them, as long as none of these functions is active.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/direct/direct_users.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint64_t kPageBytes = 4096, kPageOffset = kPageBytes - 1;

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

/// Where breakpoints keep all that is secretive from being executed, as long as nobody has come by
/// one of them.
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
    if (is_active(code, page, ram_page))
        return code.secretive;
    Places places;
    std::ranges::transform(code.guards, std::back_inserter(places), &Guard::place);
    return places;
}

/// Whether a function of the page at `page` that has guards may be active.
bool DirectUsers::is_active(const Code& code, std::uint64_t page, std::uint64_t ram_page) {
    const GuardedCalls::Page place{.root = root(), .linear = page};
    const auto is_there = [this](const GuardedCalls::Call& call) {
        std::uint64_t value = 0;
        return !read(call.slot, as_bytes(value)) || value == call.to;
    };
    const std::uint64_t rip = cx_.state.rip - page;
    const auto goes_on_in = [rip](const Guard& guard) {
        return guard.is_within(rip) && rip != guard.place;
    };
    if (calls_.any_active(place, ram_page, is_there))
        return true;
    const bool midst = std::ranges::any_of(code.guards, goes_on_in);
    if (midst)
        calls_.add_for_good(place, ram_page);
    return note_returns({{page, &code}}) || midst;
}

/// Whether the stack looks as if functions of these pages that have guards were active: they were
/// called where there were none, as on another vCPU or in translated code.
bool DirectUsers::note_returns(const std::vector<std::pair<std::uint64_t, const Code*>>& pages) {
    constexpr std::uint64_t kDeep = 4 * kPageBytes; // deeper ones are not seen
    const std::uint64_t rsp = (cx_.state.gpr[Rsp] + 7) & ~std::uint64_t{7};
    const std::byte* stack = nullptr;
    bool found = false;
    for (std::uint64_t at = rsp; at < rsp + kDeep; at += 8) {
        if (at == rsp || (at & kPageOffset) == 0)
            stack = bytes_at(at & ~kPageOffset);
        if (stack == nullptr)
            break;
        std::uint64_t value = 0;
        std::memcpy(&value, stack + (at & kPageOffset), sizeof value);
        for (const auto& [page, code] : pages) {
            const std::uint64_t offset = value - page;
            if (offset < kPageBytes && std::ranges::any_of(
                                           code->guards,
                                           [offset](const Guard& guard) {
                                               return guard.is_within(offset) &&
                                                      offset != guard.place; // that is a pointer
                                           })) {
                calls_.add({.root = root(), .linear = page}, {.slot = at, .to = value});
                found = true;
            }
        }
    }
    return found;
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

/// Whether rip is within a function that has secretive instructions and a guard at its entry: until
/// it has returned there is a breakpoint for each of them, or the page is the translator's.
bool DirectUsers::enter_guarded(std::uint64_t rip) {
    const UserSpace::Page* const page = current_->users->find(rip);
    if (page == nullptr || !page->guarded)
        return false;
    const auto known = code_.find(page->ram_page);
    if (known == code_.end())
        return false;
    const auto& guards = known->second.guards;
    const std::uint64_t offset = rip & kPageOffset;
    if (std::ranges::none_of(guards, [&](const Guard& one) { return one.is_within(offset); }))
        return false;
    const bool begins = std::ranges::find(guards, offset, &Guard::place) != guards.end();
    const GuardedCalls::Page place{.root = root(), .linear = rip & ~kPageOffset};
    GuardedCalls::Call call{.slot = cx_.state.gpr[Rsp], .to = 0};
    if (begins && read(call.slot, as_bytes(call.to)) && is_behind_call(call.to))
        calls_.add(place, call);
    else // in the midst of it
        calls_.add_for_good(place, page->ram_page);
    return true;
}

/// When a function was entered, here or on another CPU.
void DirectUsers::drop_guarded() {
    const std::uint64_t count = calls_.count();
    if (std::exchange(calls_seen_, count) != count)
        for_all([](UserSpace& users) { users.drop_guarded(); });
}

/// The code there is to have guards, or not, in all processes alike: who has passed one must not go
/// on in another process where it stands for what he has before him.
void DirectUsers::have_guards(std::uint64_t linear, bool yes) {
    for_all_of(*current_, [&](UserSpace& users) {
        if (users.has_code(linear) && users.find(linear)->guarded != yes)
            users.drop(linear);
    });
}

} // namespace doppel::cpu::x86::frontend
