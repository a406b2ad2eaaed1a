// SPDX-License-Identifier: Apache-2.0
#include "block/copy/pace.hpp"

#include <algorithm>
#include <thread>

namespace doppel::block {

namespace {
constexpr std::chrono::milliseconds kNap{100};
}

Task<void> Pace::wait(std::uint64_t bytes) {
    using Clock = std::chrono::steady_clock;
    if (bytes_per_second_ == 0)
        co_return {};
    const std::chrono::duration<double> takes{static_cast<double>(bytes) /
                                              static_cast<double>(bytes_per_second_)};
    const auto start = std::max(due_, Clock::now());
    due_ = start + std::chrono::duration_cast<Clock::duration>(takes);
    while (Clock::now() < start && (stop_ == nullptr || !*stop_)) {
        const auto until = std::min(start, Clock::now() + kNap);
        auto nap = context_.on_worker([until] { std::this_thread::sleep_until(until); });
        co_await nap;
    }
    co_return {};
}

} // namespace doppel::block
