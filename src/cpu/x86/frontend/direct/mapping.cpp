// SPDX-License-Identifier: Apache-2.0
/// Which pages users who run directly have, and with which rights.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "cpu/x86/frontend/direct/direct_users.hpp"
#include "cpu/x86/frontend/direct/page_scan.hpp"
#include "cpu/x86/system/linear_memory.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint64_t kPageBytes = 4096, kPageOffset = kPageBytes - 1;
constexpr std::uint64_t kLargeBytes = 2 << 20;
constexpr std::uint64_t kWindow = 16 * kPageBytes; // looked at when one page is missed
/// Below it Linux maps nothing for a process that is not privileged.
constexpr std::uint64_t kFirstPage = 0x10000;

} // namespace

/// In the address space in force, which is that of `users`.
bool DirectUsers::sync(UserSpace& users) {
    return users.sync([this](std::uint64_t linear, const UserSpace::Page& page) {
        Translation to;
        if (!translate_used(cx_, linear, to))
            return false;
        const RamView::Region* const region = cx_.ram.find(to.gpa.value);
        if (region == nullptr || page.ram_page != cx_.ram.page_number(cx_.ram.state(to.gpa.value)))
            return false;
        const auto wanted = page.rights == UserSpace::Rights::ReadWrite ? AccessType::Write
                            : UserSpace::is_code(page.rights)           ? AccessType::Execute
                                                                        : AccessType::Read;
        return (allowed(cx_, to) & permission(wanted, Privilege::User)) != 0;
    });
}

void DirectUsers::prime(const translator::TlbInstance& tlb, const std::uint16_t* entries,
                        std::size_t count) {
    constexpr std::size_t kMost = 2000;
    UserSpace& users = *current_->users;
    holds_pages_ = current_->primed = true;
    wants_pages = false;
    if (!sync(users))
        return;
    std::vector<std::uint64_t> pages;
    for (std::size_t i = 0; i < std::min(count, kMost); ++i)
        pages.push_back(tlb.rtag.at(entries[i]));
    std::ranges::sort(pages);
    map_all(users, pages); // map() refuses what stands for nothing
}

bool DirectUsers::map_missed(Space& space, std::uint64_t address, Wanted wanted) {
    UserSpace* const users = space.users.get();
    const bool alone = users->find(address) != nullptr;
    if (!map(*users, address, wanted))
        return false;
    if (!alone && space.users.get() == users)
        map_around(space, address, wanted == Wanted::Code);
    return true;
}

/// What is in RAM there, in the address space in force; null: nothing.
const std::byte* DirectUsers::bytes_at(std::uint64_t linear) const {
    memory::Gpa there;
    return translate_quietly(cx_, linear, there) ? cx_.ram.host(there.value) : nullptr;
}

/// The page of code at `linear`, writes to which are told of from now on.
DirectUsers::Code& DirectUsers::watch(const RamView::Region& region, std::uint64_t gpa,
                                      std::uint64_t linear) {
    const std::uint64_t number = cx_.ram.page_number(region.states[(gpa - region.base) >> 12]);
    code_marks_.set(number);
    while (!watch_({&gpa, 1})) {
    }
    const std::uint64_t page = linear & ~kPageOffset;
    const auto* const behind = bytes_at(page + kPageBytes);
    // What ends on the next page may have been taken for one because that was not there.
    const auto may_be_known_better = [behind](const Places& places) {
        return behind != nullptr && !places.empty() &&
               places.back() + PageBytes::kBehind >= PageBytes::kPage;
    };
    const auto [known, is_new] = code_.try_emplace(number);
    Code& code = known->second;
    if (!is_new && !may_be_known_better(code.secretive))
        return code;
    PageBytes bytes;
    bytes.end = PageBytes::kBefore + PageBytes::kPage;
    std::memcpy(bytes.bytes.data() + bytes.first, region.host + (gpa - region.base), kPageBytes);
    if (behind != nullptr) {
        std::memcpy(bytes.bytes.data() + bytes.end, behind, PageBytes::kBehind);
        bytes.end += PageBytes::kBehind;
    }
    if (const auto* const before = bytes_at(page - PageBytes::kBefore); before != nullptr) {
        std::memcpy(bytes.bytes.data(), before, PageBytes::kBefore);
        bytes.first = 0;
    }
    Places places = secretive_instructions(bytes);
    code.has_rdtscp = has_rdtscp(bytes);
    if (places == code.secretive)
        return code;
    if (!is_new) // where it is mapped there are breakpoints for what was known before
        for_all([number](UserSpace& users) { users.drop_code(number); });
    code.secretive = std::move(places);
    code.guards.clear();
    return code;
}

/// Where users' code began in the page: with blocks, or where the process could not go on.
DirectUsers::Places DirectUsers::begins_in(std::uint64_t gpa) const {
    Places begins = executed_(gpa);
    const auto known = code_.find(cx_.ram.page_number(cx_.ram.state(gpa)));
    if (known != code_.end())
        begins.insert(begins.end(), known->second.seen.begin(), known->second.seen.end());
    return begins;
}

/// Offsets in the page at `linear` at which instructions begin, as far as executed code tells: its
/// own, and that of the pages nearby.
DirectUsers::Begins DirectUsers::surely_begin(std::uint64_t linear, std::uint64_t gpa,
                                              const std::byte* code) {
    constexpr std::int64_t kPage = kPageBytes, kNearby = 4;
    const auto bytes = [](const std::byte* page) {
        return std::span{reinterpret_cast<const std::uint8_t*>(page), kPageBytes};
    };
    Places begins = begins_in(gpa);
    for (std::int64_t i = -kNearby; i <= kNearby; ++i) {
        memory::Gpa other;
        if (i == 0 ||
            !translate_quietly(cx_, linear + static_cast<std::uint64_t>(i * kPage), other))
            continue;
        const std::byte* const host = cx_.ram.host(other.value);
        if (host == nullptr)
            continue;
        const Places theirs = begins_in(other.value);
        const Reached reached = reached_instructions(bytes(host), theirs);
        if (code_written_.load() || begins_in(other.value) != theirs)
            continue; // written to meanwhile
        for (const std::int64_t target : reached.outside)
            if (const std::int64_t here = target + i * kPage; here >= 0 && here < kPage)
                begins.push_back(static_cast<std::uint16_t>(here));
    }
    return reached_instructions(bytes(code), std::move(begins)).begins;
}

DirectUsers::Places DirectUsers::without_cpuid(Places secretive, const std::byte* code) {
    std::erase_if(secretive, [code](std::uint16_t place) {
        return place + 1u < kPageBytes && code[place] == std::byte{0x0f} &&
               code[place + 1u] == std::byte{0xa2};
    });
    return secretive;
}

/// False: the page is for the translator.
bool DirectUsers::map_code(UserSpace& users, std::uint64_t linear, const RamView::Region& region,
                           std::uint64_t gpa, UserSpace::Page page, Wanted wanted) {
    const std::byte* const code = region.host + (gpa - region.base);
    Code& known = watch(region, gpa, linear);
    const Places others = without_cpuid(known.secretive, code);
    const Places& refused = users.stub().refuses_cpuid() ? others : known.secretive;
    // What only may be executed soon takes no breakpoints from what is.
    if (wanted != Wanted::Code && (!refused.empty() || known.has_rdtscp))
        return false;
    page.has_rdtscp = known.has_rdtscp;
    page.rights = UserSpace::Rights::ReadExecute;
    const std::size_t free = users.free_breakpoints(linear);
    // Who has guards keeps them, lest processes differ.
    if (refused.size() <= free && known.guards.empty())
        return map_refusing(users, linear, page, refused);
    if (!users.has_copies() && !users.stub().refuses_cpuid()) {
        const Places places = guarded(known, linear, page.ram_page, code);
        page.guarded = places.size() < refused.size() && places.size() <= users.most_refused();
        if (page.guarded)
            return map_refusing(users, linear, page, places);
    }
    // In a copy they are replaced, but only those that surely are instructions. An operand that was
    // replaced would be read by the one whose it is.
    Places sure, unsure = refused;
    if (users.has_copies()) {
        const Begins begins = surely_begin(linear & ~kPageOffset, gpa, code);
        std::ranges::copy_if(refused, std::back_inserter(sure),
                             [&](std::uint16_t place) { return begins.test(place); });
        std::erase_if(unsure, [&](std::uint16_t place) { return begins.test(place); });
    }
    if (unsure.size() > free && others.size() < unsure.size() &&
        users.refuse_cpuid_for(unsure.size()))
        return map_code(users, linear, region, gpa, page, wanted);
    if (sure.empty() || unsure.size() > users.most_refused())
        return map_refusing(users, linear, page, refused);
    constexpr std::byte kHlt{0xf4};
    std::byte* const copy = users.next_copy();
    std::memcpy(copy, code, kPageBytes);
    for (const std::uint16_t place : sure)
        copy[place] = kHlt;
    page.rights = UserSpace::Rights::Execute;
    return users.map_code(linear, page, unsure);
}

bool DirectUsers::can_map(UserSpace& users, std::uint64_t linear) {
    return linear >= kFirstPage && linear < StubProcess::kEnd && !users.stub().is_own(linear);
}

bool DirectUsers::is_text(const Translation& to) const {
    return (allowed(cx_, to) & permission(AccessType::Execute, Privilege::User)) != 0 &&
           !to.writable;
}

/// The page at `linear` with the rights that the guest gives; not those to
/// write and to execute at once. Sets the A bit, as whatever looks ahead in a table may.
bool DirectUsers::map(UserSpace& users, std::uint64_t linear, Wanted wanted) {
    if (!can_map(users, linear))
        return false;
    Translation to;
    const auto access = wanted == Wanted::Code ? AccessType::Execute : AccessType::Read;
    if (!translate(cx_, linear, access, Privilege::User, to))
        return false;
    const std::uint64_t gpa = to.gpa.value & ~kPageOffset;
    const RamView::Region* const region = cx_.ram.find(gpa);
    if (region == nullptr)
        return false;
    const auto& state = region->states[(gpa - region->base) >> 12];
    const std::uint16_t rights = allowed(cx_, to);
    const auto may = [&](AccessType type) {
        return (rights & permission(type, Privilege::User)) != 0;
    };
    UserSpace::Page page{.ram_page = cx_.ram.page_number(state), .page_shift = to.page_shift};
    ++counts_.pages;
    if (wanted == Wanted::Code || (wanted == Wanted::Any && is_text(to))) {
        const bool mapped = map_code(users, linear, *region, gpa, page, wanted);
        if (mapped || wanted == Wanted::Code)
            return mapped;
    }
    if (may(AccessType::Write) && cx_.ram.may_keep_writing(state))
        page.rights = UserSpace::Rights::ReadWrite;
    else if (wanted == Wanted::Write)
        return false;
    users.map(linear, page);
    return true;
}

/// Neighbours of what was missed, as it costs much less than to miss them. All of a large page, and
/// ever more where one window after the other is missed.
void DirectUsers::map_around(Space& space, std::uint64_t linear, bool code) {
    UserSpace& users = *space.users;
    const UserSpace::Page* const missed = users.find(linear);
    const bool large = missed != nullptr && missed->page_shift > 12 && !code;
    const bool goes_on = linear - space.ahead < kPageBytes;
    space.window = goes_on ? std::min(2 * space.window, kLargeBytes) : kWindow;
    const std::uint64_t first = large     ? linear & ~(kLargeBytes - 1)
                                : goes_on ? space.ahead
                                          : linear & ~(kWindow - 1);
    const std::uint64_t end = first + (large ? kLargeBytes : space.window);
    std::vector<std::uint64_t> pages;
    for (std::uint64_t page = first; page < end; page += kPageBytes)
        pages.push_back(page);
    map_all(users, pages);
    space.ahead = end;
}

/// Those that can be and are not yet. To watch much code at once costs little more than a page.
void DirectUsers::map_all(UserSpace& users, std::span<const std::uint64_t> pages) {
    std::vector<std::uint64_t> code;
    for (const std::uint64_t page : pages) {
        Translation to;
        if (can_map(users, page) && users.find(page) == nullptr &&
            translate(cx_, page, AccessType::Read, Privilege::User, to) && is_text(to) &&
            cx_.ram.find(to.gpa.value) != nullptr)
            code.push_back(to.gpa.value & ~kPageOffset);
    }
    watch_(code);
    for (const std::uint64_t page : pages)
        if (users.find(page) == nullptr)
            map(users, page, Wanted::Any);
}

} // namespace doppel::cpu::x86::frontend
