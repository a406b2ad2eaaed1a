// SPDX-License-Identifier: Apache-2.0
#include "block/io/alarm.hpp"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "base/verify.hpp"

namespace doppel::block {

Alarm::Alarm(base::EventLoop& loop, std::function<void()> ring)
    : loop_{loop}, timer_{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)} {
    DOPPEL_VERIFY(timer_, "there is a descriptor for a timer");
    const auto watched = loop_.add(timer_.get(), EPOLLIN,
                                   [fd = timer_.get(), ring = std::move(ring)](std::uint32_t) {
                                       std::uint64_t rings = 0;
                                       // Nothing to read: it was set anew after it had rung.
                                       if (::read(fd, &rings, sizeof rings) == sizeof rings)
                                           ring();
                                   });
    DOPPEL_VERIFY(watched, "a timer can be watched");
}

Alarm::~Alarm() { loop_.remove(timer_.get()); }

void Alarm::set(std::chrono::nanoseconds from_now) {
    using std::chrono::seconds;
    const auto wait = std::max(from_now, std::chrono::nanoseconds{1}); // 0 would disarm it
    const auto whole = std::chrono::duration_cast<seconds>(wait);
    itimerspec when{};
    when.it_value = {whole.count(), (wait - whole).count()};
    ::timerfd_settime(timer_.get(), 0, &when, nullptr);
}

void Alarm::cancel() {
    const itimerspec never{};
    ::timerfd_settime(timer_.get(), 0, &never, nullptr);
}

} // namespace doppel::block
