// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A one-shot timer on an event loop. Owner thread only: the loop's.
#include <chrono>
#include <functional>

#include "base/event_loop.hpp"
#include "base/unique_fd.hpp"

namespace doppel::block {

class Alarm {
public:
    /// `ring` runs on the loop's thread; it may set the alarm again, or destroy it. `loop` outlives
    /// the alarm.
    Alarm(base::EventLoop& loop, std::function<void()> ring);
    ~Alarm();
    Alarm(const Alarm&) = delete;
    Alarm& operator=(const Alarm&) = delete;

    /// Rings once, so long from now; what was set before is forgotten.
    void set(std::chrono::nanoseconds from_now);
    void cancel();

private:
    base::EventLoop& loop_;
    base::UniqueFd timer_;
};

} // namespace doppel::block
