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

} // namespace

/// Eight bytes, 0 where nothing is.
std::uint64_t DirectUsers::word_at(std::uint64_t linear) const {
    std::uint64_t value = 0;
    const std::byte* const there = bytes_at(linear);
    if (there != nullptr && (linear & kPageOffset) <= kPageBytes - sizeof value)
        std::memcpy(&value, there, sizeof value);
    return value;
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
        code.guards = guards_of(text, kPageBytes, code.secretive);
    }
    const auto is_there = [this](const GuardedCalls::Call& call) {
        return word_at(call.slot) == call.to;
    };
    const std::uint64_t rip = cx_.state.rip - page;
    const auto goes_on_in = [rip](const Guard& guard) {
        return guard.is_within(rip) && rip != guard.place;
    };
    if (std::ranges::any_of(code.guards, goes_on_in) ||
        calls_.any_active(ram_page, root(), is_there) ||
        will_return_into(code.guards, page, ram_page))
        return code.secretive;
    Places places;
    std::ranges::transform(code.guards, std::back_inserter(places), &Guard::place);
    return places;
}

/// Whether the stack looks as if a function of the page at `page` that has guards were active: it
/// was entered when the page had none.
bool DirectUsers::will_return_into(std::span<const Guard> guards, std::uint64_t page,
                                   std::uint64_t ram_page) {
    constexpr std::uint64_t kDeep = 4 * kPageBytes; // deeper ones are not seen
    const std::uint64_t rsp = (cx_.state.gpr[Rsp] + 7) & ~std::uint64_t{7};
    const std::byte* stack = nullptr;
    for (std::uint64_t at = rsp; at < rsp + kDeep; at += 8) {
        if (at == rsp || (at & kPageOffset) == 0)
            stack = bytes_at(at & ~kPageOffset);
        if (stack == nullptr)
            return false;
        std::uint64_t value = 0;
        std::memcpy(&value, stack + (at & kPageOffset), sizeof value);
        const std::uint64_t offset = value - page;
        if (offset < kPageBytes &&
            std::ranges::any_of(
                guards, [offset](const Guard& guard) { return guard.is_within(offset); })) {
            calls_.add(ram_page, {.root = root(), .slot = at, .to = value});
            return true;
        }
    }
    return false;
}

/// Whether it looks as if a call ended there: E8 with 32 bits, or FF /2.
bool DirectUsers::is_behind_call(std::uint64_t linear) const {
    constexpr std::uint64_t kLongest = 8;
    std::array<std::uint8_t, kLongest> bytes{};
    for (std::uint64_t i = 0; i < kLongest; ++i) {
        const std::byte* const there = bytes_at(linear - kLongest + i);
        if (there == nullptr)
            return false;
        bytes.at(i) = std::to_integer<std::uint8_t>(*there);
    }
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
    const auto guard =
        std::ranges::find_if(guards, [offset](const Guard& one) { return one.is_within(offset); });
    if (guard == guards.end())
        return false;
    const std::uint64_t slot = cx_.state.gpr[Rsp], to = word_at(slot);
    if (guard->place == offset && is_behind_call(to))
        calls_.add(page->ram_page, {.root = root(), .slot = slot, .to = to});
    else // in the midst of it
        calls_.add_for_good(page->ram_page);
    return true;
}

/// When a function was entered, here or on another CPU.
void DirectUsers::drop_guarded() {
    const std::uint64_t count = calls_.count();
    if (std::exchange(calls_seen_, count) != count)
        for_all([](UserSpace& users) { users.drop_guarded(); });
}

} // namespace doppel::cpu::x86::frontend
