// SPDX-License-Identifier: Apache-2.0
/// More processes for users of an address space whose code wants more breakpoints than one has,
/// where neither copies of code nor the CPU help. To go on in another process is a visit; to move
/// breakpoints is two, and the host's kernel's work for each page.
#include <algorithm>

#include "cpu/x86/frontend/direct/direct_users.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint64_t kPageOffset = 4095;
constexpr unsigned kManyShortages = 50; // which take as long as it takes to make a process

} // namespace

/// One that nobody has, a new one, or those of who has not been here for longest.
bool DirectUsers::give_other(Space& space) {
    const auto is_dead = [](const auto& users) { return !users->stub().alive(); };
    const auto dead = std::ranges::partition(spare_, std::not_fn(is_dead));
    std::ranges::move(dead, std::back_inserter(retired_));
    others_ -= dead.size();
    spare_.erase(dead.begin(), dead.end());
    if (spare_.empty() && others_ >= kAllOthers) {
        const auto use = [&](const Space& one) {
            return &one == &space || one.others.empty() ? ~std::uint64_t{0} : one.last_use;
        };
        take_others(*std::ranges::min_element(spaces_, {}, use));
    }
    if (spare_.empty()) {
        auto stub = StubProcess::create(ram_);
        if (!stub)
            return false;
        ++others_;
        spare_.push_back(std::make_unique<UserSpace>(std::move(*stub)));
    }
    spare_.back()->adopt(*space.users);
    space.others.push_back(std::move(spare_.back()));
    spare_.pop_back();
    return true;
}

void DirectUsers::take_others(Space& space) {
    space.shortages = 0;
    for (auto& other : space.others) {
        other->start_over();
        spare_.push_back(std::move(other));
    }
    space.others.clear();
}

/// Code at `linear` wants so many breakpoints that other code would lose its own. True: users go on
/// in another process, which has them or finds them.
bool DirectUsers::relieve(Space& space, std::uint64_t linear, std::size_t wanted) {
    if (space.users->has_copies() || space.users->stub().can_refuse_cpuid())
        return false;
    if ((cx_.state.rflags & FLAG_ID) != 0 || !space.users->stub().alive())
        return false; // it will be retired
    if ((cx_.state.rip & ~kPageOffset) != (linear & ~kPageOffset))
        return false; // it begins on the page before, which is here
    const auto has = [&](const auto& other) { return other->has_code(linear); };
    const auto finds = [&](const auto& other) { return other->free_breakpoints(linear) >= wanted; };
    auto to = std::ranges::find_if(space.others, has);
    if (to == space.others.end())
        to = std::ranges::find_if(space.others, finds);
    if (to == space.others.end()) {
        if (space.others.size() == kOthers || ++space.shortages < kManyShortages)
            return false;
        space.shortages = 0;
        if (!give_other(space))
            return false;
        to = std::prev(space.others.end());
    }
    std::swap(space.users, *to);
    return true;
}

/// `page` is code, wanted by `users`, who are current.
bool DirectUsers::map_refusing(UserSpace& users, std::uint64_t linear, const UserSpace::Page& page,
                               const std::vector<std::uint16_t>& refused) {
    refuse_alike(linear, refused);
    const bool is_short =
        refused.size() > users.free_breakpoints(linear) && refused.size() <= users.most_refused();
    UserSpace& taker =
        is_short && relieve(*current_, linear, refused.size()) ? *current_->users : users;
    return taker.has_code(linear) || taker.map_code(linear, page, refused);
}

} // namespace doppel::cpu::x86::frontend
