// SPDX-License-Identifier: Apache-2.0
#include "machine/virtual_time.hpp"

#include <algorithm>

namespace doppel::machine {

class VirtualTime::VirtualTimer final : public base::Timer {
public:
    VirtualTimer(VirtualTime& time, std::function<void()> callback)
        : time_{time}, callback_{std::move(callback)} {}
    ~VirtualTimer() override { cancel(); }

    void arm(std::uint64_t deadline_ns) override {
        const std::scoped_lock lock{time_.mutex_};
        remove();
        position_ = time_.armed_.emplace(deadline_ns, this);
        is_armed_ = true;
        const std::uint64_t now = time_.now_ns();
        const std::uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
        if (left < time_.meter_.left())
            time_.meter_.set_limit(time_.meter_.executed() + left);
    }
    void cancel() override {
        const std::scoped_lock lock{time_.mutex_};
        remove();
    }
    void fired() { is_armed_ = false; } // mutex_ held; the caller has erased the entry
    void call() { callback_(); }

private:
    void remove() {
        if (is_armed_)
            time_.armed_.erase(position_);
        is_armed_ = false;
    }

    VirtualTime& time_;
    std::function<void()> callback_;
    std::multimap<std::uint64_t, VirtualTimer*>::iterator position_; // valid while is_armed_
    bool is_armed_ = false;
};

std::uint64_t VirtualTime::now_ns() const noexcept {
    return skipped_ns_.load(std::memory_order_relaxed) + meter_.executed();
}

std::unique_ptr<base::Timer> VirtualTime::create_timer(std::function<void()> callback) {
    return std::make_unique<VirtualTimer>(*this, std::move(callback));
}

void VirtualTime::set_now(std::uint64_t ns) noexcept {
    skipped_ns_.store(ns - (now_ns() - skipped_ns_.load()));
}

void VirtualTime::grant(std::uint64_t at_most) {
    const std::scoped_lock lock{mutex_};
    std::uint64_t limit = at_most;
    if (!armed_.empty()) {
        const std::uint64_t now = now_ns();
        const std::uint64_t deadline = std::max(armed_.begin()->first, now);
        limit = std::min(limit, meter_.executed() + std::min(deadline - now, at_most));
    }
    meter_.set_limit(limit);
}

void VirtualTime::fire_due() {
    std::unique_lock lock{mutex_};
    while (!armed_.empty() && armed_.begin()->first <= now_ns()) {
        VirtualTimer* const timer = armed_.begin()->second;
        armed_.erase(armed_.begin());
        timer->fired();
        lock.unlock(); // as clock.hpp promises: a callback takes its device's lock
        timer->call();
        lock.lock();
    }
}

bool VirtualTime::skip_to_next() {
    {
        const std::scoped_lock lock{mutex_};
        if (armed_.empty() || armed_.begin()->first == UINT64_MAX)
            return false;
        const std::uint64_t now = now_ns();
        const std::uint64_t deadline = std::max(armed_.begin()->first, now);
        skipped_ns_.store(skipped_ns_.load() + (deadline - now), std::memory_order_relaxed);
    }
    fire_due();
    return true;
}

base::WallClock::Time VirtualCalendar::now() const noexcept {
    const std::uint64_t ns = clock_.now_ns();
    return {kStart + static_cast<std::int64_t>(ns / 1'000'000'000),
            static_cast<std::uint32_t>(ns % 1'000'000'000)};
}

bool RepeatableEntropy::next(std::uint64_t& value) noexcept {
    state_ += 0x9e37'79b9'7f4a'7c15ull;
    std::uint64_t z = state_;
    z = (z ^ z >> 30) * 0xbf58'476d'1ce4'e5b9ull;
    z = (z ^ z >> 27) * 0x94d0'49bb'1331'11ebull;
    value = z ^ z >> 31;
    return true;
}

} // namespace doppel::machine
