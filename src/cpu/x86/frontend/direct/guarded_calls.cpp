// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guarded_calls.hpp"

#include <algorithm>

namespace doppel::cpu::x86::frontend {

namespace {

/// Whoever is called so often gains nothing by guards; nor does it do to remember ever more.
constexpr unsigned kMostCalls = 64;
/// Most of them of programs that have ended.
constexpr std::size_t kMostPages = 4096;

} // namespace

GuardedCalls::Known& GuardedCalls::find(const Page& page) {
    if (pages_.size() >= kMostPages && !pages_.contains(page)) {
        std::erase_if(pages_, [](const auto& one) { return !one.second.for_good; });
        ++count_; // the stack tells of those that are active
    }
    return pages_[page];
}

void GuardedCalls::add(const Page& page, const Call& call) {
    const base::MutexLock lock{mutex_};
    Known& known = find(page);
    if (std::ranges::find(known.calls, call) != known.calls.end())
        return; // there are no guards then
    known.calls.push_back(call);
    known.for_good = known.for_good || ++known.added >= kMostCalls;
    ++count_;
}

void GuardedCalls::add_for_good(const Page& page, std::uint64_t ram_page) {
    const base::MutexLock lock{mutex_};
    find(page).for_good = true;
    if (for_good_.insert(ram_page).second)
        ++count_;
}

bool GuardedCalls::is_active(const Page& page, std::uint64_t ram_page, std::uint16_t guard,
                             const IsThere& is_there) {
    const base::MutexLock lock{mutex_};
    if (for_good_.contains(ram_page))
        return true;
    const auto known = pages_.find(page);
    if (known == pages_.end())
        return false;
    auto& [calls, added, for_good] = known->second;
    std::erase_if(calls, std::not_fn(is_there));
    return for_good || std::ranges::find(calls, guard, &Call::guard) != calls.end();
}

} // namespace doppel::cpu::x86::frontend
