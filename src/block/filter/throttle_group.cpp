// SPDX-License-Identifier: Apache-2.0
#include "block/filter/throttle_group.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include <fmt/core.h>

#include "block/option_reader.hpp"

namespace doppel::block::filter {

namespace {

constexpr std::array<std::string_view, 6> kNames{"iops-total", "iops-read", "iops-write",
                                                 "bps-total",  "bps-read",  "bps-write"};
constexpr double kMaxRate = 1e15;
constexpr double kShare = 0.1; // seconds' worth that may come at once when no burst is named

std::unexpected<base::Error> wrong(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

using Limits = std::map<std::string, std::string, std::less<>>;

Result<double> number(const Limits& limits, const std::string& name, double standard) {
    const auto found = limits.find(name);
    if (found == limits.end())
        return standard;
    const auto value = DOPPEL_TRY(parse_size(found->second));
    if (static_cast<double>(value) > kMaxRate)
        return wrong(fmt::format("{} is {}, allowed is at most 10^15", name, value));
    return static_cast<double>(value);
}

Result<Bucket::Rate> read_rate(const Limits& limits, const std::string& name) {
    Bucket::Rate rate;
    rate.average = DOPPEL_TRY(number(limits, name, 0));
    rate.burst = DOPPEL_TRY(number(limits, name + "-max", 0));
    rate.burst_seconds = DOPPEL_TRY(number(limits, name + "-max-length", 1));
    if (rate.burst != 0 && rate.average == 0)
        return wrong(fmt::format("{0}-max wants {0}", name));
    if (rate.burst != 0 && rate.burst < rate.average)
        return wrong(fmt::format("{}-max is lower than {}", name, name));
    if (rate.burst_seconds < 1)
        return wrong(fmt::format("{}-max-length is 0, allowed is 1 or more", name));
    if (rate.burst_seconds > 1 && rate.burst == 0)
        return wrong(fmt::format("{0}-max-length wants {0}-max", name));
    return rate;
}

Result<void> check_names(const Limits& limits) {
    for (const auto& [name, value] : limits) {
        auto stem = std::string_view{name};
        if (stem.ends_with("-max-length"))
            stem.remove_suffix(11);
        else if (stem.ends_with("-max"))
            stem.remove_suffix(4);
        if (name != "iops-size" && std::ranges::find(kNames, stem) == kNames.end())
            return wrong(fmt::format("there is no limit '{}'", name),
                         "Known are iops-total, -read, -write and bps-total, -read, -write, each "
                         "also with -max and -max-length, and iops-size.");
    }
    return {};
}

} // namespace

std::chrono::nanoseconds Bucket::wait(TimePoint now) {
    if (rate_.average == 0)
        return {};
    const auto passed = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    level_ = std::max(0.0, level_ - rate_.average * passed);
    burst_level_ = std::max(0.0, burst_level_ - rate_.burst * passed);
    const auto room = rate_.burst == 0 ? rate_.average * kShare : rate_.burst * rate_.burst_seconds;
    double seconds = std::max(0.0, (level_ - room) / rate_.average);
    if (rate_.burst_seconds > 1)
        seconds = std::max(seconds, (burst_level_ - rate_.burst * kShare) / rate_.burst);
    return std::chrono::nanoseconds{static_cast<std::int64_t>(std::ceil(seconds * 1e9))};
}

Result<std::unique_ptr<ThrottleGroup>> ThrottleGroup::create(const Limits& limits) {
    DOPPEL_TRY_VOID(check_names(limits));
    auto group = std::make_unique<ThrottleGroup>();
    const base::MutexLock lock{group->mutex_};
    for (std::size_t i = 0; i < kKinds; ++i)
        group->buckets_[i] = Bucket{DOPPEL_TRY(read_rate(limits, std::string{kNames[i]}))};
    for (const std::size_t total : {IopsTotal, BpsTotal})
        if (group->buckets_[total].rate().average != 0 &&
            (group->buckets_[total + 1].rate().average != 0 ||
             group->buckets_[total + 2].rate().average != 0))
            return wrong(fmt::format("{} excludes limits of reads and of writes", kNames[total]));
    group->iops_size_ = static_cast<std::uint64_t>(DOPPEL_TRY(number(limits, "iops-size", 0)));
    return group;
}

std::chrono::nanoseconds ThrottleGroup::admit(Direction direction, std::uint64_t bytes,
                                              TimePoint now) {
    const bool reads = direction == Direction::Read;
    const std::array<std::size_t, 2> operations{IopsTotal, reads ? IopsRead : IopsWrite};
    const std::array<std::size_t, 2> amounts{BpsTotal, reads ? BpsRead : BpsWrite};
    const base::MutexLock lock{mutex_};
    std::chrono::nanoseconds longest{0};
    for (std::size_t i = 0; i < operations.size(); ++i)
        longest =
            std::max({longest, buckets_[operations[i]].wait(now), buckets_[amounts[i]].wait(now)});
    if (longest.count() > 0)
        return longest;
    const auto units = iops_size_ == 0 || bytes <= iops_size_
                           ? 1.0
                           : static_cast<double>(bytes) / static_cast<double>(iops_size_);
    for (std::size_t i = 0; i < operations.size(); ++i) {
        buckets_[operations[i]].charge(units);
        buckets_[amounts[i]].charge(static_cast<double>(bytes));
    }
    return {};
}

} // namespace doppel::block::filter
