// SPDX-License-Identifier: Apache-2.0
#include "chardev/fd_backend.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace doppel::chardev {

using base::Result;

namespace {

constexpr std::size_t kQueueLimit = 1u << 20; // bytes
constexpr std::size_t kBurst = 4096;          // bytes that do not wait for the timer
constexpr long kMomentNs = 500'000;
constexpr std::chrono::seconds kPatience{1};

} // namespace

FdBackend::FdBackend(base::EventLoop& loop, base::UniqueFd fd, base::UniqueFd timer)
    : loop_{loop}, fd_{std::move(fd)}, timer_{std::move(timer)} {}

Result<std::unique_ptr<FdBackend>> FdBackend::create(base::EventLoop& loop, base::UniqueFd fd) {
    const int flags = ::fcntl(fd.get(), F_GETFL);
    if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0)
        return base::fail_errno(errno, "prepare the console's descriptor");
    base::UniqueFd timer{::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)};
    if (!timer)
        return base::fail_errno(errno, "make a timer for the console");
    auto backend = std::unique_ptr<FdBackend>{new FdBackend{loop, std::move(fd), std::move(timer)}};
    DOPPEL_TRY_VOID(loop.add(backend->timer_.get(), EPOLLIN,
                             [self = backend.get()](std::uint32_t) { self->on_timer(); }));
    backend->interest_ = EPOLLIN;
    DOPPEL_TRY_VOID(
        loop.add(backend->fd_.get(), backend->interest_,
                 [self = backend.get()](std::uint32_t events) { self->on_ready(events); }));
    return backend;
}

FdBackend::~FdBackend() {
    *alive_ = false;
    loop_.remove(timer_.get());
    if (!gone_)
        loop_.remove(fd_.get());
}

void FdBackend::post(void (FdBackend::*task)()) {
    loop_.post([this, task, alive = alive_] {
        if (*alive)
            (this->*task)();
    });
}

std::size_t FdBackend::send_now(std::span<const std::byte> bytes) {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
        const auto n = ::write(fd_.get(), bytes.data() + sent, bytes.size() - sent);
        if (n > 0)
            sent += static_cast<std::size_t>(n);
        else if (n < 0 && errno == EINTR)
            continue;
        else
            break; // full, or gone: the loop will see which
    }
    return sent;
}

void FdBackend::write(std::span<const std::byte> bytes) noexcept {
    std::unique_lock lock{queue_mutex_};
    if (queue_.size() >= kQueueLimit && !stuck_)
        stuck_ = !queue_shrank_.wait_for(lock, kPatience,
                                         [this] { return gone_ || queue_.size() < kQueueLimit; });
    if (gone_ || queue_.size() >= kQueueLimit)
        return;
    stuck_ = false;
    const std::size_t before = queue_.size();
    queue_.insert(queue_.end(), bytes.begin(), bytes.end());
    if (before < kBurst && queue_.size() >= kBurst) {
        post(&FdBackend::flush);
    } else if (before == 0) { // a serial port writes byte by byte: others follow at once
        constexpr itimerspec kMoment{{}, {0, kMomentNs}};
        ::timerfd_settime(timer_.get(), 0, &kMoment, nullptr);
    }
}

void FdBackend::on_timer() {
    std::uint64_t times = 0;
    [[maybe_unused]] const auto taken = ::read(timer_.get(), &times, sizeof times);
    flush();
}

void FdBackend::send_queued() {
    const std::scoped_lock lock{queue_mutex_};
    while (!queue_.empty()) {
        std::array<std::byte, 4096> chunk;
        const auto length = std::min(chunk.size(), queue_.size());
        std::copy_n(queue_.begin(), length, chunk.begin());
        const auto sent = send_now(std::span{chunk}.first(length));
        queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(sent));
        if (sent < length)
            break;
    }
    queue_shrank_.notify_all();
}

void FdBackend::flush() {
    if (gone_) // only ever set on this thread
        return;
    send_queued();
    update_interest();
}

void FdBackend::update_interest() {
    std::uint32_t wanted = 0;
    {
        const std::scoped_lock lock{receiver_mutex_};
        if (receiver_ == nullptr || receiver_->can_receive() != 0)
            wanted |= EPOLLIN;
    }
    {
        const std::scoped_lock lock{queue_mutex_};
        if (gone_)
            return;
        if (!queue_.empty())
            wanted |= EPOLLOUT;
    }
    if (wanted != interest_ && loop_.modify(fd_.get(), wanted))
        interest_ = wanted;
}

/// Reads no more than the receiver takes, so that nothing overruns: what it has no room for waits
/// in the descriptor. Without a receiver input is thrown away.
bool FdBackend::read_some() {
    std::array<std::byte, 4096> buffer;
    std::size_t room = buffer.size();
    {
        const std::scoped_lock lock{receiver_mutex_};
        if (receiver_ != nullptr)
            room = std::min(room, receiver_->can_receive());
    }
    if (room == 0)
        return true;
    const auto n = ::read(fd_.get(), buffer.data(), room);
    if (n > 0) {
        const std::scoped_lock lock{receiver_mutex_};
        if (receiver_ != nullptr)
            receiver_->receive(std::span{buffer}.first(static_cast<std::size_t>(n)));
    }
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

void FdBackend::on_ready(std::uint32_t events) {
    if ((events & EPOLLIN) != 0 && !read_some())
        return hang_up();
    if ((events & EPOLLOUT) != 0)
        send_queued();
    if ((events & (EPOLLERR | EPOLLHUP)) != 0 && (events & EPOLLIN) == 0)
        return hang_up();
    update_interest();
}

void FdBackend::hang_up() {
    loop_.remove(fd_.get());
    {
        const std::scoped_lock lock{queue_mutex_};
        gone_ = true;
        queue_.clear();
        queue_shrank_.notify_all();
    }
    if (const auto callback = std::exchange(hangup_, nullptr))
        callback();
}

void FdBackend::set_receiver(ByteReceiver* receiver) noexcept {
    {
        const std::scoped_lock lock{receiver_mutex_};
        receiver_ = receiver;
    }
    post(&FdBackend::update_interest);
}

void FdBackend::receiver_ready() noexcept { post(&FdBackend::update_interest); }

void FdBackend::drain(std::chrono::milliseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    for (;;) {
        send_queued();
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        {
            const std::scoped_lock lock{queue_mutex_};
            if (queue_.empty() || gone_ || left.count() <= 0)
                return;
        }
        pollfd poll{fd_.get(), POLLOUT, 0};
        if (::poll(&poll, 1, static_cast<int>(left.count())) <= 0 || (poll.revents & POLLERR) != 0)
            return;
    }
}

void FdBackend::finish(std::chrono::milliseconds limit) {
    drain(limit);
    if (::shutdown(fd_.get(), SHUT_WR) != 0)
        return; // no socket: nobody to wait for
    const auto deadline = std::chrono::steady_clock::now() + limit;
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        pollfd poll{fd_.get(), POLLRDHUP, 0};
        if (left.count() <= 0 || ::poll(&poll, 1, static_cast<int>(left.count())) >= 0 ||
            errno != EINTR)
            return;
    }
}

} // namespace doppel::chardev
