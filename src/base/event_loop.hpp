// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One thread's loop over file descriptors (epoll) and functions posted from other threads.
/// Owner thread only, except post() and stop(), which any thread may call.
#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.hpp"

namespace doppel::base {

class EventLoop {
public:
    using Callback = std::function<void(std::uint32_t events)>; // EPOLLIN | EPOLLOUT | …

    static Result<std::unique_ptr<EventLoop>> create();
    ~EventLoop();
    EventLoop(const EventLoop&) = delete;
    EventLoop& operator=(const EventLoop&) = delete;

    /// Watches `fd`, which stays owned by the caller; level-triggered.
    Result<void> add(int fd, std::uint32_t events, Callback callback);
    Result<void> modify(int fd, std::uint32_t events);
    void remove(int fd);

    /// Asked before each wait; returns whether it did work, and then the loop looks again before
    /// it sleeps. This is how a queue of requests is submitted as one batch. The number removes it.
    using Poll = std::function<bool()>;
    std::uint64_t add_poll(Poll poll);
    void remove_poll(std::uint64_t number);

    /// Runs until stop(). A stop() before run() is not lost.
    void run();
    /// Runs until `done` answers true (asked after each callback round) or stop().
    void run_until(const std::function<bool()>& done);
    /// Does what is due now, without waiting: what was posted and what is ready, once each. For a
    /// loop without a thread of its own.
    void run_ready();
    /// Any thread: runs `task` on the loop's thread soon.
    void post(std::function<void()> task);
    /// Any thread.
    void stop();

private:
    struct Impl;
    explicit EventLoop(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::base
