// SPDX-License-Identifier: Apache-2.0
#include "base/event_loop.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <unordered_map>
#include <vector>

#include "base/mutex.hpp"
#include "base/unique_fd.hpp"

namespace doppel::base {

struct EventLoop::Impl {
    UniqueFd epoll;
    UniqueFd wake; // eventfd: tasks_ or stopping_ changed
    // shared_ptr: a callback may remove itself while it runs; the running copy keeps it alive
    std::unordered_map<int, std::shared_ptr<Callback>> callbacks;
    Mutex mutex;
    std::vector<std::function<void()>> tasks DOPPEL_GUARDED_BY(mutex);
    bool stopping DOPPEL_GUARDED_BY(mutex) = false;
    std::atomic<bool> news = false; // tasks or stopping changed since run_tasks() looked
    struct Poller {
        std::uint64_t number;
        Poll poll;
    };
    std::vector<Poller> pollers;
    std::uint64_t next_poller = 1;

    void ring() const {
        const std::uint64_t one = 1;
        [[maybe_unused]] const auto written = ::write(wake.get(), &one, sizeof one);
    }

    /// Runs what was posted; false once stop() was called.
    bool run_tasks() {
        if (!news.exchange(false, std::memory_order_acquire))
            return true;
        std::vector<std::function<void()>> due;
        bool go_on = true;
        {
            const MutexLock lock{mutex};
            due.swap(tasks);
            go_on = !stopping;
            if (stopping)
                news.store(true, std::memory_order_relaxed); // for the next run() too
        }
        for (auto& task : due)
            task();
        return go_on;
    }

    bool run_pollers() {
        bool worked = false;
        for (std::size_t i = 0; i < pollers.size(); ++i) // a poller may add another
            worked = pollers[i].poll() || worked;
        return worked;
    }

    enum class Patience : std::uint8_t { Sleep, Look };

    void wait_and_dispatch(Patience patience = Patience::Sleep) {
        std::array<epoll_event, 16> ready{};
        const bool look_only =
            run_pollers() || patience == Patience::Look || news.load(std::memory_order_acquire);
        const int count = ::epoll_wait(epoll.get(), ready.data(), ready.size(), look_only ? 0 : -1);
        for (int i = 0; i < count; ++i) {
            const auto& event = ready[static_cast<std::size_t>(i)];
            if (event.data.fd == wake.get()) {
                std::uint64_t rings = 0;
                [[maybe_unused]] const auto drained = ::read(wake.get(), &rings, sizeof rings);
                continue;
            }
            const auto found = callbacks.find(event.data.fd);
            if (found == callbacks.end())
                continue; // removed by an earlier callback of this round
            const auto keep_alive = found->second;
            (*keep_alive)(event.events);
        }
    }
};

EventLoop::EventLoop(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
EventLoop::~EventLoop() = default;

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
    auto impl = std::make_unique<Impl>();
    impl->epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
    impl->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!impl->epoll || !impl->wake)
        return fail_errno(errno, "create an event loop");
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = impl->wake.get();
    if (::epoll_ctl(impl->epoll.get(), EPOLL_CTL_ADD, impl->wake.get(), &event) != 0)
        return fail_errno(errno, "create an event loop");
    return std::unique_ptr<EventLoop>{new EventLoop{std::move(impl)}};
}

Result<void> EventLoop::add(int fd, std::uint32_t events, Callback callback) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(impl_->epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0)
        return fail_errno(errno, "watch file descriptor " + std::to_string(fd));
    impl_->callbacks[fd] = std::make_shared<Callback>(std::move(callback));
    return {};
}

Result<void> EventLoop::modify(int fd, std::uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(impl_->epoll.get(), EPOLL_CTL_MOD, fd, &event) != 0)
        return fail_errno(errno, "watch file descriptor " + std::to_string(fd));
    return {};
}

void EventLoop::remove(int fd) {
    ::epoll_ctl(impl_->epoll.get(), EPOLL_CTL_DEL, fd, nullptr);
    impl_->callbacks.erase(fd);
}

std::uint64_t EventLoop::add_poll(Poll poll) {
    impl_->pollers.push_back({impl_->next_poller, std::move(poll)});
    return impl_->next_poller++;
}

void EventLoop::remove_poll(std::uint64_t number) {
    std::erase_if(impl_->pollers, [&](const auto& poller) { return poller.number == number; });
}

void EventLoop::run() {
    while (impl_->run_tasks())
        impl_->wait_and_dispatch();
}

void EventLoop::run_until(const std::function<bool()>& done) {
    while (!done() && impl_->run_tasks() && !done())
        impl_->wait_and_dispatch();
}

void EventLoop::run_ready() {
    impl_->run_tasks();
    impl_->wait_and_dispatch(Impl::Patience::Look);
}

void EventLoop::post(std::function<void()> task) {
    {
        const MutexLock lock{impl_->mutex};
        impl_->tasks.push_back(std::move(task));
    }
    // Only the first of a batch rings: the loop clears `news` before it takes the tasks.
    if (!impl_->news.exchange(true, std::memory_order_acq_rel))
        impl_->ring();
}

void EventLoop::stop() {
    {
        const MutexLock lock{impl_->mutex};
        impl_->stopping = true;
    }
    if (!impl_->news.exchange(true, std::memory_order_acq_rel))
        impl_->ring();
}

} // namespace doppel::base
