// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A rate that a copy keeps. Owner thread only.
#include <chrono>

#include "block/io/io_context.hpp"
#include "block/task.hpp"

namespace doppel::block {

class Pace {
public:
    /// 0 bytes: as fast as can be. `stop` (may be null) outlives this.
    Pace(IoContext& context, std::uint64_t bytes_per_second, const bool* stop)
        : context_{context}, bytes_per_second_{bytes_per_second}, stop_{stop} {}
    /// Until the rate allows these bytes, or somebody wants to stop.
    Task<void> wait(std::uint64_t bytes);

private:
    IoContext& context_;
    std::uint64_t bytes_per_second_;
    const bool* stop_;
    std::chrono::steady_clock::time_point due_; // when the rate allows the next bytes
};

} // namespace doppel::block
