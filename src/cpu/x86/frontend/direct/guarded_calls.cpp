// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guarded_calls.hpp"

#include <algorithm>

namespace doppel::cpu::x86::frontend {

namespace {

/// Whoever is called so often gains nothing by guards; nor does it do to remember ever more.
constexpr unsigned kMost = 64;

} // namespace

void GuardedCalls::add(std::uint64_t ram_page, const Call& call) {
    const base::MutexLock lock{mutex_};
    Page& page = pages_[ram_page];
    page.for_good = page.for_good || ++page.added >= kMost;
    if (std::ranges::find(page.calls, call) != page.calls.end())
        return; // there are no guards then
    page.calls.push_back(call);
    ++count_;
}

void GuardedCalls::add_for_good(std::uint64_t ram_page) {
    const base::MutexLock lock{mutex_};
    pages_[ram_page].for_good = true;
    ++count_;
}

bool GuardedCalls::any_active(std::uint64_t ram_page, std::uint64_t root, const IsThere& is_there) {
    const base::MutexLock lock{mutex_};
    const auto known = pages_.find(ram_page);
    if (known == pages_.end())
        return false;
    Page& page = known->second;
    if (page.for_good)
        return true;
    std::erase_if(page.calls,
                  [&](const Call& call) { return call.root == root && !is_there(call); });
    return std::ranges::any_of(page.calls, [root](const Call& call) { return call.root == root; });
}

} // namespace doppel::cpu::x86::frontend
