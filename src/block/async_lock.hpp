// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Locks between the coroutines of one loop: waiting suspends the coroutine, not the thread.
/// First come, first served. Owner thread only.
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <utility>

#include "block/io/io_context.hpp"

namespace doppel::block {

class AsyncMutex {
public:
    explicit AsyncMutex(IoContext& context) : context_{&context} {}

    class [[nodiscard]] Guard {
    public:
        explicit Guard(AsyncMutex* mutex) : mutex_{mutex} {}
        Guard(Guard&& other) noexcept : mutex_{std::exchange(other.mutex_, nullptr)} {}
        Guard& operator=(Guard&& other) noexcept {
            if (this != &other) {
                unlock();
                mutex_ = std::exchange(other.mutex_, nullptr);
            }
            return *this;
        }
        ~Guard() { unlock(); }
        void unlock() {
            if (mutex_ != nullptr)
                std::exchange(mutex_, nullptr)->release();
        }

    private:
        AsyncMutex* mutex_;
    };

    struct Wait {
        AsyncMutex* mutex;
        bool await_ready() const noexcept { return !std::exchange(mutex->locked_, true); }
        void await_suspend(std::coroutine_handle<> waiter) const {
            mutex->waiters_.push_back(waiter);
        }
        Guard await_resume() const noexcept { return Guard{mutex}; }
    };
    /// auto wait = mutex.lock(); auto guard = co_await wait;
    Wait lock() noexcept { return {this}; }

private:
    void release() {
        if (waiters_.empty()) {
            locked_ = false;
            return;
        }
        context_->resume_later(waiters_.front()); // the lock passes on without being free
        waiters_.pop_front();
    }

    IoContext* context_;
    bool locked_ = false;
    std::deque<std::coroutine_handle<>> waiters_;
};

/// Coroutines that pass one after the other in the order of their numbers, from 0.
class Turns {
public:
    explicit Turns(IoContext& context) : context_{&context} {}

    struct Wait {
        Turns* turns;
        std::uint64_t number;
        bool await_ready() const noexcept { return turns->over_ || turns->next_ == number; }
        void await_suspend(std::coroutine_handle<> waiter) const {
            turns->waiters_.emplace(number, waiter);
        }
        /// False: there are no turns any more.
        bool await_resume() const noexcept { return !turns->over_; }
    };
    /// auto wait = turns.turn(…); const bool mine = co_await wait;
    Wait turn(std::uint64_t number) noexcept { return {this, number}; }
    /// Of whoever has the turn.
    void pass() {
        const auto waiter = waiters_.extract(++next_);
        if (!waiter.empty())
            context_->resume_later(waiter.mapped());
    }
    /// Nobody gets a turn any more, those that wait learn it.
    void end() {
        over_ = true;
        for (const auto& [number, waiter] : std::exchange(waiters_, {}))
            context_->resume_later(waiter);
    }

private:
    IoContext* context_;
    std::uint64_t next_ = 0;
    bool over_ = false;
    std::map<std::uint64_t, std::coroutine_handle<>> waiters_;
};

/// Ranges of bytes, held shared (many) or exclusive (alone).
class RangeLock {
public:
    enum class Mode : std::uint8_t { Shared, Exclusive };
    explicit RangeLock(IoContext& context) : context_{&context} {}

private:
    struct Entry {
        std::uint64_t begin, end;
        Mode mode;
        bool granted;
        std::coroutine_handle<> waiter;
        bool conflicts(const Entry& other) const {
            return begin < other.end && other.begin < end &&
                   (mode == Mode::Exclusive || other.mode == Mode::Exclusive);
        }
    };
    using Position = std::list<Entry>::iterator;

public:
    class [[nodiscard]] Guard {
    public:
        Guard(RangeLock* lock, Position position) : lock_{lock}, position_{position} {}
        Guard(Guard&& other) noexcept
            : lock_{std::exchange(other.lock_, nullptr)}, position_{other.position_} {}
        Guard& operator=(Guard&& other) noexcept {
            if (this != &other) {
                unlock();
                lock_ = std::exchange(other.lock_, nullptr);
                position_ = other.position_;
            }
            return *this;
        }
        ~Guard() { unlock(); }
        void unlock() {
            if (lock_ != nullptr)
                std::exchange(lock_, nullptr)->release(position_);
        }

    private:
        RangeLock* lock_;
        Position position_;
    };

    struct Wait {
        RangeLock* lock;
        Position position;
        bool await_ready() const noexcept { return position->granted; }
        void await_suspend(std::coroutine_handle<> waiter) const { position->waiter = waiter; }
        Guard await_resume() const noexcept { return {lock, position}; }
    };
    /// auto wait = ranges.lock(…); auto guard = co_await wait;
    Wait lock(std::uint64_t begin, std::uint64_t end, Mode mode) {
        entries_.push_back({begin, end, mode, false, {}});
        const auto position = std::prev(entries_.end());
        position->granted = grantable(position);
        return {this, position};
    }

private:
    /// Nobody before it in line is in its way, waiting ones included: no one starves.
    bool grantable(Position position) const {
        for (auto other = entries_.cbegin(); other != Position{position}; ++other)
            if (other->conflicts(*position))
                return false;
        return true;
    }
    void release(Position position) {
        entries_.erase(position);
        for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
            if (entry->granted || !grantable(entry))
                continue;
            entry->granted = true;
            if (entry->waiter)
                context_->resume_later(entry->waiter);
        }
    }

    IoContext* context_;
    std::list<Entry> entries_;
};

/// An image's two locks, in their order: what guests had begun has ended, what they begin waits,
/// and nobody else is at the metadata.
struct AllLocks {
    RangeLock::Guard guests;
    AsyncMutex::Guard metadata;
};
inline Task<AllLocks> lock_all(RangeLock& guests, AsyncMutex& metadata) {
    auto guests_wait = guests.lock(0, ~std::uint64_t{0}, RangeLock::Mode::Exclusive);
    auto guests_guard = co_await guests_wait;
    auto metadata_wait = metadata.lock();
    auto metadata_guard = co_await metadata_wait;
    co_return AllLocks{std::move(guests_guard), std::move(metadata_guard)};
}

} // namespace doppel::block
