// SPDX-License-Identifier: Apache-2.0
#include "base/clock.hpp"

#include <sys/prctl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <map>
#include <mutex>
#include <thread>

#include "base/verify.hpp"

namespace doppel::base {

namespace {

std::uint64_t host_ns(clockid_t id) noexcept {
    timespec now{};
    ::clock_gettime(id, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(now.tv_nsec);
}

} // namespace

// --- ManualTime -------------------------------------------------------------------------------

struct ManualTime::Queue {
    std::atomic<std::uint64_t> now{0};
    std::recursive_mutex mutex; // a callback may arm its own timer again
    std::multimap<std::uint64_t, ManualTimer*> armed;
};

class ManualTime::ManualTimer final : public Timer {
public:
    ManualTimer(Queue& queue, std::function<void()> callback)
        : queue_{queue}, callback_{std::move(callback)} {}
    ~ManualTimer() override { cancel(); }

    void arm(std::uint64_t deadline_ns) override {
        const std::scoped_lock lock{queue_.mutex};
        cancel();
        queue_.armed.emplace(deadline_ns, this);
    }
    void cancel() override {
        const std::scoped_lock lock{queue_.mutex};
        std::erase_if(queue_.armed, [this](const auto& entry) { return entry.second == this; });
    }
    void fire() { callback_(); }

private:
    Queue& queue_;
    std::function<void()> callback_;
};

ManualTime::ManualTime() : queue_{std::make_unique<Queue>()} {}
ManualTime::~ManualTime() = default;

std::uint64_t ManualTime::now_ns() const noexcept {
    return queue_->now.load(std::memory_order_relaxed);
}

std::unique_ptr<Timer> ManualTime::create_timer(std::function<void()> callback) {
    return std::make_unique<ManualTimer>(*queue_, std::move(callback));
}

void ManualTime::advance_to(std::uint64_t ns) {
    std::unique_lock lock{queue_->mutex};
    while (!queue_->armed.empty() && queue_->armed.begin()->first <= ns) {
        const auto [deadline, timer] = *queue_->armed.begin();
        queue_->armed.erase(queue_->armed.begin());
        if (deadline > now_ns())
            queue_->now.store(deadline, std::memory_order_relaxed);
        lock.unlock(); // as clock.hpp promises: a callback takes its device's lock
        timer->fire();
        lock.lock();
    }
    if (ns > now_ns())
        queue_->now.store(ns, std::memory_order_relaxed);
}

std::uint64_t ManualTime::next_deadline_ns() const noexcept {
    const std::scoped_lock lock{queue_->mutex};
    return queue_->armed.empty() ? UINT64_MAX : queue_->armed.begin()->first;
}

// --- RealTime ---------------------------------------------------------------------------------

struct RealTime::Queue {
    std::mutex mutex;
    std::condition_variable wake;    // the earliest deadline, the pause state or `stop` changed
    std::condition_variable settled; // a callback has returned
    std::multimap<std::uint64_t, RealTimer*> armed;
    RealTimer* running = nullptr;
    bool stop = false;
    bool paused = false;
    std::uint64_t paused_at_host_ns = 0;
    std::atomic<std::uint64_t> origin_host_ns{0};     // VM time = host time - origin
    std::atomic<std::uint64_t> frozen_ns{UINT64_MAX}; // VM time while paused, else UINT64_MAX
    std::jthread thread;

    std::uint64_t now_ns() const noexcept {
        const auto frozen = frozen_ns.load(std::memory_order_acquire);
        return frozen != UINT64_MAX ? frozen : host_ns(CLOCK_MONOTONIC) - origin_host_ns.load();
    }
    void run();
    void wait(std::unique_lock<std::mutex>& lock);
};

class RealTime::RealTimer final : public Timer {
public:
    RealTimer(Queue& queue, std::function<void()> callback)
        : queue_{queue}, callback_{std::move(callback)} {}

    ~RealTimer() override {
        std::unique_lock lock{queue_.mutex};
        remove();
        if (std::this_thread::get_id() != queue_.thread.get_id())
            queue_.settled.wait(lock, [this] { return queue_.running != this; });
    }

    void arm(std::uint64_t deadline_ns) override {
        const std::scoped_lock lock{queue_.mutex};
        const bool earliest = queue_.armed.empty() || deadline_ns < queue_.armed.begin()->first;
        remove();
        position_ = queue_.armed.emplace(deadline_ns, this);
        is_armed_ = true;
        if (earliest)
            queue_.wake.notify_one();
    }

    void cancel() override {
        const std::scoped_lock lock{queue_.mutex};
        remove();
    }

    void fired() { is_armed_ = false; } // queue_.mutex held; the caller has erased the entry
    void call() { callback_(); }

private:
    void remove() {
        if (is_armed_)
            queue_.armed.erase(position_);
        is_armed_ = false;
    }

    Queue& queue_;
    std::function<void()> callback_;
    std::multimap<std::uint64_t, RealTimer*>::iterator position_; // valid while is_armed_
    bool is_armed_ = false;
};

void RealTime::Queue::wait(std::unique_lock<std::mutex>& lock) {
    if (paused || armed.empty()) {
        wake.wait(lock);
        return;
    }
    const auto limit = static_cast<std::uint64_t>(INT64_MAX);
    const auto host_deadline = std::min(armed.begin()->first, limit) + origin_host_ns.load();
    wake.wait_until(lock, std::chrono::steady_clock::time_point{std::chrono::nanoseconds{
                              static_cast<std::int64_t>(std::min(host_deadline, limit))}});
}

void RealTime::Queue::run() {
    ::prctl(PR_SET_TIMERSLACK, 1ul); // ns; a thread's wake-ups may else come 50 us late
    std::unique_lock lock{mutex};
    while (!stop) {
        if (paused || armed.empty() || armed.begin()->first > now_ns()) {
            wait(lock);
            continue;
        }
        running = armed.begin()->second;
        armed.erase(armed.begin());
        running->fired();
        lock.unlock();
        running->call();
        lock.lock();
        running = nullptr;
        settled.notify_all();
    }
}

RealTime::RealTime() : queue_{std::make_unique<Queue>()} {
    queue_->origin_host_ns = host_ns(CLOCK_MONOTONIC);
    queue_->thread = std::jthread{[queue = queue_.get()] { queue->run(); }};
}

RealTime::~RealTime() {
    const std::scoped_lock lock{queue_->mutex};
    DOPPEL_VERIFY(queue_->armed.empty(), "timers must be destroyed before their queue");
    queue_->stop = true;
    queue_->wake.notify_one();
}

std::uint64_t RealTime::now_ns() const noexcept { return queue_->now_ns(); }

std::unique_ptr<Timer> RealTime::create_timer(std::function<void()> callback) {
    return std::make_unique<RealTimer>(*queue_, std::move(callback));
}

void RealTime::pause() {
    std::unique_lock lock{queue_->mutex};
    if (queue_->paused)
        return;
    queue_->paused = true;
    queue_->paused_at_host_ns = host_ns(CLOCK_MONOTONIC);
    queue_->frozen_ns.store(queue_->paused_at_host_ns - queue_->origin_host_ns.load(),
                            std::memory_order_release);
    queue_->wake.notify_one();
    queue_->settled.wait(lock, [this] { return queue_->running == nullptr; });
}

void RealTime::resume() {
    const std::scoped_lock lock{queue_->mutex};
    if (!queue_->paused)
        return;
    queue_->paused = false;
    queue_->origin_host_ns += host_ns(CLOCK_MONOTONIC) - queue_->paused_at_host_ns;
    queue_->frozen_ns.store(UINT64_MAX, std::memory_order_release);
    queue_->wake.notify_one();
}

void RealTime::set_now(std::uint64_t ns) {
    const std::scoped_lock lock{queue_->mutex};
    DOPPEL_VERIFY(queue_->paused, "the clock of a running VM only runs");
    queue_->origin_host_ns = queue_->paused_at_host_ns - ns;
    queue_->frozen_ns.store(ns, std::memory_order_release);
}

WallClock::Time HostWallClock::now() const noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return {now.tv_sec, static_cast<std::uint32_t>(now.tv_nsec)};
}

} // namespace doppel::base
