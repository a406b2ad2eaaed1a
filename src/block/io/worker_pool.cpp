// SPDX-License-Identifier: Apache-2.0
#include "block/io/worker_pool.hpp"

#include <csignal>

namespace doppel::block {

WorkerPool::~WorkerPool() {
    std::vector<std::jthread> threads;
    {
        const base::MutexLock lock{mutex_};
        ending_ = true;
        threads.swap(threads_);
    }
    changed_.notify_all();
}

void WorkerPool::run(std::function<void()> work) {
    {
        const base::MutexLock lock{mutex_};
        queue_.push_back(std::move(work));
        if (idle_ < queue_.size() && threads_.size() < limit_)
            threads_.emplace_back([this] { serve(); });
    }
    changed_.notify_one();
}

void WorkerPool::serve() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr); // signals belong to the owner's threads
    while (true) {
        std::function<void()> work;
        {
            mutex_.lock();
            ++idle_;
            while (queue_.empty() && !ending_)
                changed_.wait(mutex_);
            --idle_;
            if (queue_.empty()) {
                mutex_.unlock();
                return;
            }
            work = std::move(queue_.front());
            queue_.pop_front();
            mutex_.unlock();
        }
        work();
    }
}

} // namespace doppel::block
