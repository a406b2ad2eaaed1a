// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Threads that run functions, started as they are needed, at most `limit`. Any thread may call
/// run(); the destructor finishes what was queued.
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "base/mutex.hpp"

namespace doppel::block {

class WorkerPool {
public:
    explicit WorkerPool(unsigned limit) : limit_{limit} {}
    ~WorkerPool();
    WorkerPool(const WorkerPool&) = delete;
    WorkerPool& operator=(const WorkerPool&) = delete;

    void run(std::function<void()> work);
    unsigned limit() const noexcept { return limit_; }

private:
    void serve();

    const unsigned limit_;
    base::Mutex mutex_;
    std::condition_variable_any changed_;
    std::deque<std::function<void()>> queue_ DOPPEL_GUARDED_BY(mutex_);
    unsigned idle_ DOPPEL_GUARDED_BY(mutex_) = 0;
    bool ending_ DOPPEL_GUARDED_BY(mutex_) = false;
    std::vector<std::jthread> threads_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::block
