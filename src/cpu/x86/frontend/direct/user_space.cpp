// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/user_space.hpp"

#include <algorithm>

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kLarge = 512;    // pages of 2 MiB
constexpr unsigned kWindow = 600;        // visits
constexpr std::size_t kManyDoubts = 256; // ranges, when all at once is as well

std::uint64_t page_of(std::uint64_t linear) { return linear & ~(kPageBytes - 1); }

} // namespace

const UserSpace::Page* UserSpace::find(std::uint64_t linear) const {
    const auto found = pages_.find(linear / kPageBytes);
    return found == pages_.end() ? nullptr : &found->second;
}

bool UserSpace::has_code(std::uint64_t linear) const {
    const Page* const page = find(linear);
    return page != nullptr && is_code(page->rights);
}

/// A page that is no longer in pages_.
void UserSpace::forget(std::uint64_t number, const Page& page) {
    const auto [first, last] = by_ram_page_.equal_range(page.ram_page);
    const auto found =
        std::find_if(first, last, [&](const auto& one) { return one.second == number; });
    if (found != last)
        by_ram_page_.erase(found);
    unmapped_.push_back(number);
}

template <typename Which> void UserSpace::drop_if(Which which) {
    for (auto at = pages_.begin(); at != pages_.end();) {
        if (!which(at->first, at->second)) {
            ++at;
            continue;
        }
        const auto [number, page] = *at;
        at = pages_.erase(at);
        forget(number, page);
    }
}

template <typename Which> void UserSpace::drop_of(std::uint64_t ram_page, Which which) {
    std::vector<std::uint64_t> numbers;
    const auto [first, last] = by_ram_page_.equal_range(ram_page);
    for (auto at = first; at != last; ++at)
        if (which(pages_.at(at->second).rights))
            numbers.push_back(at->second);
    for (const std::uint64_t number : numbers)
        drop(number * kPageBytes);
}

void UserSpace::note(std::uint64_t linear, const Page& page) {
    // What was there before goes first. A second time: where that failed, all goes.
    if ((all_unmapped_ || !unmapped_.empty()) && !arrange())
        (void)arrange();
    const std::uint64_t number = linear / kPageBytes;
    if (const auto old = pages_.find(number); old != pages_.end()) {
        forget(number, old->second);
        unmapped_.pop_back(); // it will be replaced
    }
    pages_[number] = page;
    by_ram_page_.emplace(page.ram_page, number);
    huge_ |= page.page_shift > 21;
    if (page.page_shift == 21)
        large_.insert(linear / kPageBytes / kLarge);
}

void UserSpace::map(std::uint64_t linear, const Page& page) {
    note(linear, page);
    stub_->map(page_of(linear), kPageBytes, page.ram_page * kPageBytes, page.rights);
}

/// A breakpoint in a page that is mapped to be executed.
bool UserSpace::guards(std::uint64_t place) const { return place != 0 && has_code(place); }

std::size_t UserSpace::free_breakpoints(std::uint64_t linear) const {
    return most_refused() -
           static_cast<std::size_t>(std::ranges::count_if(breakpoints_, [&](std::uint64_t place) {
               return page_of(place) != page_of(linear) && guards(place);
           }));
}

/// One that guards nothing, or else one of the other page that has the most of them, in turn among
/// equals: to lose it costs that page no more, and makes room for others that want few.
std::uint64_t& UserSpace::breakpoint_for(std::uint64_t page) {
    for (std::uint64_t& place : breakpoints_)
        if (page_of(place) != page && !guards(place))
            return place;
    const auto held = [this, page](std::uint64_t place) {
        return page_of(place) == page ? 0
                                      : std::ranges::count(breakpoints_, page_of(place), page_of);
    };
    std::size_t best = next_;
    for (std::size_t i = 0; i < breakpoints_.size(); ++i) {
        const std::size_t other = (next_ + i) % breakpoints_.size();
        if (held(breakpoints_.at(other)) > held(breakpoints_.at(best)))
            best = other;
    }
    next_ = (best + 1) % breakpoints_.size();
    return breakpoints_.at(best);
}

bool UserSpace::map_code(std::uint64_t linear, const Page& page,
                         const std::vector<std::uint16_t>& refused) {
    if (refused.size() > most_refused())
        return false;
    if (page.has_rdtscp)
        refuse_tsc();
    const std::uint64_t first = page_of(linear);
    for (std::uint64_t& place : breakpoints_)
        if (page_of(place) == first) {
            place = 0;
            moved_ = true;
        }
    for (const std::uint16_t offset : refused) {
        std::uint64_t& place = breakpoint_for(first);
        drop_code_at(place); // whose it was has to come and ask again
        place = first + offset;
        moved_ = true;
    }
    if (page.rights != Rights::Execute) {
        map(linear, page);
    } else {
        note(linear, page);
        stub_->map(first, kPageBytes, copies_++ * kPageBytes, page.rights);
    }
    return true;
}

void UserSpace::adopt(const UserSpace& other) {
    std::vector<std::uint64_t> numbers;
    for (const auto& [number, page] : other.pages_)
        if (page.rights != Rights::Execute && !page.has_rdtscp &&
            std::ranges::none_of(other.breakpoints_, [number](std::uint64_t place) {
                return place / kPageBytes == number;
            }))
            numbers.push_back(number);
    std::ranges::sort(numbers); // what lies side by side is mapped at once
    for (const std::uint64_t number : numbers)
        map(number * kPageBytes, other.pages_.at(number));
    doubt_all(); // as some of it may be there
}

/// When all have been used, those who use them have to come again.
std::byte* UserSpace::next_copy() {
    if (copies_ == stub_->copies()) {
        drop_if([](std::uint64_t, const Page& page) { return page.rights == Rights::Execute; });
        copies_ = 0;
    }
    return stub_->copy(copies_);
}

/// If that page holds code.
void UserSpace::drop_code_at(std::uint64_t linear) {
    if (has_code(linear))
        drop(linear);
}

void UserSpace::drop(std::uint64_t linear) {
    const std::uint64_t number = linear / kPageBytes;
    const auto found = pages_.find(number);
    if (found == pages_.end())
        return;
    const Page page = found->second;
    pages_.erase(found);
    forget(number, page);
}

void UserSpace::doubt(std::uint64_t linear) {
    const std::uint64_t number = linear / kPageBytes;
    if (all_doubted_ || pages_.empty())
        return;
    if (huge_ || doubted_.size() >= kManyDoubts)
        return doubt_all();
    if (large_.contains(number / kLarge))
        doubted_.push_back({number & ~(kLarge - 1), kLarge});
    else if (pages_.contains(number))
        doubted_.push_back({number, 1});
}

void UserSpace::doubt_all() {
    doubted_.clear();
    all_doubted_ = true;
}

void UserSpace::start_over() {
    drop_all();
    stop_refusing();
    if (stub_->refuses_tsc() && stub_->alive())
        show_tsc();
}

void UserSpace::stop_refusing() {
    shortages_ = 0;
    if (stub_->refuses_cpuid() && stub_->alive() && !stub_->refusing_is_free()) {
        drop_all();
        stub_->unmap_all(); // and what was to be mapped need not be
        if (!stub_->refuse_cpuid(false))
            stub_->end();
    }
}

bool UserSpace::refuse_cpuid_for(std::size_t wanted) {
    // To take breakpoints from another page costs a visit, to leave a page to the translator twenty
    // times that, and to refuse CPUID about half of one for each.
    constexpr unsigned kMany = kWindow / 2, kLeftToTranslator = 20;
    if (!stub_->can_refuse_cpuid() || stub_->refuses_cpuid())
        return false;
    shortages_ += wanted > most_refused() ? kLeftToTranslator : 1;
    if (shortages_ < kMany)
        return false;
    drop_all_code();
    return stub_->refuse_cpuid(true);
}

void UserSpace::refuse_tsc() {
    tsc_refused_at_ = visits_;
    if (stub_->refuses_tsc() || stub_->refuse_tsc(true))
        return;
    drop_all(); // as when there were more mappings than the host allows
    if (!arrange() || !stub_->refuse_tsc(true))
        stub_->end();
}

void UserSpace::show_tsc() {
    drop_if([](std::uint64_t, const Page& page) { return page.has_rdtscp; });
    if ((!arrange() && !arrange()) || !stub_->refuse_tsc(false))
        stub_->end();
}

void UserSpace::drop_all() {
    pages_.clear();
    by_ram_page_.clear();
    large_.clear();
    huge_ = false;
    doubted_.clear();
    all_doubted_ = false;
    unmapped_.clear();
    all_unmapped_ = true;
}

void UserSpace::drop_write(std::uint64_t ram_page) {
    drop_of(ram_page, [](Rights rights) { return rights == Rights::ReadWrite; });
}

void UserSpace::drop_code(std::uint64_t ram_page) { drop_of(ram_page, is_code); }

void UserSpace::drop_all_writes() {
    drop_if([](std::uint64_t, const Page& page) { return page.rights == Rights::ReadWrite; });
}

void UserSpace::drop_all_code() {
    drop_if([](std::uint64_t, const Page& page) { return is_code(page.rights); });
}

void UserSpace::drop_guarded() {
    drop_if([](std::uint64_t, const Page& page) { return page.guarded; });
}

std::vector<std::uint64_t> UserSpace::guarded_pages() const {
    std::vector<std::uint64_t> pages;
    for (const std::uint64_t place : breakpoints_)
        if (guards(place) && find(place)->guarded &&
            std::ranges::find(pages, page_of(place)) == pages.end())
            pages.push_back(page_of(place));
    return pages;
}

std::vector<std::uint16_t> UserSpace::refused_at(std::uint64_t linear) const {
    std::vector<std::uint16_t> offsets;
    for (const std::uint64_t place : breakpoints_)
        if (place != 0 && page_of(place) == page_of(linear))
            offsets.push_back(static_cast<std::uint16_t>(place - page_of(place)));
    std::ranges::sort(offsets);
    return offsets;
}

void UserSpace::resolve(const StillSo& still_so) {
    if (all_doubted_)
        drop_if([&](std::uint64_t number, const Page& page) {
            return !still_so(number * kPageBytes, page);
        });
    for (const auto& [first, count] : doubted_)
        for (std::uint64_t number = first; number < first + count; ++number)
            if (const auto page = pages_.find(number);
                page != pages_.end() && !still_so(number * kPageBytes, page->second))
                drop(number * kPageBytes);
    doubted_.clear();
    all_doubted_ = false;
}

bool UserSpace::sync(const StillSo& still_so) {
    if (++visits_ % kWindow == 0)
        shortages_ = 0;
    resolve(still_so);
    if (stub_->refuses_tsc() && visits_ - tsc_refused_at_ > kWindow)
        show_tsc();
    return arrange();
}

bool UserSpace::arrange() {
    if (all_unmapped_) {
        // What was asked for before is forgotten, and must be.
        all_unmapped_ = false;
        stub_->unmap_all();
    }
    std::ranges::sort(unmapped_);
    for (std::size_t i = 0; i < unmapped_.size();) {
        std::size_t end = i + 1;
        while (end < unmapped_.size() && unmapped_[end] - unmapped_[i] == end - i)
            ++end;
        stub_->unmap(unmapped_[i] * kPageBytes, (end - i) * kPageBytes);
        i = end;
    }
    unmapped_.clear();
    const bool placed = !moved_ || stub_->set_breakpoints(breakpoints_);
    moved_ = !placed;
    if (!placed)
        drop_all_code();
    if (stub_->flush())
        return placed;
    drop_all(); // as when there are more mappings than the host allows
    return false;
}

} // namespace doppel::cpu::x86::frontend
