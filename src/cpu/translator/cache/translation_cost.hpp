// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What translating costs: time, and host code for guest code.
#include <sys/resource.h>
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <ctime>
#include <utility>

#include "cpu/translator/cache/block.hpp"
#include "cpu/translator/cache/counter.hpp"

namespace doppel::cpu::translator {

class TranslationCost {
public:
    // --- one thread at a time ---
    /// Before scanning and emitting: one translation in 16 is timed. In ticks of the host's TSC; 0:
    /// this one is not.
    std::uint64_t begin() { return ++begun_ % 16 == 0 ? __rdtsc() : 0; }
    void add(const NewBlock& block, std::uint64_t guest_instructions, std::uint64_t begun_ticks) {
        instructions_.add(guest_instructions);
        if (begun_ticks != 0) {
            const std::uint64_t now = std::max<std::uint64_t>(__rdtsc(), begun_ticks);
            if (undisturbed()) {
                timed_instructions_.add(guest_instructions);
                timed_ticks_.add(now - begun_ticks);
            }
        }
        if (block.loop || block.hot_guest_bytes == 0)
            return; // a loop is there a second time; what only the interpreter executes has no code
        const auto hot_bytes = static_cast<std::uint32_t>(block.hot_end - block.hot_begin);
        const std::uint32_t ratio = hot_bytes * kStepsPerOne / block.hot_guest_bytes;
        blocks_by_ratio_.at(std::min(ratio, kSteps - 1)).add(1);
    }

    // --- any thread ---
    std::uint64_t instructions() const { return instructions_.get(); }
    /// What one of them takes on average; 0: not known yet.
    std::uint64_t ns_per_instruction() const {
        const std::uint64_t timed = timed_instructions_.get();
        const auto ns = static_cast<double>(now_ns() - born_ns_);
        const auto ticks = static_cast<double>(__rdtsc() - born_ticks_);
        return timed == 0 ? 0
                          : static_cast<std::uint64_t>(static_cast<double>(timed_ticks_.get()) *
                                                       (ns / ticks) / static_cast<double>(timed));
    }
    /// Host bytes for 100 guest bytes on the hot path of the median block; 0 without blocks.
    std::uint64_t median_percent() const {
        std::uint64_t all = 0;
        for (const auto& count : blocks_by_ratio_)
            all += count.get();
        std::uint64_t below = 0;
        for (std::uint64_t step = 0; step < kSteps; ++step) {
            below += blocks_by_ratio_.at(step).get();
            if (all != 0 && below * 2 >= all)
                return step * 100 / kStepsPerOne;
        }
        return 0;
    }

private:
    static constexpr std::uint32_t kStepsPerOne = 20, kSteps = 40 * kStepsPerOne;

    static std::uint64_t now_ns() {
        timespec time{};
        ::clock_gettime(CLOCK_MONOTONIC, &time);
        return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000u +
               static_cast<std::uint64_t>(time.tv_nsec);
    }
    /// The host has not run another thread in our place since the sample before. To ask at the
    /// beginning, too, would be the system call that is avoided.
    bool undisturbed() {
        rusage usage{};
        ::getrusage(RUSAGE_THREAD, &usage);
        return usage.ru_nivcsw == std::exchange(involuntary_, usage.ru_nivcsw);
    }

    // Translations are timed in ticks of the host's TSC, which takes nothing out of its caches: the
    // code and data of clock_gettime() would be a part of what is measured.
    const std::uint64_t born_ns_ = now_ns(), born_ticks_ = __rdtsc();
    std::uint64_t begun_ = 0;
    inline static thread_local long involuntary_ = -1;
    Counter<std::uint64_t> instructions_, timed_instructions_, timed_ticks_;
    std::array<Counter<std::uint32_t>, kSteps> blocks_by_ratio_{};
};

} // namespace doppel::cpu::translator
