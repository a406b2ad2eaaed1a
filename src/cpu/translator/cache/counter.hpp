// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Numbers that one thread at a time counts and any thread reads.
#include <atomic>
#include <cstdint>

namespace doppel::cpu::translator {

template <typename T> class Counter {
public:
    /// One thread at a time: no locked instruction, of which a translation would have four.
    void add(T count) {
        value_.store(value_.load(std::memory_order_relaxed) + count, std::memory_order_relaxed);
    }
    /// Any thread.
    T get() const { return value_.load(std::memory_order_relaxed); }

private:
    std::atomic<T> value_{0};
};

} // namespace doppel::cpu::translator
