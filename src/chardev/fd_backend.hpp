// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A byte stream over one nonblocking descriptor: socket, pseudo-terminal master, pipe.
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "base/event_loop.hpp"
#include "base/unique_fd.hpp"
#include "chardev/backend.hpp"

namespace doppel::chardev {

/// write() from any thread; all else on the thread of the event loop, which outlives this. Output
/// is queued and sent by the loop a moment later, so that a burst of single bytes is one write(2)
/// and wakes the loop's thread once: on a virtual host that costs tens of microseconds. With the
/// queue full, write() waits a second for the reader and from then on drops until the queue
/// shrinks: a stuck terminal must not stop the guest for good.
class FdBackend final : public Backend {
public:
    /// Takes `fd` and makes it nonblocking. Errors: Io.
    static base::Result<std::unique_ptr<FdBackend>> create(base::EventLoop& loop,
                                                           base::UniqueFd fd);
    ~FdBackend() override;

    void write(std::span<const std::byte> bytes) noexcept override;
    void set_receiver(ByteReceiver* receiver) noexcept override;
    void receiver_ready() noexcept override;

    /// Called once, on the loop's thread, when the other side is gone; may destroy this.
    void set_hangup(std::function<void()> callback) { hangup_ = std::move(callback); }
    /// Sends what is queued, for at most `limit`. The loop is not running.
    void drain(std::chrono::milliseconds limit);
    /// drain(), and for a socket: says that this was all and waits until the other side, having
    /// read it, closes its end; each for at most `limit`.
    void finish(std::chrono::milliseconds limit) override;

private:
    FdBackend(base::EventLoop& loop, base::UniqueFd fd, base::UniqueFd timer);
    void on_ready(std::uint32_t events);
    bool read_some(); // false: end of input
    void send_queued();
    void flush();
    void on_timer();
    void update_interest();
    void hang_up();
    std::size_t send_now(std::span<const std::byte> bytes);
    void post(void (FdBackend::*task)());

    base::EventLoop& loop_;
    base::UniqueFd fd_;
    base::UniqueFd timer_; // runs while there is output that the loop has not seen
    std::function<void()> hangup_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true); // shared with posted tasks
    std::uint32_t interest_ = 0;

    std::mutex receiver_mutex_;
    ByteReceiver* receiver_ = nullptr; // guarded by receiver_mutex_

    std::mutex queue_mutex_;
    std::condition_variable queue_shrank_;
    std::deque<std::byte> queue_; // guarded by queue_mutex_
    bool gone_ = false;           // guarded by queue_mutex_
    bool stuck_ = false;          // guarded by queue_mutex_: the reader has been waited for
};

} // namespace doppel::chardev
