// SPDX-License-Identifier: Apache-2.0
#pragma once
/// How much I/O one or several images may do together. The limits are QEMU's: rates of operations
/// and bytes, of reads, writes and both, each with a burst.
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "base/mutex.hpp"
#include "base/result.hpp"

namespace doppel::block::filter {

using base::Errc;
using base::Result;
using TimePoint = std::chrono::steady_clock::time_point;

/// A leaky bucket: what is done fills it, time empties it at the rate; an operation passes while it
/// is not over full. Pure arithmetic; any thread, one at a time.
class Bucket {
public:
    struct Rate {
        double average = 0; // units per second; 0: no limit
        double burst = 0;   // units per second, for a while; 0: a tenth of a second's average
        double burst_seconds = 1;
    };
    Bucket() = default;
    explicit Bucket(const Rate& rate) : rate_{rate} {}
    const Rate& rate() const noexcept { return rate_; }

    /// Until an operation passes; 0: at once.
    std::chrono::nanoseconds wait(TimePoint now);
    void charge(double units) {
        level_ += units;
        burst_level_ += units;
    }

private:
    Rate rate_;
    double level_ = 0;
    double burst_level_ = 0; // of bursts longer than a second: at what rate they go
    TimePoint last_;
};

enum class Direction : std::uint8_t { Read, Write };

/// Any thread.
class ThrottleGroup {
public:
    /// QEMU's names: iops-total, iops-read, iops-write, bps-total …; each with -max and
    /// -max-length; iops-size. Errors: a name is unknown, a value no number, rates that exclude
    /// each other.
    static Result<std::unique_ptr<ThrottleGroup>>
    create(const std::map<std::string, std::string, std::less<>>& limits);

    /// Charges the operation and answers 0, or says how long it must wait before it asks again.
    std::chrono::nanoseconds admit(Direction direction, std::uint64_t bytes, TimePoint now);

private:
    enum Kind : std::uint8_t { IopsTotal, IopsRead, IopsWrite, BpsTotal, BpsRead, BpsWrite };
    static constexpr std::size_t kKinds = 6;

    base::Mutex mutex_;
    std::array<Bucket, kKinds> buckets_ DOPPEL_GUARDED_BY(mutex_);
    std::uint64_t iops_size_ = 0; // bytes that count as one operation; 0: any number
};

} // namespace doppel::block::filter
