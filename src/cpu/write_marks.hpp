// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which pages of guest RAM one vCPU may be storing to.
///
/// Problem: a page whose bytes are translated must not be written behind the translator's back, but
/// a vCPU's cached write permission, or a store between its look at the page's state and the bytes,
/// is seen by nobody. To stop every vCPU for each new code page costs a lot when there are more
/// vCPUs than host CPUs: the one that is waited for may not run for milliseconds.
///
/// So each vCPU marks a page before it looks at the state, and takes the mark away behind its store
/// or with the last write permission it holds. Whoever changes the state changes it first and looks
/// at the marks then: either the vCPU sees the new state or it is seen, and only it is asked to
/// stand still (tests/model/code_page_test).
///
/// Owner's thread, but for test(); and clear() by one for whom the owner stands still. Fit for code
/// that uses general registers only.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace doppel::cpu {

class WriteMarks {
public:
    /// Pages are numbered as their state bytes are (RamView::page_number()).
    explicit WriteMarks(std::uint64_t pages)
        : words_{std::make_unique<std::atomic<std::uint64_t>[]>(
              static_cast<std::size_t>((pages + 63) / 64))} {}

    /// A full fence when the mark is new; returns whether it is.
    bool set(std::uint64_t page) noexcept {
        auto& word = words_[page / 64];
        const std::uint64_t old = word.load(std::memory_order_relaxed);
        if ((old & bit(page)) != 0)
            return false;
        word.store(old | bit(page), std::memory_order_seq_cst);
        return true;
    }
    void clear(std::uint64_t page) noexcept {
        auto& word = words_[page / 64];
        word.store(word.load(std::memory_order_relaxed) & ~bit(page), std::memory_order_release);
    }
    /// Any thread.
    bool test(std::uint64_t page) const noexcept {
        return (words_[page / 64].load(std::memory_order_seq_cst) & bit(page)) != 0;
    }

private:
    static constexpr std::uint64_t bit(std::uint64_t page) { return std::uint64_t{1} << page % 64; }
    std::unique_ptr<std::atomic<std::uint64_t>[]> words_;
};

} // namespace doppel::cpu
