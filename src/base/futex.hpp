// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Sleeping until a word changes, futex(2) and nothing else. std::atomic::wait() first spins and
/// gives its CPU away four times (libstdc++ 12): on a busy host these are four time slices.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace doppel::base {

/// Returns when `word` is not `expected` (perhaps before that: callers look again). Any thread.
inline void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected) noexcept {
    ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

/// Wakes one thread that waits for a change of `word`. Any thread.
inline void futex_wake_one(const std::atomic<std::uint32_t>& word) noexcept {
    ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

} // namespace doppel::base
