// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which functions with a guard at their beginning (guards.hpp) were called and may not have
/// returned: their pages want a breakpoint for each secretive instruction as long as that is so. Of
/// all vCPUs of a machine, as threads move from one to the other. Any thread.
#include <atomic>
#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "base/mutex.hpp"

namespace doppel::cpu::x86::frontend {

class GuardedCalls {
public:
    /// It returns to `to`, which is on the stack at `slot`; linear addresses, in the address space
    /// whose tables begin at `root`.
    struct Call {
        std::uint64_t root, slot, to;
        bool operator==(const Call&) const = default;
    };
    /// Of a function of this page of RAM.
    void add(std::uint64_t ram_page, const Call& call);
    /// One of which nobody knows when it returns.
    void add_for_good(std::uint64_t ram_page);
    /// Another number whenever something has been added. Guards that were placed at another one are
    /// not to be relied on.
    std::uint64_t count() const noexcept { return count_.load(); }

    /// Whether `to` is still at `slot`. What is called does not come back here.
    using IsThere = std::function<bool(const Call&)>;
    /// Whether one may be active in the address space in force, which is that at `root`.
    bool any_active(std::uint64_t ram_page, std::uint64_t root, const IsThere& is_there);

private:
    struct Page {
        std::vector<Call> calls;
        unsigned added = 0;
        bool for_good = false;
    };
    mutable base::Mutex mutex_;
    std::unordered_map<std::uint64_t, Page> pages_ DOPPEL_GUARDED_BY(mutex_);
    std::atomic<std::uint64_t> count_{0};
};

} // namespace doppel::cpu::x86::frontend
