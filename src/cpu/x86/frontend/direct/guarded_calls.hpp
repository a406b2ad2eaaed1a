// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which functions with a guard at their beginning (guards.hpp) were called and may not have
/// returned: each secretive instruction in them wants a breakpoint as long as that is so. Of all
/// vCPUs of a machine, as threads move from one to the other. Any thread.
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "base/mutex.hpp"

namespace doppel::cpu::x86::frontend {

class GuardedCalls {
public:
    /// Of code: the tables of its address space, its linear address there.
    struct Page {
        std::uint64_t root, linear;
        auto operator<=>(const Page&) const = default;
    };
    /// Of the function with its guard there (offset in the page). It returns to `to`, which is on
    /// the stack at `slot`.
    struct Call {
        std::uint16_t guard;
        std::uint64_t slot, to;
        bool operator==(const Call&) const = default;
    };
    void add(const Page& page, const Call& call);
    /// Of some function, of which nobody knows when it returns; the page is `ram_page` of RAM,
    /// which the child of a fork has, too.
    void add_for_good(const Page& page, std::uint64_t ram_page);
    /// Another number whenever something has been added. Guards that were placed at another one are
    /// not to be relied on.
    std::uint64_t count() const noexcept { return count_.load(); }

    /// Whether `to` may still be at `slot`. What is called does not come back here.
    using IsThere = std::function<bool(const Call&)>;
    /// Whether the function with this guard may be active.
    bool is_active(const Page& page, std::uint64_t ram_page, std::uint16_t guard,
                   const IsThere& is_there);

private:
    struct Known {
        std::vector<Call> calls;
        unsigned added = 0;
        bool for_good = false;
    };
    Known& find(const Page& page) DOPPEL_REQUIRES(mutex_);

    base::Mutex mutex_;
    std::map<Page, Known> pages_ DOPPEL_GUARDED_BY(mutex_);
    std::set<std::uint64_t> for_good_ DOPPEL_GUARDED_BY(mutex_); // pages of RAM
    std::atomic<std::uint64_t> count_{0};
};

} // namespace doppel::cpu::x86::frontend
